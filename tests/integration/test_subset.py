"""The gateway's subset hint as Envoy's filters make it: metadata set before ext_proc, forwarded with the first message."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from tests.integration.conftest import FULL_DUPLEX, LEAN, Answer, Scene

NAMESPACE = "envoy.lb.subset_hint"
KEY = "x-gateway-destination-endpoint-subset"


def hinting(config: dict[str, Any]) -> None:
    """A filter that turns the request header `x-hint` into the hint, whatever kind of value it is."""
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    filters = manager["http_filters"]
    place = next(number for number, one in enumerate(filters) if one["name"] == "envoy.filters.http.ext_proc")
    filters[place]["typed_config"]["metadata_options"]["forwarding_namespaces"] = {"untyped": [NAMESPACE]}
    value = {"metadata_namespace": NAMESPACE, "key": KEY, "type": "PROTOBUF_VALUE", "encode": "BASE64"}
    hint = {
        "name": "envoy.filters.http.header_to_metadata",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config",
            "request_rules": [{"header": "x-hint", "on_header_present": value, "remove": True}],
        },
    }
    filters.insert(place, hint)


def hint(value: str | Sequence[str]) -> dict[str, str]:
    parsed = json_format.ParseDict(value, struct_pb2.Value())  # type: ignore[arg-type]
    return {"x-hint": base64.b64encode(parsed.SerializeToString()).decode()}


@pytest.fixture(scope="module", params=[LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])
def source(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="module", params=["http2", "grpc.aio"])
def scene(request: pytest.FixtureRequest, source: Path, make_scene: Callable[..., Scene]) -> Scene:
    made = make_scene(3)
    made.start_picker(f"--transport={request.param}")
    made.start_envoy(source, hinting)
    return made


numbers = itertools.count()


def ask(scene: Scene, value: str | Sequence[str] | None = None) -> Answer:
    """A prompt that no server has seen: among equals chance decides."""
    text = f"{next(numbers)} " + "once upon a time " * 50
    body = {"model": "base", "messages": [{"role": "user", "content": text}]}
    return scene.ask(body, headers={} if value is None else hint(value))


def servers(scene: Scene, times: int, value: str | Sequence[str] | None = None) -> set[str]:
    return {ask(scene, value).headers["x-server"] for _ in range(times)}


class TestHint:
    def test_only_what_it_names_is_picked(self, scene: Scene) -> None:
        wanted = scene.origins[1]
        assert servers(scene, 5, [wanted.address]) == {wanted.name}

    def test_a_string_with_commas_is_a_list(self, scene: Scene) -> None:
        two = scene.origins[:2]
        text = ", ".join(origin.address for origin in two)
        assert servers(scene, 20, text) == {origin.name for origin in two}

    def test_an_address_alone_is_all_its_ports(self, scene: Scene) -> None:
        assert servers(scene, 30, ["127.0.0.1"]) == {origin.name for origin in scene.origins}

    def test_strangers_among_them_are_passed_over(self, scene: Scene) -> None:
        wanted = scene.origins[2]
        answer = ask(scene, ["192.0.2.1:8000", wanted.address])
        assert answer.headers["x-server"] == wanted.name
        assert wanted.last.headers["x-gateway-destination-endpoint"] == wanted.address

    @pytest.mark.parametrize("value", [[], ["192.0.2.1:8000"], ""], ids=["empty list", "strangers", "empty string"])
    def test_nobody_left_is_a_503_that_says_so(self, scene: Scene, value: str | list[str]) -> None:
        before = [len(origin.received) for origin in scene.origins]
        answer = ask(scene, value)
        assert answer.status == 503
        assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
        assert answer.json()["error"]["type"] == "service_unavailable_error"
        assert [len(origin.received) for origin in scene.origins] == before

    def test_a_request_without_body_keeps_to_it(self, scene: Scene) -> None:
        wanted = scene.origins[0]
        for _ in range(3):
            answer = scene.ask(None, method="GET", path="/v1/models", headers=hint([wanted.address]))
            assert answer.headers["x-server"] == wanted.name
        assert scene.ask(None, method="GET", path="/v1/models", headers=hint([])).status == 503

    def test_without_a_hint_all_are_picked(self, scene: Scene) -> None:
        assert servers(scene, 30) == {origin.name for origin in scene.origins}
