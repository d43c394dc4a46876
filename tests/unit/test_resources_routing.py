"""Which pool a request is for, by HTTPRoutes, base models and models: from manifests to the decision."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.resources.document import Manifest, read_manifest
from epp.resources.objects import BaseModel, HttpRoute, Match, RouteRule, Share
from epp.resources.routing import BASE_MODEL_HEADER, MODEL_HEADER, NO_ROUTING, Routing, model_headers
from epp.resources.rules import Selection
from epp.resources.store import Source, Store

ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, creationTimestamp: %s}
spec:
  parentRefs: [{name: gateway}]
  rules:
"""


def route(rules: str, name: str = "models", made: str = "2026-01-01T00:00:00Z") -> str:
    return "---" + ROUTE % (name, made) + rules


def rule(*pools: str, model: str = "", base: str = "", path: str = "", more: str = "") -> str:
    """`pools` are `name` or `name*weight`."""
    headers = [("X-Gateway-Model-Name", model), ("X-Gateway-Base-Model-Name", base)]
    named = ", ".join(f"{{name: {name}, value: {value}}}" for name, value in headers if value)
    where = f"path: {{type: PathPrefix, value: {path}}}, " if path else ""
    refs = "".join(
        f"    - {{group: inference.networking.k8s.io, kind: InferencePool, name: {pool.partition('*')[0]}, "
        f"weight: {pool.partition('*')[2] or 1}}}\n"
        for pool in pools
    )
    return f"  - matches: [{{{where}headers: [{named}]{more}}}]\n    backendRefs:\n{refs}"


def adapters(
    base: str, listed: str, name: str = "adapters", label: str = "inference.networking.k8s.io/bbr-managed"
) -> str:
    return f"""---
apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}, labels: {{{label}: "true"}}}}
data:
  baseModel: "{base}"
  adapters: |
    {listed}
"""


def read(*texts: str) -> Manifest:
    return read_manifest("".join(texts).encode(), "f.yaml", "default")


def routing(*texts: str, pools: tuple[str, ...] = ("english", "spanish", "canary")) -> Routing:
    manifest = read(*texts)
    assert manifest.refusals == ()
    store = Store(Selection(pools), "default")
    store.replace(Source.DIRECTORY, manifest.objects)
    return store.routing


def pool_of(routing: Routing, model: str = "", seed: int = 1, **headers: str) -> str | None:
    return routing.pool({f":{name}": value for name, value in headers.items()}, model, random.Random(seed))


class TestRoutes:
    def test_a_model_leads_to_its_pool(self) -> None:
        routes = routing(route(rule("english", model="english-bot") + rule("spanish", model="spanish-bot")))
        assert [pool_of(routes, f"{name}-bot") for name in ("english", "spanish", "french")] == [
            "english",
            "spanish",
            None,
        ]

    def test_the_clients_own_header_does_not(self) -> None:
        routes = routing(route(rule("english", model="english-bot")))
        assert routes.pool({MODEL_HEADER: "english-bot"}, "other", random.Random(1)) is None

    def test_an_adapter_leads_to_the_pool_of_its_base(self) -> None:
        routes = routing(
            route(rule("english", base="llama") + rule("spanish", base="qwen")), adapters("llama", "[review, cad]")
        )
        assert [pool_of(routes, model) for model in ("review", "cad", "llama", "qwen", "x")] == [
            "english",
            "english",
            "english",
            None,
            None,
        ]

    def test_a_split_is_drawn_by_weight(self) -> None:
        routes = routing(route(rule("english*90", "canary*10", "spanish*0", model="m")))
        rng = random.Random(1)
        drawn = Counter(routes.pool({}, "m", rng) for _ in range(2000))
        assert drawn.keys() == {"english", "canary"}
        assert 150 <= drawn["canary"] <= 250

    def test_a_pool_that_is_not_served_gets_nothing(self) -> None:
        routes = routing(route(rule("english*1", "elsewhere*99", model="m")))
        assert {pool_of(routes, "m", seed) for seed in range(50)} == {"english"}

    @pytest.mark.parametrize(
        ("path", "pool"),
        [
            ("/v1/chat/completions", "spanish"),
            ("/v1/chat/completions?x=/v2", "spanish"),
            ("/v1/chat", "spanish"),
            ("/v1/chats", "english"),
            ("/v2", None),
            ("/v2?a", None),
        ],
    )
    def test_the_longest_path_wins_and_ends_at_a_slash(self, path: str, pool: str | None) -> None:
        routes = routing(route(rule("english", path="/v1") + rule("spanish", path="/v1/chat")))
        assert pool_of(routes, path=path) == pool

    def test_more_headers_win_then_age_then_name(self) -> None:
        both = route(rule("english", model="m") + rule("spanish", model="m", base="m"))
        assert pool_of(routing(both, adapters("m", "[]")), "m") == "spanish"
        young, old = (
            route(rule("english", model="m"), "a", "2026-01-02T00:00:00Z"),
            route(rule("spanish", model="m"), "b"),
        )
        assert pool_of(routing(young, old), "m") == "spanish"
        assert (
            pool_of(routing(route(rule("english", model="m"), "b"), route(rule("spanish", model="m"), "a")), "m")
            == "spanish"
        )

    def test_a_rule_for_a_model_goes_before_one_for_all(self) -> None:
        routes = routing(route(rule("english") + rule("spanish", model="m")))
        assert [pool_of(routes, model) for model in ("m", "other", "")] == ["spanish", "english", "english"]

    def test_other_headers_method_and_host_count_too(self) -> None:
        routes = routing(
            route(rule("spanish", more=", method: GET")).replace(
                "  rules:", '  hostnames: ["*.Example.com"]\n  rules:'
            ),
            route(rule("canary").replace("headers: []", "headers: [{name: X-Tenant, value: gold}]"), "t"),
        )
        assert pool_of(routes, method="GET", authority="api.example.com:8080") == "spanish"
        assert pool_of(routes, method="POST", authority="api.example.com") is None
        assert pool_of(routes, method="GET", authority="example.com") is None
        assert routes.pool({"x-tenant": "gold"}, "", random.Random(1)) == "canary"

    def test_a_slash_at_the_end_of_a_prefix_says_nothing(self) -> None:
        routes = routing(route(rule("english", path="/v1/")))
        assert [pool_of(routes, path=path) for path in ("/v1", "/v1/", "/v1/chat", "/v10")] == [
            "english",
            "english",
            "english",
            None,
        ]

    def test_the_host_that_fits_counts_and_a_whole_one_most(self) -> None:
        def at(hosts: str, pool: str, name: str) -> str:
            return route(rule(pool), name).replace("  rules:", f"  hostnames: {hosts}\n  rules:")

        # The long name does not make the short one beside it fit better.
        routes = routing(
            at('["a.very.long.name.example.com", "*.io"]', "english", "a"), at('["*.x.io"]', "spanish", "b")
        )
        assert pool_of(routes, authority="m.x.io") == "spanish"
        assert pool_of(routes, authority="m.io") == "english"
        # Of one length.
        whole = routing(at('["*.x.io"]', "spanish", "a"), at('["m.x.io"]', "english", "b"))
        assert pool_of(whole, authority="m.x.io") == "english"

    def test_what_only_a_gateway_can_match_is_told(self) -> None:
        unusual = "".join(
            rule("english", more=more)
            for more in (", queryParams: [{name: a, value: b}]", ", path: {type: RegularExpression, value: .*}")
        ) + rule("english").replace("headers: []", "headers: [{name: a, value: b, type: RegularExpression}]")
        manifest = read(route(unusual))
        (one,) = manifest.objects
        assert isinstance(one, HttpRoute)
        assert [rule.matches for rule in one.rules] == [(), (), ()]
        assert [slip.split(": ")[1] for slip in one.slips] == [
            "a query parameter is for the gateway to match",
            "a path by RegularExpression is for the gateway to match",
            "a header by RegularExpression is for the gateway to match",
        ]

    def test_other_backends_and_namespaces_are_not_ours(self) -> None:
        text = route(rule("english")).replace("kind: InferencePool", "kind: Service")
        text += rule("english").replace("{group", "{namespace: other, group")
        store = Store(Selection(("english",)), "default")
        assert store.replace(Source.DIRECTORY, read(text).objects).notices == ()
        assert store.standings[0].reason.startswith("it sends nothing to a pool that is served here")
        assert pool_of(store.routing) is None


EXAMPLES = Path(__file__).parents[2] / "deploy" / "routes"


@pytest.mark.parametrize(
    ("example", "led"),
    [
        ("models", {"chatbot": {"gemma"}, "recommender": {"deepseek"}, "other": {None}}),
        ("split", {"chatbot": {"gemma", "gemma-next"}, "recommender": {"deepseek"}}),
        ("mirror", {"chatbot": {"gemma"}}),
        ("adapters", {"english-bot": {"llm-base"}, "spanish-bot": {"llm-base"}, "llm-base": {"llm-base"}, "x": {None}}),
    ],
)
def test_the_examples_lead_where_they_say(example: str, led: dict[str, set[str | None]]) -> None:
    text = "---\n".join(path.read_text() for path in (EXAMPLES / example).glob("*.yaml"))
    manifest = read_manifest(text.encode(), example, "default")
    assert manifest.refusals == ()
    store = Store(Selection(picker="epp"), "default")
    assert store.replace(Source.DIRECTORY, manifest.objects).notices == ()
    for model, pools in led.items():
        assert {pool_of(store.routing, model, seed) for seed in range(100)} == pools


def test_every_example_is_one_of_these() -> None:
    assert {path.parent.name for path in EXAMPLES.glob("*/*.yaml")} == {"models", "split", "mirror", "adapters"}


class TestBaseModels:
    @pytest.mark.parametrize("label", ["inference.networking.k8s.io/bbr-managed", "inference.llm-d.ai/ipp-managed"])
    def test_several_may_tell_of_one_base(self, label: str) -> None:
        told = routing(
            adapters(" llama ", "[a, ' b ', '']", "one", label),
            adapters("llama", "- c", "two"),
            adapters("qwen", "- a", "z"),
        )
        assert [told.base(name) for name in ("a", "b", "c", "llama", "qwen", "d")] == [
            "llama",
            "llama",
            "llama",
            "llama",
            "qwen",
            "",
        ]

    def test_other_config_maps_are_no_business_of_ours(self) -> None:
        manifest = read(adapters("x", "[]").replace('"true"', '"false"'))
        assert (manifest.objects, manifest.refusals) == ((), ())
        assert manifest.others == ("f.yaml:2: ConfigMap adapters (v1)",)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (adapters("  ", "[]"), "data.baseModel: must not be empty"),
            (adapters("x", "{a: b}"), "data.adapters: must be a YAML list of names"),
            (adapters("x", "[a"), "data.adapters: must be a YAML list of names"),
            (adapters("x", "[1]"), "data.adapters: must be a YAML list of names"),
        ],
    )
    def test_what_is_wrong_is_named(self, text: str, said: str) -> None:
        (refusal,) = read(text).refusals
        assert str(refusal).endswith(said)


class TestOwners:
    def test_a_model_that_an_object_names_is_its_pools(self) -> None:
        owned = routing(
            """---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {name: m}
spec: {modelName: chat, poolRef: {name: spanish}}
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModelRewrite
metadata: {name: r}
spec: {poolRef: {name: canary}, rules: [{matches: [{model: {value: alias}}], targets: [{modelRewrite: x}]}]}
"""
        )
        assert [pool_of(owned, model) for model in ("chat", "alias", "x")] == ["spanish", "canary", None]

    def test_a_route_goes_before_it(self) -> None:
        assert Routing((), {}, {"m": "a"}).pool({}, "m", random.Random(1)) == "a"
        assert NO_ROUTING.pool({}, "m", random.Random(1)) is None


class TestHeaders:
    def test_of_a_model(self) -> None:
        assert model_headers("a", "") == ((MODEL_HEADER, "a"), (BASE_MODEL_HEADER, ""))
        assert model_headers("m" * 4096, "")[0] == (MODEL_HEADER, "m" * 4096)

    @pytest.mark.parametrize("model", ["", "a\nx-evil: 1", "a\r", "\0", "m" * 4097])
    def test_there_are_none_that_no_header_can_say(self, model: str) -> None:
        assert model_headers(model, "b") == ()


NAMES = st.sampled_from(["a", "b", "c"])
HEADERS = st.lists(
    st.tuples(st.sampled_from([MODEL_HEADER, BASE_MODEL_HEADER, "x-tenant"]), NAMES),
    max_size=2,
    unique_by=lambda one: one[0],
)
MATCHES = st.builds(
    Match,
    st.sampled_from(["/", "/a", "/a/b"]),
    st.booleans(),
    st.sampled_from(["", "GET"]),
    HEADERS.map(tuple),
)
RULES = st.builds(
    RouteRule,
    st.lists(MATCHES, min_size=1, max_size=3).map(tuple),
    st.builds(Share, st.sampled_from(["p", "q"])).map(lambda s: (s,)),
)


@given(
    st.lists(st.lists(RULES, max_size=3).map(tuple), max_size=3),
    NAMES,
    st.sampled_from(["/", "/a", "/a/b", "/a/b/c", "/ab"]),
    NAMES,
)
def test_the_best_match_is_the_one_that_a_plain_search_finds(
    routes: list[tuple[RouteRule, ...]], model: str, path: str, tenant: str
) -> None:
    store = Store(Selection(("p", "q")), "default")
    objects = [
        HttpRoute(key=read(route("", f"r{number}")).objects[0].key, created_s=float(number), rules=rules)
        for number, rules in enumerate(routes)
    ]
    base = BaseModel(key=read(adapters("b", "[]")).objects[0].key, model="b", adapters=("a",))
    store.replace(Source.DIRECTORY, [*objects, base])
    headers = {":path": path, ":method": "GET", "x-tenant": tenant}
    seen = {**headers, MODEL_HEADER: model, BASE_MODEL_HEADER: {"a": "b", "b": "b"}.get(model, "")}
    fitting = []
    for place, rules in enumerate(routes):
        for number, one in enumerate(rules):
            for at, match in enumerate(one.matches):
                below = match.path == "/" or path == match.path or path.startswith(match.path + "/")
                fits = all(seen.get(name) == value for name, value in match.headers)
                if fits and (path == match.path if match.exact else below):
                    rank = (not match.exact, -len(match.path), not match.method, -len(match.headers), place, number, at)
                    fitting.append((rank, one.shares[0].pool))
    assert store.routing.pool(headers, model, random.Random(1)) == (min(fitting)[1] if fitting else None)
