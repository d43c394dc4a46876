"""A loop that is late, and one that hangs, in a real process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from epp.watch import HUNG_STATUS
from tests.integration.conftest import LEAN, Scene
from tests.waiting import PATIENCE_S, wait_for

SLOW = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {{name: slow, type: "tests.faults.plugins:Slow", parameters: {{control: {control}}}}}
- {{type: prefix-cache-scorer}}
schedulingProfiles:
- name: default
  plugins: [{{pluginRef: slow, weight: 1}}, {{pluginRef: prefix-cache-scorer, weight: 1}}]
"""


def slow_scene(scene: Scene, directory: Path, *args: str) -> Path:
    """Starts everything; picks block the loop for as many seconds as the returned file says, once there is one."""
    control = directory / "seconds"
    scene.start_picker(f"--config-text={SLOW.format(control=control)}", "--max-loop-lag=50ms", *args)
    scene.start_envoy(LEAN)
    assert scene.ask().status == 200
    return control


def test_a_late_loop_picks_cheaper_says_so_and_recovers(make_scene: Callable[..., Scene], tmp_path: Path) -> None:
    scene = make_scene(3)
    control = slow_scene(scene, tmp_path)
    control.write_text("0.15")
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            assert scene.ask().status == 200

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    try:
        # A random choice asks no scorer, so nothing blocks any more while the step holds.
        wait_for(lambda: scene.metric("epp_pressure_step") == 2)
    finally:
        over.set()
        for thread in clients:
            thread.join()
    assert scene.metric("epp_degraded_total") > 0
    control.unlink()
    wait_for(lambda: scene.metric("epp_pressure_step") == 0)
    assert scene.picker is not None
    assert "picks are made as configured again" in scene.picker.output()


def test_a_hung_loop_ends_its_process_with_its_stacks(make_scene: Callable[..., Scene], tmp_path: Path) -> None:
    scene = make_scene(1)
    control = slow_scene(scene, tmp_path, "--hang-timeout=1s")
    picker = scene.picker
    assert picker is not None
    # Being stopped is no hang, however long it was.
    picker.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, picker.pid, os.WSTOPPED)
    threading.Event().wait(2.5)
    picker.signal(signal.SIGCONT)
    assert scene.ask().status == 200
    control.write_text("600")
    assert scene.ask().status == 200
    assert picker.child.wait(PATIENCE_S) == HUNG_STATUS
    text = picker.log.read_text()
    assert "the event loop has not turned for 1 s" in text
    assert "in score" in text
