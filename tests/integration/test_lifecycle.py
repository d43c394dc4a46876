"""The picker as a process: how it starts, why it does not, how it follows its endpoints file, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from bench.processes import Process, Stand, free_port
from epp.extproc.health import CHECK, WATCH
from epp.ports import PROCESS
from tests.waiting import PATIENCE_S, wait_for

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
DESTINATION = "x-gateway-destination-endpoint"
QUIET = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\ndataLayer: {injectDefaults: false"


def failed_starts(tmp_path: Path, taken: int) -> dict[str, tuple[list[str], list[str]]]:
    """By name: flags that cannot work, and what the one line must say."""
    (tmp_path / "no-certificate").mkdir()
    for name in ("tls.crt", "tls.key"):
        (tmp_path / "no-certificate" / name).write_text("nonsense\n")
    (tmp_path / "mistaken.yaml").write_text(QUIET + "}\nplugins: [{type: quue-scorer}]\n")
    (tmp_path / "lost.yaml").write_text(
        QUIET + ", discovery: {pluginRef: f}}\nplugins: [{name: f, type: file-discovery, parameters: {path: /lost}}]\n"
    )
    one = "--endpoint=127.0.0.1:1"
    advice = [f"port {taken}", "sport = :", "choose another port with"]
    return {
        "no endpoints": ([], ["no endpoints", "--endpoint host:port", "file-discovery"]),
        "grpc port": ([one, f"--grpc-port={taken}"], [*advice, "in use", "--grpc-port"]),
        "grpc.aio port": ([one, f"--grpc-port={taken}", "--transport=grpc.aio"], [*advice, "--grpc-port"]),
        "health port": ([one, f"--grpc-health-port={taken}"], [*advice, "in use", "--grpc-health-port"]),
        "metrics port": ([one, f"--metrics-port={taken}"], [*advice, "in use", "--metrics-port"]),
        "strange host": ([one, "--host=192.0.2.1"], ["192.0.2.1", "--host names no address of this machine"]),
        "no such file": ([one, "--config-file=/lost.yaml"], ["the configuration /lost.yaml", "No such file"]),
        "mistake": ([one, f"--config-file={tmp_path}/mistaken.yaml"], ["mistaken.yaml:4", "queue-scorer"]),
        "no endpoints file": ([f"--config-file={tmp_path}/lost.yaml"], ["/lost cannot be read"]),
        "no certificate": ([one, "--secure-serving", "--cert-path=/lost"], ["/lost/tls.crt"]),
        "nonsense certificate": (
            [one, "--secure-serving", f"--cert-path={tmp_path}/no-certificate"],
            [f"{tmp_path}/no-certificate"],
        ),
    }


def test_a_start_that_fails_says_why_in_one_line_and_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cases = failed_starts(tmp_path, listener.getsockname()[1])
        children = {}
        for name, (flags, _) in cases.items():
            ports = ["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--secure-serving=false"]
            command = [sys.executable, "-m", "epp", "run", "--host=127.0.0.1", *ports, *flags]
            children[name] = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ends = {
            name: (*child.communicate(timeout=2 * PATIENCE_S), child.returncode) for name, child in children.items()
        }
    for name, (out, err, status) in ends.items():
        errors = [line for line in err.splitlines() if "ERROR" in line]
        assert status == 1, (name, err)
        assert out == ""
        assert "Traceback" not in err, (name, err)
        assert len(errors) == 1, (name, err)
        for words in cases[name][1]:
            assert words in errors[0], (name, errors[0])


class Picker:
    """One picker process on loopback, spoken to directly."""

    def __init__(self, stand: Stand, *flags: str) -> None:
        self.grpc, self.health, self.metrics = free_port(), free_port(), free_port()
        own = ["--host=127.0.0.1", f"--grpc-port={self.grpc}", f"--grpc-health-port={self.health}"]
        own += [f"--metrics-port={self.metrics}", "--secure-serving=false"]
        self.process: Process = stand.picker([*own, *flags], metrics=self.metrics)
        self.channel: Any = grpc.insecure_channel(f"127.0.0.1:{self.grpc}")
        self.probe: Any = grpc.insecure_channel(f"127.0.0.1:{self.health}")

    def close(self) -> None:
        self.channel.close()
        self.probe.close()

    def open(self) -> Call:
        return Call(self.channel)

    def destination(self) -> str | None:
        """Where a request without body goes; None where it is refused with 503."""
        with self.open() as call:
            response = call.ask(first_message())
            if response.HasField("immediate_response"):
                assert response.immediate_response.status.code == 503
                return None
            mutation = response.request_headers.response.header_mutation
            return next(
                str(one.header.raw_value, "ascii") for one in mutation.set_headers if one.header.key == DESTINATION
            )

    def check(self, service: str = "", channel: Any = None) -> bytes:
        name = service.encode()
        answer: bytes = (channel or self.probe).unary_unary(CHECK)(
            b"\x0a" + bytes([len(name)]) + name, timeout=PATIENCE_S
        )
        return answer

    def ended(self) -> int:
        """The status that it ends with."""
        return self.process.child.wait(PATIENCE_S)


class Call:
    def __init__(self, channel: Any) -> None:
        self._outgoing: list[bytes] = []
        self._closing = False
        self._call: Any = channel.stream_stream(PROCESS)(self._messages())

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True

    def _messages(self) -> Iterator[bytes]:
        while not self._closing:
            if self._outgoing:
                yield self._outgoing.pop(0)
            else:
                time.sleep(0.005)

    def ask(self, message: pb.ProcessingRequest) -> pb.ProcessingResponse:
        self._outgoing.append(message.SerializeToString())
        response = next(self._call)
        assert isinstance(response, bytes)
        return pb.ProcessingResponse.FromString(response)


def first_message() -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.request_headers.end_of_stream = True
    message.request_headers.headers.headers.add(key=":method", raw_value=b"GET")
    return message


def last_message() -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.response_headers.end_of_stream = True
    message.response_headers.headers.headers.add(key=":status", raw_value=b"200")
    return message


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Picker]]:
    pickers: list[Picker] = []
    with Stand(tmp_path) as stand:

        def begin(*flags: str) -> Picker:
            pickers.append(Picker(stand, *flags))
            return pickers[-1]

        yield begin
        for picker in pickers:
            picker.close()


def status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.fixture(params=["http2", "grpc.aio"])
def transport(request: pytest.FixtureRequest) -> str:
    return f"--transport={request.param}"


class TestEnding:
    def test_a_drain_says_so_at_once_and_lets_what_is_open_end(
        self, start: Callable[..., Picker], transport: str
    ) -> None:
        picker = start(transport, "--endpoint=127.0.0.1:1", "--drain-timeout=120s")
        watch = picker.probe.unary_stream(WATCH)(b"")
        assert next(watch) == SERVING
        with picker.open() as call:
            call.ask(first_message())
            picker.process.signal(signal.SIGTERM)
            assert next(watch) == NOT_SERVING
            assert picker.check("inference-extension") == NOT_SERVING
            assert picker.check("liveness") == SERVING
            assert status(picker.metrics, "/readyz") == 503
            assert status(picker.metrics, "/healthz") == 200
            # Proxies that have not noticed yet are still served.
            assert picker.destination() == "127.0.0.1:1"
            assert call.ask(last_message()).WhichOneof("response") == "response_headers"
        assert picker.ended() == 0

    def test_ctrl_c_ends_an_idle_picker(self, start: Callable[..., Picker], transport: str) -> None:
        picker = start(transport, "--endpoint=127.0.0.1:1", "--drain-timeout=600s")
        # A proxy keeps its connection; nothing is open on it.
        assert picker.destination() == "127.0.0.1:1"
        picker.process.signal(signal.SIGINT)
        assert picker.ended() == 0
        assert "Traceback" not in picker.process.output()

    def test_a_second_ctrl_c_does_not_wait_for_what_is_open(self, start: Callable[..., Picker], transport: str) -> None:
        picker = start(transport, "--endpoint=127.0.0.1:1", "--drain-timeout=600s")
        with picker.open() as call:
            call.ask(first_message())
            picker.process.signal(signal.SIGINT)
            wait_for(lambda: "draining" in picker.process.output())
            assert picker.process.running
            picker.process.signal(signal.SIGINT)
            assert picker.ended() == 0
        assert "Traceback" not in picker.process.output(100)

    def test_what_does_not_end_is_ended_after_the_timeout(self, start: Callable[..., Picker], transport: str) -> None:
        picker = start(transport, "--endpoint=127.0.0.1:1", "--drain-timeout=500ms")
        with picker.open() as call:
            call.ask(first_message())
            picker.process.signal(signal.SIGTERM)
            assert picker.ended() == 0
        assert "Traceback" not in picker.process.output(100)


class TestEndpointsFile:
    def test_it_is_followed_and_what_is_broken_is_not(self, start: Callable[..., Picker], tmp_path: Path) -> None:
        endpoints, config = tmp_path / "endpoints.yaml", tmp_path / "config.yaml"
        file = json.dumps({"path": str(endpoints)})
        config.write_text(
            f"{QUIET}, discovery: {{pluginRef: f}}}}\nplugins: [{{name: f, type: file-discovery, parameters: {file}}}]\n"
        )

        def write(text: str) -> None:
            unfinished = tmp_path / "unfinished"
            unfinished.write_text(text)
            os.replace(unfinished, endpoints)

        def one(number: int) -> str:
            return f"endpoints: [{{name: e, address: 127.0.0.1, port: {number}}}]\n"

        write(one(1))
        picker = start(f"--config-file={config}")
        assert picker.destination() == "127.0.0.1:1"
        write(one(2))
        wait_for(lambda: picker.destination() == "127.0.0.1:2")
        for broken, words in (("endpoints: [{name: e", "neither YAML nor JSON"), ("", "is empty"), ("x: 1", "'x'")):
            write(broken)
            wait_for(lambda words=words: words in picker.process.output(50))  # type: ignore[misc]
            assert picker.destination() == "127.0.0.1:2"
        endpoints.unlink()
        wait_for(lambda: "cannot be read" in picker.process.output(50))
        assert picker.destination() == "127.0.0.1:2"
        write("endpoints: []\n")
        wait_for(lambda: picker.destination() is None)
        write(one(3))
        wait_for(lambda: picker.destination() == "127.0.0.1:3")
