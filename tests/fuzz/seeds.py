"""Where each target starts from: inputs that reach deep, for the fuzzer and for the short runs to damage."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Sequence

import hpack
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from epp.configuration import DEFAULT_TEXT

FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/envoy.service.ext_proc.v3.ExternalProcessor/Process"),
    (":authority", "epp"),
    ("te", "trailers"),
    ("grpc-timeout", "5S"),
    ("content-type", "application/grpc"),
]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return struct.pack(">LBL", len(payload) << 8 | kind, flags, stream_id) + payload


def framed(data: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BL", flag, len(data)) + data


def _block(*extra: tuple[str, str], huffman: bool = True) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode([*FIELDS, *extra], huffman=huffman)


def _blocks(*, huffman: bool = True) -> list[bytes]:
    """Of one connection, as Envoy would say them: the first fills the table, the next refers to it, the last is called by another id."""
    encoder = hpack.Encoder()
    calls = [FIELDS, FIELDS, [*FIELDS, ("traceparent", "00-1")], FIELDS, [*FIELDS, ("traceparent", "00-2")]]
    return [encoder.encode(fields, huffman=huffman) for fields in calls]


def _header_blocks() -> list[bytes]:
    apart = [_block(), _block(), _block(("grpc-encoding", "gzip"), ("content-length", "7"))]
    updates = [b"\x20" + apart[0], b"\x20\x3f\xe1\x1f" + _blocks()[0], _blocks()[1], b"\x3e" + apart[1]]
    lists = (_blocks(), _blocks(huffman=False), apart, updates)
    return [b"".join(bytes((len(block),)) + block for block in blocks) for blocks in lists]


def _http2() -> list[bytes]:
    call = frame(1, 4, 1, _block())
    halves = _block(huffman=False)
    packed = frame(1, 4, 3, _block(("grpc-encoding", "gzip")))
    return [
        b"\1" + call + frame(0, 0, 1, framed(b"one") + framed(b"two")) + frame(0, 1, 1),
        b"\0" + call + frame(0, 0, 1, framed(b"split")[:3]) + frame(0, 1, 1, framed(b"split")[3:]),
        b"\1" + frame(1, 0, 1, halves[:9]) + frame(9, 0, 1, halves[9:20]) + frame(9, 4, 1, halves[20:]),
        b"\1"
        + frame(1, 0x2C, 1, b"\2" + bytes(5) + _block() + b"\0\0")
        + frame(0, 9, 1, b"\3" + framed(b"x") + bytes(3)),
        b"\1" + packed + frame(0, 1, 3, framed(gzip.compress(b"packed"), 1)),
        b"\1" + call + frame(8, 0, 1, b"\0\0\1\0") + frame(8, 0, 0, b"\0\0\1\0") + frame(3, 0, 1, bytes(4)),
        b"\1" + frame(4, 0, 0, struct.pack(">HLHL", 4, 10, 5, 20_000)) + call + frame(0, 1, 1, framed(bytes(300))),
        b"\1" + frame(6, 0, 0, bytes(8)) + frame(2, 0, 9, bytes(5)) + frame(7, 0, 0, bytes(8)) + frame(200, 1, 3, b"?"),
        b"\1" + call + frame(0, 0, 1, framed(b"m")) + frame(1, 5, 1, _block()[:0]),
        b"\1" + b"".join(frame(1, 5, 2 * number + 1, _block()) for number in range(7)),
        b"\1" + b"".join(frame(1, 5, 2 * number + 1, block) for number, block in enumerate(_blocks())),
    ]


def _messages() -> list[bytes]:
    modes = processing_mode_pb2.ProcessingMode
    headers = pb.ProcessingRequest()
    for name, value in ((":path", "/v1/completions"), ("x-a", "é"), ("x-a", "again")):
        entry = headers.request_headers.headers.headers.add()
        entry.key, entry.raw_value = name, value.encode()
    headers.protocol_config.request_body_mode = modes.FULL_DUPLEX_STREAMED
    namespace = headers.metadata_context.filter_metadata["envoy.lb.subset_hint"]
    namespace.update({"x-gateway-destination-endpoint-subset": ["10.0.0.1:80", "10.0.0.2"]})
    answer = pb.ProcessingRequest()
    answer.response_headers.headers.headers.add(key=":status", value="200")
    answer.response_headers.end_of_stream = True
    answer.attributes["envoy.filters.http.ext_proc"].update({"upstream.address": "10.0.0.1:80"})
    out = [headers, answer]
    for data, end in ((b"", True), (b"body", False), (b"x" * 300, True), (b"", False)):
        out.append(pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=end)))
        out.append(pb.ProcessingRequest(response_body=pb.HttpBody(body=data, end_of_stream=end)))
    out.append(pb.ProcessingRequest(request_trailers=pb.HttpTrailers()))
    out.append(pb.ProcessingRequest(response_trailers=pb.HttpTrailers()))
    out.append(pb.ProcessingRequest(request_headers=pb.HttpHeaders(), observability_mode=True))
    return [one.SerializeToString() for one in out] + [out[3].SerializeToString() + b"B\0"]


def _exchanges() -> list[bytes]:
    full_duplex, lean, streamed, buffered = 24, 15, 6, 10
    talk = bytes((0x00, 0x31)) + b"abc" + bytes((0x29,)) + b"de" + bytes((0x03, 0x44)) + b"fghi" + bytes((0x7F, 0x0E))
    trailers = bytes((0x00, 0x31)) + b"abc" + bytes((0x02, 0x03, 0x34)) + b"abc" + bytes((0x05, 0x06))
    flags = (0x00, 0x01, 0x02, 0x0A, 0x10, 0x36)
    return [
        bytes((mode, flag)) + one
        for mode in (full_duplex, lean, streamed, buffered)
        for flag in flags
        for one in (talk, trailers)
    ]


def _requests() -> list[bytes]:
    bodies = [
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":5}',
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a\\u00e9\\n"},'
        b'{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],"tools":[{"type":"function"}]}',
        b'{"model": "m", "prompt": ["a", "b"], "cache_salt": "s"}',
        b'{"prompt": [1, 2, 3], "model": "m\\"x"}',
        b'\xef\xbb\xbf{"model":"m","input":"text","instructions":"be"}',
        b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"x"}]}],"model":"last"}',
        b'{"model":"m","system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":"\\ud83d\\ude00"}]}',
        b'{"query":"q","documents":["a",{"text":"b"}]}',
        b'{"input_ids":[1,2],"sampling_params":{"max_new_tokens":4}}',
        b'{"model":1,"messages":[]}',
    ]
    return [bytes((kind,)) + one for kind in (0, 1, 2, 3, 4, 6, 7, 11) for one in bodies]


def _answer_bodies() -> list[bytes]:
    return [
        b'\0{"id":"x","model":"served","usage":{"prompt_tokens":3,"completion_tokens":4}}',
        b'\7data: {"model" : "served","choices":[]}\n\ndata: {"model":"serv\\u0065d","usage":{"input_tokens":"5"}}\n\n',
        b'\3{"a":"\\"model\\":\\"served\\"","model":\n"other","meta_info":{"prompt_tokens":1e3}}',
    ]


def _pages() -> list[bytes]:
    vllm = (
        b"# HELP x y\n# TYPE vllm:num_requests_waiting gauge\n"
        b'vllm:num_requests_waiting{engine="0",model_name="m"} 3.0\nvllm:num_requests_waiting{engine="1"} 1 1700\n'
        b'vllm:num_requests_running{model_name="a}b\\"c"} 2\nvllm:kv_cache_usage_perc 0.5\n'
        b'vllm:lora_requests_info{max_lora="2",running_lora_adapters="a,b",waiting_lora_adapters=""} 1.7e9\n'
        b'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1\nvllm:prompt_tokens_total 55\n'
    )
    sglang = b'sglang:num_queue_reqs{dp_rank="0"} 4\nsglang:token_usage{x="y"} 0.25\nsglang:num_running_reqs 1\n'
    return [vllm, vllm + b"\0" + vllm.replace(b"3.0", b"NaN"), sglang + b"\0" + sglang, b'a{b="c"} 1\n' * 5]


def _metrics_answers() -> list[bytes]:
    return [
        b"\1HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"\2HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nConnection: close\r\n\r\nto the end",
        b"\3HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nt: r\r\n\r\n",
        b"\4HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
        b"\5HTTP/1.1 301\r\nlocation: /x\r\ncontent-length: 0\r\n\r\nmore",
    ]


def _endpoints() -> list[bytes]:
    return [
        b"endpoints:\n- name: a\n  address: 10.0.0.1\n  port: 8000\n  labels: {app: x, metricsPort: '9000'}\n",
        b'{"endpoints": [{"name": "a", "namespace": "n", "address": "::1", "port": "80"}]}',
        b"endpoints: []\n",
        b"endpoints:\n- &a {name: b, address: host.example, port: 1}\n- *a\n",
    ]


SEEDS: dict[str, Callable[[], Sequence[bytes]]] = {
    "http2": _http2,
    "header_block": _header_blocks,
    "message": _messages,
    "exchange": _exchanges,
    "request": _requests,
    "answer_body": _answer_bodies,
    "page": _pages,
    "metrics_answer": _metrics_answers,
    "configuration": lambda: [DEFAULT_TEXT.encode()],
    "endpoints": _endpoints,
}
