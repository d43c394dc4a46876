"""The codec against google's own: whatever upb writes we read alike, whatever we write upb reads as meant."""

from __future__ import annotations

import contextlib

import pytest
from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import example, given
from hypothesis import strategies as st

from epp.drops import Drop, Reason
from epp.extproc import codec
from epp.extproc.codec import Undecodable, encode
from epp.extproc.events import (
    BodyMode,
    EndOfStream,
    Event,
    Immediate,
    Modes,
    MoreTime,
    Reply,
    RequestBody,
    RequestBodyReply,
    RequestHeaders,
    RequestHeadersReply,
    RequestTrailers,
    RequestTrailersReply,
    ResponseBody,
    ResponseBodyReply,
    ResponseHeaders,
    ResponseHeadersReply,
    ResponseTrailers,
    ResponseTrailersReply,
    Steer,
    StreamedRequestBody,
    StreamedResponseBody,
)

HEADERS = {":method": "POST", ":path": "/v1/completions", "x-request-id": "7c2b", "cookie": "é" * 200}
SIZES = [0, 1, 122, 123, 124, 125, 126, 127, 128, 16_380, 16_383, 16_384, 16_390, 62_000, 2_097_152, 3_000_000]
sizes = st.integers(0, 300) | st.integers(16_370, 16_400) | st.sampled_from(SIZES)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


def request(**fields: object) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(**fields)


def block(headers: dict[str, str], raw: bool = True) -> base_pb2.HeaderMap:
    block = base_pb2.HeaderMap()
    for name, value in headers.items():
        if raw:
            block.headers.add(key=name, raw_value=value.encode())
        else:
            block.headers.add(key=name, value=value)
    return block


def metadata(namespace: str, key: str, value: object) -> base_pb2.Metadata:
    struct = ParseDict({key: value}, struct_pb2.Struct())
    return base_pb2.Metadata(filter_metadata={namespace: struct})


def understood(wire: bytes) -> Event | None:
    """What the message says. However it is read, it must say the same."""
    usual = codec.decode_usual(wire)
    try:
        event = codec.decode(wire)
    except Undecodable:
        assert usual is None
        raise
    assert usual is None or usual == event
    return event


def read(reply: Reply) -> pb.ProcessingResponse:
    response = pb.ProcessingResponse.FromString(encode(reply))
    assert response.SerializeToString(deterministic=True)
    return response


def changes(mutation: pb.HeaderMutation) -> tuple[dict[str, bytes], list[str]]:
    for option in mutation.set_headers:
        assert option.append_action == base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        assert not option.header.value
    return {o.header.key: o.header.raw_value for o in mutation.set_headers}, list(mutation.remove_headers)


class TestDecodeHeaders:
    @pytest.mark.parametrize("end", [False, True])
    @pytest.mark.parametrize("raw", [False, True])
    def test_request(self, raw: bool, end: bool) -> None:
        message = request(request_headers=pb.HttpHeaders(headers=block(HEADERS, raw), end_of_stream=end))
        assert understood(message.SerializeToString()) == RequestHeaders(HEADERS, end)

    @pytest.mark.parametrize("end", [False, True])
    def test_response(self, end: bool) -> None:
        message = request(response_headers=pb.HttpHeaders(headers=block(HEADERS), end_of_stream=end))
        assert understood(message.SerializeToString()) == ResponseHeaders(HEADERS, end)

    def test_repeated_names_are_joined_and_case_is_lowered(self) -> None:
        headers = base_pb2.HeaderMap()
        headers.headers.add(key="Accept", value="a")
        headers.headers.add(key="accept", raw_value=b"b")
        headers.headers.add(key="x", raw_value=b"\xff")
        message = request(request_headers=pb.HttpHeaders(headers=headers))
        assert understood(message.SerializeToString()) == RequestHeaders({"accept": "a,b", "x": "\ufffd"}, False)

    def test_a_raw_value_is_preferred(self) -> None:
        headers = base_pb2.HeaderMap()
        headers.headers.add(key="a", value="value", raw_value=b"raw")
        headers.headers.add(key="b")
        assert understood(
            request(request_headers=pb.HttpHeaders(headers=headers)).SerializeToString()
        ) == RequestHeaders({"a": "raw", "b": ""}, False)

    def test_none_at_all(self) -> None:
        assert understood(request(request_headers=pb.HttpHeaders()).SerializeToString()) == RequestHeaders({}, False)

    @pytest.mark.parametrize("mode", BodyMode)
    def test_the_modes_in_force(self, mode: BodyMode) -> None:
        message = request(
            request_headers=pb.HttpHeaders(headers=block(HEADERS)),
            protocol_config=pb.ProtocolConfiguration(request_body_mode=mode.value, response_body_mode=3),
        )
        event = understood(message.SerializeToString())
        assert isinstance(event, RequestHeaders)
        assert event.modes == Modes(mode, BodyMode.BUFFERED_PARTIAL)

    def test_a_mode_that_nobody_knows_yet_is_not_told(self) -> None:
        config = pb.ProtocolConfiguration.FromString(b"\x08\x63")
        message = request(request_headers=pb.HttpHeaders(headers=block(HEADERS)), protocol_config=config)
        assert understood(message.SerializeToString()) == RequestHeaders(HEADERS, False)

    @pytest.mark.parametrize(
        ("value", "subset"),
        [
            (["10.0.0.1:8000", "10.0.0.2:8000"], ("10.0.0.1:8000", "10.0.0.2:8000")),
            ("10.0.0.1:8000, 10.0.0.2", ("10.0.0.1:8000", "10.0.0.2")),
            (["10.0.0.1:8000,[::1]:8000", " 10.0.0.3 "], ("10.0.0.1:8000", "[::1]:8000", "10.0.0.3")),
            (["10.0.0.1", 7.0, None, True, ""], ("10.0.0.1",)),
            ([], ()),
            ("", ()),
            (None, None),
            (7.0, None),
            ({"a": "b"}, None),
        ],
    )
    def test_subset_hints(self, value: object, subset: tuple[str, ...] | None) -> None:
        hint = metadata("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset", value)
        headers = request(request_headers=pb.HttpHeaders(headers=block(HEADERS)), metadata_context=hint)
        assert understood(headers.SerializeToString()) == RequestHeaders(HEADERS, False, subset)
        body = request(request_body=pb.HttpBody(body=b"x"), metadata_context=hint)
        assert understood(body.SerializeToString()) == RequestBody(b"x", False, subset)

    def test_other_metadata_is_no_subset_hint(self) -> None:
        for namespace, key in [
            ("envoy.lb", "x-gateway-destination-endpoint-subset"),
            ("envoy.lb.subset_hint", "other"),
        ]:
            message = request(
                request_headers=pb.HttpHeaders(headers=block(HEADERS)),
                metadata_context=metadata(namespace, key, ["10.0.0.1:8000"]),
            )
            assert understood(message.SerializeToString()) == RequestHeaders(HEADERS, False)

    def test_who_served(self) -> None:
        served = metadata("envoy.lb", "x-gateway-destination-endpoint-served", "10.0.0.1:8000")
        attributes = struct_pb2.Struct()
        attributes.update({"upstream.address": "10.0.0.2:8000", "response.code": 200.0})
        part = pb.HttpHeaders(headers=block(HEADERS))
        by_metadata = request(
            response_headers=part,
            metadata_context=served,
            attributes={"envoy.filters.http.ext_proc": attributes},
        )
        by_attribute = request(response_headers=part, attributes={"envoy.filters.http.ext_proc": attributes})
        by_nobody = request(response_headers=part, attributes={"other": attributes})
        for message, expected in [
            (by_metadata, "10.0.0.1:8000"),
            (by_attribute, "10.0.0.2:8000"),
            (by_nobody, None),
        ]:
            assert understood(message.SerializeToString()) == ResponseHeaders(HEADERS, False, expected)

    def test_which_pool_is_meant(self) -> None:
        attributes = struct_pb2.Struct()
        attributes.update({"xds.cluster_name": "by-attribute", "xds.route_name": "r"})
        part = pb.HttpHeaders(headers=block(HEADERS))
        context = metadata("any.namespace", "x-gateway-inference-pool", "by-metadata")
        context.filter_metadata["another"].update({"x": "y"})
        told = {"envoy.filters.http.ext_proc": attributes}
        for message, pool in [
            (request(request_headers=part, metadata_context=context, attributes=told), "by-metadata"),
            (request(request_headers=part, attributes=told), "by-attribute"),
            (request(request_headers=part, attributes={"other": attributes}), ""),
            (request(request_headers=part, metadata_context=metadata("n", "x-gateway-inference-pool", 7)), ""),
        ]:
            assert understood(message.SerializeToString()) == RequestHeaders(HEADERS, False, pool=pool)

    @given(st.dictionaries(texts, st.binary(max_size=300), max_size=6), st.booleans(), st.booleans())
    def test_reading_the_bytes_and_upb_agree(self, headers: dict[str, bytes], end: bool, modes: bool) -> None:
        entries = base_pb2.HeaderMap()
        for name, value in headers.items():
            entries.headers.add(key=name, raw_value=value)
        message = request(request_headers=pb.HttpHeaders(headers=entries, end_of_stream=end))
        if modes:
            message.protocol_config.request_body_mode = 4
        wire = message.SerializeToString()
        assert codec.decode_usual(wire) == codec.decode(wire)


class TestDecodeBodies:
    @pytest.mark.parametrize("end", [False, True])
    @pytest.mark.parametrize("size", SIZES)
    def test_every_size_is_read_from_the_bytes(self, size: int, end: bool) -> None:
        part = pb.HttpBody(body=b"\x10\x01" * (size // 2) + b"x" * (size % 2), end_of_stream=end)
        to_server = request(request_body=part).SerializeToString()
        to_client = request(response_body=part).SerializeToString()
        assert codec.decode_usual(to_server) == codec.decode(to_server) == RequestBody(part.body, end)
        assert codec.decode_usual(to_client) == codec.decode(to_client) == ResponseBody(part.body, end)

    @given(st.binary(max_size=300), st.booleans(), st.booleans(), st.booleans())
    @example(b"\x10\x01", True, False, False)
    @example(b"\x10\x01", False, False, False)
    def test_reading_the_bytes_and_upb_agree(self, body: bytes, end: bool, whole_message: bool, extra: bool) -> None:
        part = pb.HttpBody(body=body, end_of_stream=end, end_of_stream_without_message=whole_message)
        message = request(response_body=part)
        if extra:
            message.metadata_context.CopyFrom(metadata("a", "b", "c"))
        assert understood(message.SerializeToString()) == ResponseBody(body, end)

    @given(st.sampled_from([0x12, 0x1A, 0x22, 0x2A]), st.binary(max_size=40))
    def test_arbitrary_bytes_mean_what_upb_says_or_nothing(self, tag: int, rest: bytes) -> None:
        wire = bytes((tag,)) + rest
        fast = codec.decode_usual(wire)
        if fast is not None:
            assert fast == codec.decode(wire)

    @given(st.data())
    def test_a_message_cut_short_is_refused_or_read_alike(self, data: st.DataObject) -> None:
        part = pb.HttpHeaders(headers=block(HEADERS), end_of_stream=True)
        whole = request(request_headers=part, protocol_config=pb.ProtocolConfiguration(request_body_mode=4))
        wire = bytearray(whole.SerializeToString())
        for place in data.draw(st.lists(st.integers(0, len(wire) - 1), max_size=3)):
            wire[place] = data.draw(st.integers(0, 255))
        cut = bytes(wire[: data.draw(st.integers(0, len(wire)))])
        with contextlib.suppress(Undecodable):
            understood(cut)


class TestDecodeTheRest:
    def test_trailers(self) -> None:
        trailers = pb.HttpTrailers(trailers=block({"a": "b"}))
        assert understood(request(request_trailers=trailers).SerializeToString()) == RequestTrailers()
        assert understood(request(response_trailers=trailers).SerializeToString()) == ResponseTrailers()

    def test_a_message_that_says_nothing(self) -> None:
        assert understood(b"") is None
        assert understood(request(observability_mode=True).SerializeToString()) is None

    @pytest.mark.parametrize(
        "wire",
        [b"\x12", b"\xff", b"\x2a\x05\x0a", b"\x12\x7f\x0a\x7f", b"\x2a\x80", b"\x12\x02\x0a\x05\x0a\x03\x0a\x01a"],
    )
    def test_garbage_is_refused(self, wire: bytes) -> None:
        with pytest.raises(Undecodable):
            understood(wire)

    def test_the_last_part_of_a_merged_message_counts(self) -> None:
        headers = request(request_headers=pb.HttpHeaders(headers=block(HEADERS))).SerializeToString()
        body = request(request_body=pb.HttpBody(body=b"x")).SerializeToString()
        assert understood(headers + body) == RequestBody(b"x", False)


class TestEncode:
    STEER = Steer("10.0.0.1:8000", (("x-request-id", "é1"),), ("x-gateway-inference-objective", "b"))

    def test_the_decision_with_the_headers(self) -> None:
        response = read(RequestHeadersReply(self.STEER))
        common = response.request_headers.response
        assert response.WhichOneof("response") == "request_headers"
        assert common.clear_route_cache
        assert common.status == pb.CommonResponse.CONTINUE
        assert changes(common.header_mutation) == (
            {"x-gateway-destination-endpoint": b"10.0.0.1:8000", "x-request-id": "é1".encode()},
            ["x-gateway-inference-objective", "b"],
        )
        assert MessageToDict(response.dynamic_metadata) == {
            "envoy.lb": {"x-gateway-destination-endpoint": "10.0.0.1:8000"}
        }

    def test_the_decision_with_the_body(self) -> None:
        response = read(RequestBodyReply(self.STEER))
        common = response.request_body.response
        assert common.clear_route_cache
        assert not common.HasField("body_mutation")
        assert changes(common.header_mutation)[0]["x-gateway-destination-endpoint"] == b"10.0.0.1:8000"
        rewritten = read(RequestBodyReply(self.STEER, b"x" * 300)).request_body.response
        assert rewritten.body_mutation.body == b"x" * 300
        assert rewritten.header_mutation == common.header_mutation
        assert rewritten.clear_route_cache

    @pytest.mark.parametrize("added", [(), (("x-request-id", "1"),)])
    @pytest.mark.parametrize("removed", [(), ("b",)])
    def test_what_comes_with_the_destination_is_there_alone_or_together(
        self, added: tuple[tuple[str, str], ...], removed: tuple[str, ...]
    ) -> None:
        steer = Steer("10.0.0.1:8000", added, removed)
        for part in (
            read(RequestHeadersReply(steer)).request_headers,
            read(RequestBodyReply(steer)).request_body,
            read(RequestBodyReply(steer, b"x")).request_body,
        ):
            set_headers, gone = changes(part.response.header_mutation)
            assert set_headers.pop("x-gateway-destination-endpoint") == b"10.0.0.1:8000"
            assert set_headers == {name: value.encode() for name, value in added}
            assert gone == list(removed)
            assert part.response.clear_route_cache

    @given(st.lists(st.ip_addresses().map(str), min_size=1, max_size=9))
    def test_header_and_metadata_are_equal_always(self, endpoints: list[str]) -> None:
        destination = ",".join(endpoints)
        for scores in (None, {"10.0.0.1:8000": 0.25}):
            for reply in (
                RequestHeadersReply(Steer(destination, scores=scores)),
                RequestBodyReply(Steer(destination, scores=scores)),
            ):
                response = read(reply)
                common = getattr(response, response.WhichOneof("response")).response
                header = changes(common.header_mutation)[0]["x-gateway-destination-endpoint"]
                told = MessageToDict(response.dynamic_metadata)["envoy.lb"]
                assert header.decode() == told["x-gateway-destination-endpoint"] == destination
                assert told.get("x-gateway-destination-endpoint-scores") == scores

    @pytest.mark.parametrize("end", [False, True])
    @pytest.mark.parametrize("size", SIZES)
    def test_streamed_bodies(self, size: int, end: bool) -> None:
        data = b"\x00\xff" * (size // 2) + b"x" * (size % 2)
        expected = pb.ProcessingResponse()
        streamed = expected.response_body.response.body_mutation.streamed_response
        streamed.SetInParent()
        streamed.body, streamed.end_of_stream = data, end
        assert encode(StreamedResponseBody(data, end)) == expected.SerializeToString()
        to_server = pb.ProcessingResponse(
            request_body=pb.BodyResponse(response=expected.response_body.response)
        ).SerializeToString()
        assert encode(StreamedRequestBody(memoryview(data), end)) == to_server

    @given(sizes, st.booleans())
    def test_streamed_bodies_of_any_size(self, size: int, end: bool) -> None:
        streamed = read(StreamedResponseBody(b"x" * size, end)).response_body.response.body_mutation.streamed_response
        assert (len(streamed.body), streamed.end_of_stream) == (size, end)

    def test_parts_that_only_pass(self) -> None:
        parts: list[tuple[Reply, str]] = [
            (RequestHeadersReply(), "request_headers"),
            (RequestBodyReply(), "request_body"),
            (RequestTrailersReply(), "request_trailers"),
            (ResponseHeadersReply(), "response_headers"),
            (ResponseBodyReply(), "response_body"),
            (ResponseTrailersReply(), "response_trailers"),
        ]
        for reply, part in parts:
            response = pb.ProcessingResponse.FromString(encode(reply))
            assert response.WhichOneof("response") == part
            if part.endswith("trailers"):
                assert getattr(response, part) == pb.TrailersResponse()
            else:
                assert getattr(response, part).response == pb.CommonResponse()

    def test_bodies_replaced_one_for_one(self) -> None:
        assert read(ResponseBodyReply(b"abc")).response_body.response.body_mutation == pb.BodyMutation(body=b"abc")
        assert read(ResponseBodyReply(b"")).response_body.response.body_mutation == pb.BodyMutation(clear_body=True)

    def test_response_headers(self) -> None:
        reply = ResponseHeadersReply((("a", "b"), ("c", "d" * 300)), ("content-length",))
        response = read(reply)
        mutation = response.response_headers.response.header_mutation
        assert changes(mutation) == ({"a": b"b", "c": b"d" * 300}, ["content-length"])
        assert not response.HasField("mode_override")
        looking = read(ResponseHeadersReply((), (), BodyMode.BUFFERED_PARTIAL))
        assert looking.mode_override == processing_mode_pb2.ProcessingMode(
            request_body_mode=3, response_body_mode=1, response_trailer_mode=1
        )

    @pytest.mark.parametrize("reason", Reason)
    def test_refusals(self, reason: Reason) -> None:
        drop = Drop(reason, "no")
        immediate = read(Immediate(drop)).immediate_response
        assert immediate.status.code == drop.status
        assert immediate.body == drop.body()
        headers, removed = changes(immediate.headers)
        assert headers["content-type"] == b"application/json"
        assert headers == {name: value.encode() for name, value in drop.headers()}
        assert removed == []

    def test_the_end_of_the_stream_is_no_message(self) -> None:
        with pytest.raises(TypeError):
            encode(EndOfStream())


@pytest.mark.parametrize("seconds", [1, 127, 128, 3600])
def test_more_time_is_a_message_of_its_own(seconds: int) -> None:
    expected = pb.ProcessingResponse()
    expected.override_message_timeout.FromSeconds(seconds)
    assert pb.ProcessingResponse.FromString(encode(MoreTime(seconds))) == expected
