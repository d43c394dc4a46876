"""Each policy of another system against an example worked out by hand from its published formula."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.lab.baseline import baseline
from bench.lab.offered import Offered
from bench.lab.record import Outcome
from bench.lab.scene import Loss, Scene, server
from bench.lab.simulation import Simulation
from bench.policies import Asked, Holds, Policy, Scraped, SeesEnd, SeesFirstToken, SeesRouted, SeesServers
from bench.policies.aibrix import PrefixCache
from bench.policies.chwbl import BoundedHash
from bench.policies.dynamo import LinearCost, ShortestFirst
from bench.policies.go_picker import Blend, Index, Sticky
from bench.policies.llumnix import MissesAndQueue, QuadraticFit
from bench.policies.lmetric import Product
from bench.policies.preble import ExploitExplore
from bench.policies.prefixes import Prefixes
from bench.policies.production_stack import PrefixAware
from bench.policies.sglang import CacheAware, LeastLoad
from bench.policies.simple import LeastRequest, PowerOfTwo, Random, RoundRobin
from bench.policies.table import RIVALS


class Bench:
    """Servers as a policy sees them, everything set by hand, and the hooks called as the lab calls them."""

    def __init__(
        self,
        policy: Policy,
        servers: int = 3,
        *,
        pages: Mapping[int, Scraped] | None = None,
        cached: Mapping[int, int] | None = None,
        seed: int = 1,
    ) -> None:
        self.policy = policy
        self.now_s = 0.0
        self.rng = random.Random(seed)
        self.servers: Sequence[int] = range(servers)
        self.pages = dict(pages or {})
        self.cached = dict(cached or {})
        self._ids = itertools.count()
        if isinstance(policy, SeesServers):
            for one in self.servers:
                policy.joined(one, 0.0)

    def scraped(self, server: int) -> Scraped:
        return self.pages.get(server, Scraped())

    def cached_tokens(self, server: int, request: Asked) -> int:
        return self.cached.get(server, 0)

    def ask(self, blocks: Iterable[int] = (), *, tokens: int = 0, priority: int = 0, model: str = "") -> Asked:
        named = tuple(blocks)
        return Asked(
            id=f"r{next(self._ids)}",
            arrived_s=self.now_s,
            prompt_tokens=tokens or 64 * len(named),
            blocks=named,
            priority=priority,
            model=model,
        )

    def pick(self, blocks: Iterable[int] = (), **more: int) -> int:
        """The pick, without its consequences."""
        picked = self.policy.pick(self.ask(blocks, **more), self)  # type: ignore[arg-type]
        assert picked is not None
        return picked

    def picks(self, blocks: Sequence[int] = (), *, times: int = 50, **more: int) -> set[int]:
        return {self.pick(blocks, **more) for _ in range(times)}

    def route(self, blocks: Iterable[int] = (), *, to: int | None = None, **more: int) -> Asked:
        """Pick, and send it there, or to the server that the example says."""
        request = self.ask(blocks, **more)  # type: ignore[arg-type]
        picked = self.policy.pick(request, self)
        self.sent(request, picked if to is None else to)
        return request

    def sent(self, request: Asked, server: int | None) -> None:
        assert server is not None
        if isinstance(self.policy, SeesRouted):
            self.policy.routed(request, server, self.now_s)

    def first_token(self, request: Asked, server: int) -> None:
        assert isinstance(self.policy, SeesFirstToken)
        self.policy.first_token(request, server, self.now_s)

    def end(self, request: Asked, server: int, output_tokens: int = 10) -> None:
        assert isinstance(self.policy, SeesEnd)
        self.policy.finished(request, server, output_tokens, self.now_s)


class TestSimple:
    def test_round_robin(self) -> None:
        bench = Bench(RoundRobin())
        assert [bench.pick() for _ in range(5)] == [0, 1, 2, 0, 1]

    def test_random_is_even(self) -> None:
        bench = Bench(Random())
        counts = Counter(bench.pick() for _ in range(3000))
        assert all(900 < counts[one] < 1100 for one in range(3))

    def test_least_request(self) -> None:
        bench = Bench(LeastRequest())
        first = bench.route(to=0)
        bench.route(to=1)
        assert bench.picks() == {2}
        bench.route(to=2)
        bench.end(first, 0)
        assert bench.picks() == {0}

    def test_power_of_two(self) -> None:
        bench = Bench(PowerOfTwo())
        for one, requests in ((0, 2), (1, 1)):
            for _ in range(requests):
                bench.route(to=one)
        # Of the pairs 01, 02, 12 the emptier wins: 1, 2, 2. The fullest never does.
        counts = Counter(bench.pick() for _ in range(3000))
        assert counts[0] == 0 and 900 < counts[1] < 1100

    def test_power_of_two_with_one_server(self) -> None:
        assert Bench(PowerOfTwo(), 1).pick() == 0


class TestGoPicker:
    def test_blend(self) -> None:
        # Queues 4, 0, 2: 0, 1, 0.5. KV .1, .6, .5: .9, .4, .5. Server 0 holds 3 of 4 blocks.
        # 3·.75 + 0 + 1.8 = 4.05; 0 + 2 + .8 = 2.8; 0 + 1 + 1 = 2.
        pages = {n: Scraped(waiting=w, kv_usage=k) for n, (w, k) in enumerate([(4, 0.1), (0, 0.6), (2, 0.5)])}
        bench = Bench(Blend(), pages=pages)
        bench.route([1, 2, 3], to=0)
        assert bench.picks([1, 2, 3, 4]) == {0}
        # One of four: .75 + 1.8 = 2.55 < 2.8.
        assert bench.picks([1, 5, 6, 7]) == {1}

    def test_blend_with_equal_queues_gives_each_all_of_it(self) -> None:
        pages = {n: Scraped(waiting=3, kv_usage=k) for n, k in enumerate([0.5, 0.5, 0.6])}
        assert Bench(Blend(), pages=pages).picks([1]) == {0, 1}

    def test_the_index_counts_behind_a_gap(self) -> None:
        index = Index()
        index.record(0, [1, 2, 3, 4], 0)
        index.record(1, [2, 3], 0)
        assert index.counted([1, 2, 3, 4, 5]) == {0: 4, 1: 2}

    def test_the_index_forgets_heads_first_and_believes_in_four_times_the_cache(self) -> None:
        index = Index()
        index.record(0, [1, 2, 3, 4], 48)
        assert index.counted([1, 2, 3, 4]) == {}
        assert index.counted([2, 3, 4]) == {0: 3}
        index.forget(0)
        assert index.counted([2, 3, 4]) == {}

    def test_sticky_goes_to_the_warm_one_whatever_its_queue(self) -> None:
        bench = Bench(Sticky())
        # 9 of 10 blocks are warm (≥ .8); 100,000 tokens wait there: 6.3 s < 18 s.
        bench.route(range(9), to=0)
        bench.route([99], to=0, tokens=100_000)
        assert bench.picks(range(10)) == {0}
        # 7 of 10 are not: the emptier of the cold ones.
        assert bench.picks([*range(7), 50, 51, 52]) == {1, 2}

    def test_sticky_until_saturated(self) -> None:
        bench = Bench(Sticky())
        bench.route(range(10), to=0)
        # (640 + x)/15,928 s > 18 s from x = 286,064 + 1 on.
        bench.route([98], to=0, tokens=286_064)
        assert bench.picks(range(10)) == {0}
        bench.route([97], to=0, tokens=1)
        assert bench.picks(range(10)) == {1, 2}

    def test_sticky_counts_uncached_tokens_until_the_first_token(self) -> None:
        bench = Bench(Sticky(), 2)
        first = bench.route(range(10), to=0)
        assert bench.picks([50]) == {1}
        bench.first_token(first, 0)
        assert bench.picks([50]) == {0, 1}
        # Cached now: it counts nothing there, so both are still equal.
        bench.route(range(10), to=0)
        assert bench.picks([51]) == {0, 1}


class TestSglang:
    def test_cache_aware_follows_the_tree(self) -> None:
        bench = Bench(CacheAware())
        bench.route([1, 2, 3, 4], to=2)
        # 4 of 10 > .3; 3 of 10 is not: the least loaded, then the least used, then the first.
        assert bench.pick([1, 2, 3, 4, *range(50, 56)]) == 2
        assert bench.pick([1, 2, 3, *range(50, 57)]) == 0

    def test_cache_aware_follows_the_last_of_several(self) -> None:
        bench = Bench(CacheAware())
        bench.route([1, 2], to=2)
        bench.route([1, 2], to=1)
        assert bench.pick([1, 2, 3]) == 1

    def test_cache_aware_balances_past_both_thresholds(self) -> None:
        bench = Bench(CacheAware(), 2)
        for _ in range(64):
            bench.route([1, 2], to=0)
        # 64 − 0 is not more than 64.
        assert bench.pick([1, 2]) == 0
        bench.route([1, 2], to=0)
        assert bench.pick([1, 2]) == 1
        # 200 against 135 is 65 apart but not 1.5 times as much.
        for one, count in ((0, 135), (1, 135)):
            for _ in range(count):
                bench.route([9, 9], to=one)
        assert bench.pick([1, 2]) == 0

    def test_least_load(self) -> None:
        # 2·1024/2000 + .15·.5/.5 = 1.174 s; 0 + .15·.9/.1 = 1.35 s; 1.024 + 0 = 1.024 s with 2·1024 and no KV.
        pages = {
            0: Scraped(waiting=2, kv_usage=0.5),
            1: Scraped(waiting=0, kv_usage=0.9),
            2: Scraped(waiting=2, kv_usage=0.0),
        }
        bench = Bench(LeastLoad(), pages=pages)
        assert bench.picks() == {2}
        # 301 tokens more: 1.1745 s.
        bench.route(to=2, tokens=301)
        assert bench.picks() == {0}
        # The next poll, 10 s later, forgets what was sent.
        bench.now_s = 9.9
        assert bench.picks() == {0}
        bench.now_s = 10.0
        assert bench.picks() == {2}


class TestDynamo:
    def test_linear_cost(self) -> None:
        # A request of 10 blocks. Server 0 caches 8 of them and has 4 blocks of prefill active, which are its decode blocks too:
        # 4 + 10 − 8 + 4 + 10 = 20. Server 1 caches none and is empty: 10 + 10 = 20. With 9 cached: 19.
        bench = Bench(LinearCost(), 2)
        bench.route([91, 92, 93, 94], to=0)
        bench.cached = {0: 8 * 64}
        assert bench.picks(range(10)) == {0, 1}
        bench.cached = {0: 9 * 64}
        assert bench.picks(range(10)) == {0}

    def test_scale_weighs_prefill(self) -> None:
        # Server 0: 9 active blocks, all prefilled, 6 of 10 cached: s·4 + 9 + 10. Server 1: s·10 + 10. Equal at 1.5.
        for scale, best in ((1.0, {1}), (1.5, {0, 1}), (2.0, {0})):
            bench = Bench(LinearCost(scale=scale), 2)
            bench.first_token(bench.route(range(80, 89), to=0), 0)
            bench.cached = {0: 6 * 64}
            assert bench.picks(range(10)) == best, scale

    def test_decode_blocks_are_counted_once(self) -> None:
        bench = Bench(LinearCost(), 2)
        first = [bench.route([1, 2], to=0, tokens=150) for _ in range(3)]
        for one in first:
            bench.first_token(one, 0)
        bench.first_token(bench.route(range(20, 26), to=1), 1)
        # Server 0: 2 different blocks and 3 tails; server 1: 6 blocks. Together with [1, 2] and no tail: 5 against 8.
        bench.cached = {0: 128, 1: 128}
        assert bench.picks([1, 2]) == {0}
        assert isinstance(bench.policy, LinearCost)
        asked = bench.ask([1, 2])
        assert [bench.policy._decode_blocks(asked, one) for one in (0, 1)] == [5, 8]
        for one in first:
            bench.end(one, 0)
        assert bench.policy._decode_blocks(asked, 0) == 2

    def test_the_queue_lets_the_shortest_go_when_there_is_room(self) -> None:
        policy = ShortestFirst(max_batched_tokens=1000)
        bench = Bench(policy, 2)
        busy = [bench.route(to=one, tokens=1001) for one in (0, 1)]
        long, short, urgent = bench.ask(tokens=900), bench.ask(tokens=300), bench.ask(tokens=500, priority=1)
        for one in (long, short, urgent):
            assert policy.pick(one, bench) is None
        assert policy.release(bench) is None
        bench.first_token(busy[1], 1)
        # 2/500 before 1/300 before 1/900.
        for expected in (urgent, short):
            assert policy.release(bench) == (expected, 1)
            bench.sent(expected, 1)
        # 800 of 1,000 are active there: room for one more, which takes it past the threshold.
        assert policy.release(bench) == (long, 1)
        bench.sent(long, 1)
        assert policy.release(bench) is None
        assert policy.pick(bench.ask(tokens=10), bench) is None


class TestAibrix:
    def test_the_best_match_within_two_deviations(self) -> None:
        bench = Bench(PrefixCache(), 3)
        bench.route([1, 2, 3], to=0)
        bench.route([1, 2], to=1)
        assert bench.picks([1, 2, 3, 4]) == {0}
        bench.route([8], to=0)
        # Both hold two blocks; 1 has less running.
        assert bench.picks([1, 2, 9]) == {1}

    def test_equal_matches_by_running(self) -> None:
        bench = Bench(PrefixCache(), 2)
        bench.route([1], to=0)
        bench.route([1], to=1)
        bench.route([7], to=0)
        assert bench.picks([1]) == {1}

    def test_a_busy_match_is_passed_over(self) -> None:
        # Running 10 and seven times 0: mean 1.25, σ 3.31, bound 7.87 < 10.
        bench = Bench(PrefixCache(), 8)
        for _ in range(10):
            bench.route([1], to=0)
        assert 0 not in bench.picks([1])
        # 10 and one 0: mean 5, σ 5, bound 15.
        bench = Bench(PrefixCache(), 2)
        for _ in range(10):
            bench.route([1], to=0)
        assert bench.picks([1]) == {0}

    def test_imbalance_goes_before_prefixes(self) -> None:
        bench = Bench(PrefixCache(), 2)
        for _ in range(17):
            bench.route([1], to=0)
        assert bench.picks([1]) == {1}

    def test_the_table_forgets(self) -> None:
        bench = Bench(PrefixCache(table_blocks=2), 4)
        bench.route([1, 2], to=3)
        bench.route([5], to=2)
        # Block 1 left first: nothing of the prompt is known any more.
        assert bench.picks([1, 2]) == {0, 1}


class TestBoundedHash:
    def test_the_same_beginning_goes_to_the_same_server_while_it_may(self) -> None:
        bench = Bench(BoundedHash(), 4)
        home = bench.pick([1, 2])
        assert bench.picks([1, 3]) == {home}
        # Bound (total + 1)/4 · 1.25: with 0 and 1 in flight .31 and .63, both less than 1, so the second goes on.
        bench.route([1, 2], to=home)
        second = bench.pick([1, 2])
        assert second != home
        # 7 elsewhere: (8 + 1)/4 · 1.25 = 2.8 ≥ 1.
        for one in range(4):
            if one != home:
                for _ in range(2 if one == second else 3):
                    bench.route([9], to=one)
        assert bench.picks([1, 2]) == {home}

    def test_adapters_have_homes_of_their_own(self) -> None:
        bench = Bench(BoundedHash(), 16)
        homes = {bench.policy.pick(bench.ask([1], model=f"adapter-{n}"), bench) for n in range(40)}
        assert len(homes) > 8

    def test_a_server_that_leaves_moves_its_own_share_only(self) -> None:
        bench = Bench(BoundedHash(), 5)
        before = {block: bench.pick([block]) for block in range(500)}
        assert isinstance(bench.policy, BoundedHash)
        bench.policy.left(2, 0.0)
        bench.servers = [0, 1, 3, 4]
        moved = [block for block, home in before.items() if bench.pick([block]) != home]
        assert all(before[block] == 2 for block in moved) and 50 < len(moved) < 150


class TestLmetric:
    def test_product(self) -> None:
        # Server 0: 640 cached of 1,000, one request of 200 in prefill: (360 + 200) · 2 = 1,120. Server 1: 1,000 · 1.
        bench = Bench(Product(), 2)
        busy = bench.route(to=0, tokens=200)
        bench.cached = {0: 640}
        assert bench.picks(tokens=1000) == {1}
        # Its first token there: 360 · 2 = 720.
        bench.first_token(busy, 0)
        assert bench.picks(tokens=1000) == {0}

    def test_a_miss_is_charged_as_a_miss(self) -> None:
        bench = Bench(Product(), 2, cached={0: 900})
        bench.route(tokens=1000)
        assert isinstance(bench.policy, Product)
        assert bench.policy.tokens[0] == 100


class TestLlumnix:
    def test_misses_and_queue_are_both_tokens(self) -> None:
        bench = Bench(MissesAndQueue(), 2)
        bench.route(to=0, tokens=500)
        # 500 + 500 against 1,000; one cached block decides.
        bench.cached = {0: 500}
        assert bench.picks(tokens=1000) == {0, 1}
        bench.cached = {0: 564}
        assert bench.picks(tokens=1000) == {0}

    def test_what_the_front_has_behind_it_is_predicted(self) -> None:
        policy = MissesAndQueue()
        bench = Bench(policy, 2)
        for _ in range(2):
            bench.now_s += 10
            one = bench.route(to=0, tokens=1000)
            bench.now_s += 0.1
            bench.first_token(one, 0)
        # 1,000 tokens take 0.1 s: halfway through, 500 are left.
        bench.now_s += 10
        bench.route(to=0, tokens=1000)
        bench.now_s += 0.05
        assert policy._computed_tokens(0, bench.now_s) == pytest.approx(500)
        bench.cached = {0: 499}
        assert bench.picks(tokens=2000) == {1}
        bench.cached = {0: 501}
        assert bench.picks(tokens=2000) == {0}

    def test_the_fit_finds_a_quadratic(self) -> None:
        fit = QuadraticFit()
        assert fit.seconds(100) == 0.0
        for tokens in (100, 1000, 5000, 20_000):
            fit.learn(tokens, 2e-5 * tokens + 3e-10 * tokens**2)
        assert fit.seconds(10_000) == pytest.approx(0.23)


class TestPreble:
    def bench(self, policy: ExploitExplore, servers: int = 3, kv_tokens: int = 0) -> Bench:
        return Bench(policy, servers, pages={n: Scraped(kv_tokens=kv_tokens) for n in range(servers)})

    def policy(self) -> ExploitExplore:
        """A token's prefill takes 1 ms, a token's decoding 10 ms."""
        return ExploitExplore(prefill_s=lambda tokens: tokens / 1000, decode_s=0.01, imbalance=100.0)

    def test_exploits_what_is_longer_than_the_rest(self) -> None:
        bench = self.bench(self.policy())
        for one in (1, 2):
            bench.route([80 + one], to=one)
        bench.route(range(6), to=0)
        # 6 of 11 blocks: exploit, although server 0 has the most load.
        assert bench.picks(range(11)) == {0}

    def test_explores_by_load_and_prefill(self) -> None:
        # 6 of 12 is not longer. L + P: .384 + .384 there; 1: .064 + .768 = .832; 2: .064 + .768.
        bench = self.bench(self.policy())
        for one in (1, 2):
            bench.route([80 + one], to=one)
        bench.route(range(6), to=0)
        assert bench.picks(range(12)) == {0}
        # One more block of load there: .448 + .384 = .832, all the same; two: the others.
        bench.route([70], to=0)
        assert bench.picks(range(12)) == {0, 1, 2}
        bench.route([71], to=0)
        assert bench.picks(range(12)) == {1, 2}

    def test_decoding_counts_by_the_mean_answer(self) -> None:
        policy = self.policy()
        bench = self.bench(policy)
        first = bench.route([1], to=0)
        bench.end(first, 0, 100)
        bench.route([2], to=1)
        assert policy._load_s[1] == pytest.approx(0.064 + 100 * 0.01)

    def test_load_is_of_three_minutes(self) -> None:
        bench = self.bench(self.policy(), 2)
        bench.route(range(20, 40), to=0)
        assert bench.picks([1]) == {1}
        bench.now_s = 181.0
        assert bench.picks([1]) == {0, 1}

    def test_eviction_costs_what_is_in_use(self) -> None:
        # Caches of 4 blocks, both full. Block 10 of server 0 was hit twice of 3 requests in the window, block 20 of server 1 once.
        policy = self.policy()
        bench = self.bench(policy, 2, kv_tokens=4 * 64)
        bench.route([10, 11, 12, 13], to=0)
        bench.route([10, 11, 12, 13], to=0)
        bench.route([20, 21, 22, 23], to=1)
        # The oldest block is the tail: one leaves for a request of one. .064 · 2/3 and .064 · 1/3.
        assert bench.picks([1]) == {1}
        asked = bench.ask([1])
        assert policy._evicted_s(asked, 0, 0, bench) == pytest.approx(0.064 * 2 / 3)
        assert policy._evicted_s(asked, 1, 0, bench) == pytest.approx(0.064 / 3)

    def test_redirects_from_the_heaviest(self) -> None:
        policy = ExploitExplore(prefill_s=lambda tokens: tokens / 1000, imbalance=1.4)
        bench = self.bench(policy, 2)
        bench.route(range(6), to=0)
        bench.route(range(20, 25), to=1)
        # .384 against .320: 1.2 times; then .512: 1.6 times.
        assert bench.picks(range(7)) == {0}
        bench.route([60, 61], to=0)
        assert bench.picks(range(7)) == {1}


class TestProductionStack:
    def test_any_of_the_longest_match_whatever_its_load(self) -> None:
        bench = Bench(PrefixAware(), 4)
        assert bench.picks([1, 2]) == {0, 1, 2, 3}
        for _ in range(9):
            bench.route([1, 2, 3], to=0)
        bench.route([1, 2], to=3)
        assert bench.picks([1, 2, 9]) == {0, 3}
        assert bench.picks([1, 2, 3]) == {0}


class TestPrefixes:
    def test_a_tail_leaves_before_its_head(self) -> None:
        prefixes = Prefixes(3)
        prefixes.record(0, [1, 2, 3])
        prefixes.record(0, [1, 9])
        assert prefixes.matched([1, 2, 3]) == {0: 2}

    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 5)), max_size=20))
    @settings(deadline=None)
    def test_as_whole_beginnings(self, sent: list[tuple[int, int, int]]) -> None:
        prefixes = Prefixes()
        known: dict[int, set[tuple[int, int]]] = {}
        for one, root, length in sent:
            prefixes.record(one, [root * 10 + i for i in range(length)])
            known.setdefault(one, set()).update((root, i) for i in range(length))
        for root in range(4):
            expected = {one: sum(r == root for r, _ in blocks) for one, blocks in known.items()}
            found = prefixes.matched([root * 10 + i for i in range(5)])
            assert found == {one: depth for one, depth in expected.items() if depth}


def a_trace(count: int) -> list[Offered]:
    rng = random.Random(5)
    at_s = 0.0
    trace = []
    for number in range(count):
        at_s += rng.expovariate(20.0)
        group = rng.randrange(6)
        blocks = [group * 100 + i for i in range(rng.randrange(1, 5))] + [10_000 + number]
        trace.append(
            Offered(
                at_s=at_s,
                prompt_tokens=512 * len(blocks) - rng.randrange(500),
                output_tokens=rng.randrange(1, 40),
                blocks=blocks,
                priority=rng.randrange(2),
            )
        )
    return trace


@pytest.mark.parametrize("name", RIVALS)
class TestEveryRival:
    def test_serves_a_trace_with_a_server_lost_and_leaves_nothing_behind(self, name: str) -> None:
        policies: list[Policy] = []

        def new() -> Policy:
            policies.append(RIVALS[name]())
            return policies[0]

        scene = Scene(
            servers=(server("Llama-3.1-8B@H100"),) * 3, losses=(Loss(1, 2.0, 5.0),), scrape_interval_s=0.5, seed=3
        )
        records = list(Simulation(a_trace(200), scene, baseline(new)).records())
        assert len(records) == 200
        assert Counter(one.outcome for one in records)[Outcome.REFUSED] == 0
        assert len({one.server for one in records}) == 3
        policy = policies[0]
        for counted in ("requests", "tokens", "_in_flight"):
            left = getattr(policy, counted, {})
            assert not any(left.values()), (counted, left)
        assert not getattr(policy, "_charged", {})
        assert isinstance(policy, Holds) == (name == "Dynamo, shortest first")

    def test_is_its_seed_s(self, name: str) -> None:
        scene = Scene(servers=(server("Llama-3.1-8B@H100"),) * 3, seed=3)
        make: Callable[[], Policy] = RIVALS[name]
        one, other = (list(Simulation(a_trace(60), scene, baseline(make)).records()) for _ in range(2))
        assert one == other
