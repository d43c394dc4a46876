"""The body-based router: what becomes a header, what is refused, what passes, and what is counted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from epp.bbr.app import BodyRouter
from epp.bbr.record import Record
from epp.bbr.router import PASSED, Router
from epp.bbr.steps import BaseModelToHeader, FieldToHeader, steps_of
from epp.drops import Drop, Reason
from epp.extproc.codec import encode
from epp.extproc.events import (
    Arrival,
    BodyMode,
    Closed,
    Immediate,
    Modes,
    RequestBody,
    RequestBodyReply,
    RequestHeaders,
    RequestHeadersReply,
    Steer,
    StreamedRequestBody,
)
from epp.extproc.exchange import Exchange
from epp.observe.exposition import Build
from epp.observe.metrics import Metrics
from epp.observe.text import write
from epp.resources.rules import Selection
from epp.resources.store import Source, Store
from epp.settings import Settings, from_router_flags
from tests.unit.test_app import Wire
from tests.unit.test_resources_routing import adapters, read

MODEL, BASE = "x-gateway-model-name", "x-gateway-base-model-name"


class Desk:
    """A router that knows one base model with two adapters."""

    def __init__(self, *specs: str) -> None:
        self.metrics = Metrics()
        self.record = Record(self.metrics, Build("abc", "v1"))
        self.refused: list[Drop] = []
        resources = Store(Selection(), "default")
        resources.replace(Source.DIRECTORY, read(adapters("llama", "[english-bot, spanish-bot]")).objects)
        self.router = Router(steps_of(specs, resources), self.record, self.refused.append, lambda: 0.0)

    def route(self, body: bytes, *, truncated: bool = False, **headers: str) -> Steer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        steer, _ = self.router.route(Arrival(named, body, has_body=True, truncated=truncated), 0.0, 0.0)
        return steer

    def headers(self, body: Mapping[str, object] | bytes) -> dict[str, str]:
        steer = self.route(body if isinstance(body, bytes) else json.dumps(body).encode())
        assert (steer.destination, steer.body) == ("", None)
        return dict(steer.set_headers)

    def page(self) -> dict[str, float]:
        text = "".join(write(family, openmetrics=False) for family in self.record.families())
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


class TestHeaders:
    @pytest.mark.parametrize(
        ("model", "base"),
        [("spanish-bot", "llama"), ("llama", "llama"), ("other", ""), ("/model/llama2", ""), ("日本", "")],
    )
    def test_model_and_base_model(self, model: str, base: str) -> None:
        assert Desk().headers({"x": [1], "model": model}) == {MODEL: model, BASE: base}

    def test_whatever_the_path(self) -> None:
        arrival = Arrival({":path": "/some/api", ":method": "PUT"}, b'{"model": "m"}', has_body=True)
        steer, _ = Desk().router.route(arrival, 0.0, 0.0)
        assert dict(steer.set_headers)[MODEL] == "m"

    @pytest.mark.parametrize(
        "body", [b'\xef\xbb\xbf{"model": "m"}', b' {"model":"\\u006d"} ', b'{"model": "x", "model": "m"}']
    )
    def test_json_as_others_write_it(self, body: bytes) -> None:
        assert Desk().headers(body)[MODEL] == "m"

    @pytest.mark.parametrize(
        ("body", "counter"),
        [
            ({}, 'bbr_body_field_not_found_total{field="model"}'),
            ({"model": ""}, 'bbr_body_field_empty_total{field="model"}'),
            ({"model": " "}, 'bbr_body_field_empty_total{field="model"}'),
            ({"model": None}, "bbr_model_not_parsed_total"),
            ({"model": 7}, "bbr_model_not_parsed_total"),
            ({"model": ["m"]}, "bbr_model_not_parsed_total"),
            ({"model": "a\r\nx-evil: 1"}, "bbr_model_not_parsed_total"),
            ({"model": "m" * 70_000}, "bbr_model_not_parsed_total"),
        ],
    )
    def test_without_a_model_a_request_passes_as_it_is(self, body: dict[str, object], counter: str) -> None:
        desk = Desk()
        assert desk.headers(body) == {}
        page = desk.page()
        assert page[counter] == 1
        assert page["bbr_success_total"] == 0
        assert page["bbr_model_not_in_body_total"] == (counter != "bbr_model_not_parsed_total")

    @pytest.mark.parametrize("body", [b"", b"{", b"x", b"[]", b'"m"', b'{"model": "m"} x', b"[" * 9999])
    def test_what_is_no_json_object_is_a_bad_request(self, body: bytes) -> None:
        desk = Desk()
        with pytest.raises(Drop) as caught:
            desk.route(body)
        assert caught.value.reason is Reason.BAD_REQUEST
        assert caught.value.message.startswith("Failed to parse request body")
        assert desk.refused == [caught.value]

    def test_a_model_in_no_known_letters_is_none(self) -> None:
        desk = Desk()
        assert desk.headers(b'{"model": "m\xff"}') == {}
        assert desk.page()["bbr_model_not_parsed_total"] == 1

    def test_a_beginning_is_enough(self) -> None:
        desk = Desk()
        assert dict(desk.route(b'{"model": "m", "messages": [{"ro', truncated=True).set_headers)[MODEL] == "m"
        assert desk.route(b'{"messages": [{"ro', truncated=True) == PASSED
        assert desk.route(b"\xff", truncated=True) == PASSED
        assert desk.page()["bbr_model_not_parsed_total"] == 1

    def test_a_compressed_body_passes(self) -> None:
        desk = Desk()
        assert desk.route(gzip.compress(b'{"model": "m"}'), content_encoding="gzip") == PASSED
        assert desk.page()["bbr_model_not_parsed_total"] == 1

    def test_without_a_body_there_is_nothing_to_say(self) -> None:
        desk = Desk()
        assert desk.router.route(Arrival({}, b"", has_body=False), 0.0, 0.0) == (PASSED, None)
        assert set(desk.page().values()) == {0.0, 1.0}  # bbr_info alone is 1


class TestPlugins:
    def test_run_in_order_and_all_or_none(self) -> None:
        spec = '{"field_name": "tenant", "header_name": "X-Tenant"}'
        desk = Desk(f"body-field-to-header:tenant:{spec}", "base-model-to-header:base")
        assert desk.headers({"model": "llama", "tenant": "gold"}) == {"x-tenant": "gold", BASE: "llama"}
        assert desk.headers({"tenant": "gold"}) == {}
        assert desk.page()['bbr_body_field_not_found_total{field="model"}'] == 1

    def test_as_the_command_line_has_them(self) -> None:
        resources = Store(Selection(), "default")
        one, other = steps_of(
            ['body-field-to-header:a:{"field_name": "f", "header_name": "H"}', "base-model-to-header:b"], resources
        )
        assert one == FieldToHeader("a", "f", "h")
        assert isinstance(other, BaseModelToHeader)
        assert other.name == "b"

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ("x", "must be TYPE:NAME"),
            ("x:", "must be TYPE:NAME"),
            ("x:y", "there is no plugin type x; known: body-field-to-header, base-model-to-header"),
            ("body-field-to-header:y", "missing required field `field_name`"),
            ("body-field-to-header:y:{", "JSON is malformed|truncated"),
            ('body-field-to-header:y:{"field_name": "a", "header_name": "a b"}', "must be names"),
            ('body-field-to-header:y:{"field_name": "", "header_name": "a"}', "must be names"),
            ('body-field-to-header:y:{"fieldName": "a", "header_name": "a"}', "unknown field `fieldName`"),
        ],
    )
    def test_what_is_wrong_is_told(self, spec: str, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            Desk(spec)


class TestMetrics:
    def test_the_page(self) -> None:
        desk = Desk()
        desk.headers({"model": "m"})
        page = desk.page()
        assert page["bbr_success_total"] == 1
        labels = 'extension_point="request",plugin_type="body-field-to-header",plugin_name="body-field-to-header"'
        assert page[f"bbr_plugin_duration_seconds_count{{{labels}}}"] == 1
        assert page[f'bbr_plugin_duration_seconds_bucket{{{labels},le="0.0001"}}'] == 1
        assert page['bbr_info{commit="abc",build_ref="v1"}'] == 1


def replies(modes: Modes, pieces: list[bytes]) -> list[object]:
    """What goes to Envoy for a body that comes in `pieces`."""
    router, exchange = Desk().router, Exchange(modes)
    sent: list[object] = []

    def perform(effects: list[object]) -> None:
        for effect in effects:
            if isinstance(effect, Arrival):
                try:
                    steer, _ = router.route(effect, 0.0, 0.0)
                except Drop as drop:
                    perform(list(exchange.receive(drop)))
                else:
                    perform(list(exchange.receive(steer)))
            else:
                sent.append(effect)

    perform(list(exchange.receive(RequestHeaders({":path": "/v1/completions"}, False))))
    for number, piece in enumerate(pieces):
        perform(list(exchange.receive(RequestBody(piece, number == len(pieces) - 1))))
    perform(list(exchange.receive(Closed(True))))
    return sent


@given(
    st.dictionaries(
        st.sampled_from(["model", "prompt", "x"]), st.text(max_size=20) | st.integers() | st.none(), max_size=3
    ),
    st.integers(1, 9),
    st.booleans(),
)
def test_no_byte_of_a_body_changes_however_it_is_cut(fields: dict[str, object], size: int, escaped: bool) -> None:
    body = json.dumps(fields, ensure_ascii=escaped, indent=size % 3).encode("utf-8", "surrogatepass")
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    duplex = replies(Modes(BodyMode.FULL_DUPLEX_STREAMED, BodyMode.NONE), pieces)
    head, *echoed = [one for one in duplex if isinstance(one, RequestHeadersReply | StreamedRequestBody | Immediate)]
    if not isinstance(head, Immediate):
        assert isinstance(head, RequestHeadersReply)
        assert b"".join(bytes(one.data) for one in echoed if isinstance(one, StreamedRequestBody)) == body
    buffered = replies(Modes(BodyMode.BUFFERED, BodyMode.NONE), [body])
    for one in buffered:
        if isinstance(one, RequestBodyReply):
            assert one.body is None
            assert isinstance(head, RequestHeadersReply)
            assert one.steer == head.steer


class TestWire:
    def test_a_request_that_passes_keeps_its_route(self) -> None:
        reply = pb.ProcessingResponse.FromString(encode(RequestBodyReply(PASSED)))
        common = reply.request_body.response
        assert not common.clear_route_cache
        assert not common.HasField("header_mutation")
        assert not reply.HasField("dynamic_metadata")

    def test_headers_come_without_a_destination_and_find_another_route(self) -> None:
        steer = Steer(destination="", set_headers=((MODEL, "m"), (BASE, "")))
        reply = pb.ProcessingResponse.FromString(encode(RequestBodyReply(steer)))
        common = reply.request_body.response
        assert common.clear_route_cache
        headers = {one.header.key: one.header.raw_value for one in common.header_mutation.set_headers}
        assert headers == {MODEL: b"m", BASE: b""}
        assert not reply.HasField("dynamic_metadata")


class TestProcess:
    async def test_it_is_put_together(self) -> None:
        whole = BodyRouter(from_router_flags({"secure_serving": False}, {}), ())
        assert whole.ports.serving("whatever") is False
        wire = Wire()
        session = next(iter(whole.ports.routes.values()))(wire)
        body = pb.HttpBody(body=b'{"model": "m"}', end_of_stream=True)
        for message in (
            pb.ProcessingRequest(request_headers=pb.HttpHeaders()),
            pb.ProcessingRequest(request_body=body),
        ):
            session.received(message.SerializeToString())
        # Buffered by default: the headers pass, the decision is in the answer to the body.
        assert [one.WhichOneof("response") for one in wire.sent] == ["request_headers", "request_body"]
        assert whole.record.successes == 1
        session.closed(True)
        assert wire.status == 0

    @pytest.mark.parametrize(("flags", "mode"), [({}, "buffered"), ({"streaming": True}, "full-duplex")])
    def test_its_defaults(self, flags: dict[str, object], mode: str) -> None:
        settings = from_router_flags(flags, {"NAMESPACE": "models"})
        assert settings == Settings(
            grpc_port=9004,
            grpc_health_port=9005,
            pool_namespace="models",
            default_body_mode=mode,  # type: ignore[arg-type]
        )

    def test_trust_is_not_asked_for_in_vain(self) -> None:
        for flags in ({"metrics_client_ca_file": "x"}, {"client_allowed_names": ("a",)}):
            with pytest.raises(ValueError, match="needs --"):
                from_router_flags(flags, {})
