"""Endpoints files: what is read, and what each mistake is called."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.discovery.document import MAX_BYTES, parse_endpoints
from epp.discovery.source import DiscoveryError
from epp.endpoint import Endpoint

FULL = """\
# Two servers.
endpoints:
- name: vllm-0
  namespace: prod
  address: 10.0.0.1
  port: 8000
  labels: {llm-d.ai/engine-type: vllm, canary: true, metricsPort: 9100, metricsAddress: stats.local}
- {name: vllm-1, address: "fd00::1", port: "8001"}
- name: vllm-2
  address: vllm-2.models.svc.cluster.local.
  port: 8002
"""


def test_a_full_file() -> None:
    labels = {
        "llm-d.ai/engine-type": "vllm",
        "canary": "true",
        "metricsPort": "9100",
        "metricsAddress": "stats.local",
    }
    assert parse_endpoints(FULL.encode(), "f") == (
        Endpoint(
            name="vllm-0",
            namespace="prod",
            address="10.0.0.1",
            port=8000,
            labels=labels,
            metrics_address="stats.local",
            metrics_port=9100,
        ),
        Endpoint(name="vllm-1", address="fd00::1", port=8001),
        Endpoint(name="vllm-2", address="vllm-2.models.svc.cluster.local.", port=8002),
    )


def test_json_with_tabs() -> None:
    text = json.dumps({"endpoints": [{"name": "a", "address": "::1", "port": 1}]}, indent="\t")
    assert parse_endpoints(text.encode(), "f") == (Endpoint(name="a", address="::1", port=1),)


def test_an_empty_pool_is_said() -> None:
    assert parse_endpoints(b"endpoints: []", "f") == ()


def test_brackets_around_an_ipv6_are_dropped() -> None:
    (one,) = parse_endpoints(b"endpoints: [{name: a, address: '[fd00::1]', port: 1}]", "f")
    assert one.destination == "[fd00::1]:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml is empty; a pool that is meant to be empty is written `endpoints: []`"),
        ("# only words\n", "f.yaml is empty"),
        ("endpoints:\n", "f.yaml:1: endpoints: must be a list; no endpoints at all is written []"),
        ("[]", "f.yaml:1: must be a mapping"),
        ("endpoint: []", "f.yaml:1: unknown field 'endpoint'; did you mean 'endpoints'?"),
        ("{}", "f.yaml:1: lacks 'endpoints'"),
        ("endpoints: []\nendpoints: []", "f.yaml:2: 'endpoints' is given twice"),
        ("endpoints: [a]", "f.yaml:1: endpoints[0]: must be a mapping"),
        (
            "endpoints:\n- name: a\n  adress: x",
            "f.yaml:3: endpoints[0]: unknown field 'adress'; did you mean 'address'?",
        ),
        ("endpoints:\n- name: a\n  zzz: x", "unknown field 'zzz'; known are name, address, port, namespace, labels"),
        ("endpoints:\n- name: a\n  address: 10.0.0.1", "f.yaml:2: endpoints[0]: lacks 'port'"),
        ("endpoints:\n- {name: , address: a, port: 1}", "f.yaml:2: endpoints[0].name: must be a text or a number"),
        ("endpoints:\n- {name: a/b, address: a, port: 1}", "endpoints[0].name: 'a/b' must have no spaces or slashes"),
        ("endpoints:\n- {name: a, address: 10.0.0, port: 1}", "endpoints[0].address: '10.0.0' is neither an IP nor"),
        ("endpoints:\n- {name: a, address: 'a:b', port: 1}", "'a:b' is neither an IP nor a DNS name"),
        ("endpoints:\n- {name: a, address: 'http://a', port: 1}", "'http://a' is neither an IP nor a DNS name"),
        ("endpoints:\n- {name: a, address: a, port: 0}", "endpoints[0].port: '0' is no port; it must be in 1..65535"),
        ("endpoints:\n- {name: a, address: a, port: 65536}", "'65536' is no port"),
        ("endpoints:\n- {name: a, address: a, port: 8k}", "'8k' is no port"),
        ("endpoints:\n- {name: a, address: a, port: 1, labels: [x]}", "endpoints[0].labels: must be a mapping"),
        ("endpoints:\n- {name: a, address: a, port: 1, labels: {x: [y]}}", "endpoints[0].labels.x: must be a text"),
        (
            "endpoints:\n- {name: a, address: a, port: 1, labels: {metricsPort: x}}",
            "endpoints[0].labels.metricsPort: 'x' is no port",
        ),
        (
            "endpoints:\n- {name: a, address: a, port: 1}\n- {name: a, address: b, port: 1}",
            "f.yaml:3: endpoints[1]: has the name of endpoints[0]: default/a",
        ),
        (
            "endpoints:\n- {name: a, address: a, port: 1}\n- {name: b, address: a, port: 1}",
            "f.yaml:3: endpoints[1]: has the address and port of endpoints[0]: a:1",
        ),
        ("endpoints:\n- {name: a", "f.yaml:2: neither YAML nor JSON"),
        ("endpoints: []\n---\nendpoints: []", "f.yaml:2: neither YAML nor JSON"),
        ("endpoints: " + "[" * 100_000, "f.yaml: nested deeper than 16 levels"),
        ("- " * 100_000, "nested deeper than 16 levels"),
        ("x" * (MAX_BYTES + 1), "f.yaml has 1048577 bytes; at most 1048576 are allowed"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(DiscoveryError) as raised:
        parse_endpoints(text.encode(), "f.yaml")
    assert message in str(raised.value)


def test_not_utf8() -> None:
    with pytest.raises(DiscoveryError, match="f:2: not UTF-8"):
        parse_endpoints(b"a\n\xff", "f")


def test_no_cut_of_a_file_drops_endpoints_silently_within_one() -> None:
    """A cut file reads as an error or as the endpoints that are whole; never as one with another address or port."""
    whole = parse_endpoints(FULL.encode(), "f")
    fields = {one.key: one.destination for one in whole}
    for cut in range(len(FULL)):
        try:
            read = parse_endpoints(FULL[:cut].encode(), "f")
        except DiscoveryError:
            continue
        assert len(read) <= len(whole)
        assert all(fields[one.key].startswith(one.destination[:-1]) for one in read if one.key in fields)


@settings(max_examples=150)
@given(st.binary(max_size=60) | st.text("endpoints: []{}-\n\t\"'&*?!|>name,port", max_size=60).map(str.encode))
def test_any_bytes(data: bytes) -> None:
    try:
        assert isinstance(parse_endpoints(data, "f"), tuple)
    except DiscoveryError as error:
        assert str(error).startswith("f")
