"""The decision log as a real picker behind a real Envoy writes it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from epp.decisions.lines import Decision, Line, Members, Outcome, Run
from tests.integration.conftest import FULL_DUPLEX, LEAN, Scene
from tests.waiting import PATIENCE_S

SECRET = "plugh-planted"


@pytest.mark.parametrize("config", [LEAN, FULL_DUPLEX], ids=["lean", "full-duplex"])
def test_every_request_is_in_it_and_no_word_of_any(
    make_scene: Callable[..., Scene], tmp_path: Path, config: Path
) -> None:
    log = tmp_path / "decisions.jsonl"
    scene = make_scene(2)
    picker = scene.start_picker(f"--decision-log={log}", "--drain-timeout=1s")
    scene.start_envoy(config)
    chat = {"model": "base", "stream": True, "user": SECRET, "messages": [{"role": "user", "content": SECRET * 100}]}
    headers = {"authorization": f"Bearer {SECRET}", "x-gateway-inference-fairness-id": SECRET}
    for _ in range(3):
        assert scene.ask(chat, headers=headers).status == 200
    assert scene.ask(b"{no json", headers=headers).status == 400
    picker.stop(PATIENCE_S)
    text = log.read_bytes()
    assert SECRET.encode() not in text
    lines = [msgspec.json.decode(line, type=Line) for line in text.splitlines()]
    assert [type(one) for one in lines[:2]] == [Run, Members]
    decisions = [one for one in lines if isinstance(one, Decision)]
    outcomes = [one for one in lines if isinstance(one, Outcome)]
    assert [one.request for one in decisions] == [1, 2, 3, 4]
    picked, refused = decisions[:3], decisions[3]
    assert len({one.fingerprints for one in picked}) == 1 and all(one.stream and one.tenant for one in picked)
    assert all(one.picked is not None and not one.refused for one in picked)
    assert refused.picked is None and refused.refused
    assert [(one.request, one.status, one.aborted) for one in outcomes] == [(n, 200, False) for n in (1, 2, 3)]
    if config is FULL_DUPLEX:
        assert all(one.ttft_s is not None and one.prompt_tokens == 11 for one in outcomes)
    answered = subprocess.run(
        [
            sys.executable,
            "-m",
            "epp",
            "replay",
            str(log),
            "--seeds",
            "2",
            "--processes",
            "2",
            "--fail-if",
            "hit < 100%",
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )
    assert answered.returncode == 1, answered.stderr
    assert "a decision log of 3 requests" in answered.stdout and "on 2 × " in answered.stdout
    assert re.search(r"e2e_p50 +[\d.]+ m?s", answered.stdout)
    assert bool(re.search(r"ttft_p50 +–", answered.stdout)) == (config is LEAN)
