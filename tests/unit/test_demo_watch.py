"""The demo reads the picker's log, metrics pages and lists of models as they really look."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.demo.course import salted
from bench.demo.servers import Card, Offer, Unusable, agree, parse_servers
from bench.demo.tally import Cache, Seen
from bench.demo.watch import Decisions, caches, read_cache, since
from bench.load.workload import Mix, sessions

DECISION = (
    b'{"level":"debug","ts":"t","logger":"epp.decision","msg":"picked default/h:1","request_id":"1-0.0","model":"base",'
    b'"picked":["default/h:1","default/h:2"],"candidates":[{"endpoint":"default/h:1","score":4.8}]}\n'
)
OTHER = b'{"level":"info","ts":"t","logger":"epp","msg":"ready: 4 endpoints"}\n'


def test_decisions_are_read_as_the_log_grows(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(OTHER + DECISION[:40])
    decisions = Decisions(log)
    try:
        assert list(decisions.new()) == []
        with log.open("ab") as more:
            more.write(DECISION[40:] + b"Warning: not JSON\n" + DECISION.replace(b"1-0.0", b"1-1.0"))
        assert list(decisions.new()) == [("1-0.0", "h:1"), ("1-1.0", "h:1")]
        assert list(decisions.new()) == []
    finally:
        decisions.close()


def test_cache_counters_are_summed_over_engines() -> None:
    page = (
        b"# HELP vllm:prefix_cache_queries_total x\n# TYPE vllm:prefix_cache_queries_total counter\n"
        b'vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0\n'
        b'vllm:prefix_cache_queries_total{engine="1",model_name="m"} 1e+03\n'
        b'vllm:prefix_cache_queries_created{engine="1"} 1.7e+09\n'
        b'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 40.0\n'
        b"vllm:prefix_cache_hits_total 2.0\n"
        b'vllm:external_prefix_cache_hits_total{engine="0"} 7.0\n'
    )
    assert read_cache(page) == Cache(1100.0, 42.0)
    assert read_cache(b"sglang:num_running_reqs 1.0\n") is None


def test_what_servers_counted_before_does_not_count() -> None:
    before = {"a:1": Seen(cache=Cache(1000.0, 100.0)), "b:1": Seen(cache=None), "c:1": Seen(cache=None)}
    after = {"a:1": Seen(cache=Cache(1200.0, 290.0)), "b:1": Seen(cache=Cache(50.0, 0.0)), "c:1": Seen(in_flight=2.0)}
    assert caches(since(after, caches(before))) == {"a:1": Cache(200.0, 190.0), "b:1": Cache(50.0, 0.0)}
    assert since(after, {})["c:1"] == Seen(in_flight=2.0)


def test_servers_are_read_and_mistakes_named() -> None:
    assert parse_servers(" a:1, [::1]:2 ,") == ("a:1", "[::1]:2")
    assert parse_servers("") == ()
    with pytest.raises(Unusable, match="a:1 is named twice"):
        parse_servers("a:1,a:1")
    with pytest.raises(Unusable, match="'localhost' is no host:port"):
        parse_servers("localhost")


BASE = Card("m", None, 4096)


def test_an_offer_is_what_all_servers_have() -> None:
    sql, poems = Card("m-sql", "m"), Card("m-poems", "m")
    everywhere = {"a:1": (sql, BASE, poems), "b:1": (BASE, poems)}
    assert agree(everywhere) == Offer("m", ("m-poems",), 4096)


def test_servers_that_do_not_fit_together_are_named() -> None:
    with pytest.raises(Unusable, match="server b:1 does not serve m, the model of a:1: it lists n"):
        agree({"a:1": (BASE,), "b:1": (Card("n"),)})
    with pytest.raises(Unusable, match="server a:1 lists no model"):
        agree({"a:1": ()})


def test_salt_changes_the_first_bytes_and_nothing_else() -> None:
    workload = sessions(Mix(duration_s=2.0), 1)
    first, second = salted(workload, "aa"), salted(workload, "bb")
    for one, other, plain in zip(first, second, workload, strict=True):
        assert one.opening[:8] != other.opening[:8]
        assert len(one.opening) == len(other.opening)
        assert one.opening.endswith(plain.opening)
        assert one.turns == plain.turns
