"""Several pools in one process, without sockets: which calls are whose, and what a pool costs that nobody asks for."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf import json_format

from epp.app import Picker
from epp.assembly import read_configuration
from epp.endpoint import Adapters, Endpoint, Report
from epp.ports import PROCESS
from epp.resources.document import read_manifest
from epp.resources.store import Source
from epp.settings import Settings, from_flags
from tests.unit.test_app import HEADER, Wire
from tests.unit.test_counted_work import counting
from tests.unit.test_resources_routing import adapters, route, rule

NO_SCRAPING = HEADER + "dataLayer: {injectDefaults: false}\n"
TWO = ("english", "spanish")
PICKED = "x-gateway-destination-endpoint"


def settings(*pools: str, **more: object) -> Settings:
    fields: dict[str, object] = {
        "pool_names": pools,
        "endpoints": tuple(f"{name}=10.0.0.{number}:8000" for number, name in enumerate(pools)),
        "secure_serving": False,
        "config_text": NO_SCRAPING,
    }
    return Settings(**{**fields, **more})  # type: ignore[arg-type]


async def serving(chosen: Settings, *manifests: str) -> Picker:
    """A picker that knows its endpoints and manifests, and serves no port."""
    whole = Picker(chosen, read_configuration(chosen))
    await whole._discovery.start()
    if manifests:
        whole._resources_changed(
            Source.DIRECTORY, read_manifest("".join(manifests).encode(), "f.yaml", "default").objects
        )
    return whole


class Call:
    """One ext_proc call, with its answer to the request."""

    def __init__(
        self,
        whole: Picker,
        model: str | None = "m",
        *,
        metadata: dict[bytes, bytes] | None = None,
        route: dict[str, dict[str, str]] | None = None,
        body: bytes | None = None,
    ) -> None:
        self.wire = Wire()
        self.wire.metadata = metadata or {}
        self.session = whole.ports.routes[PROCESS](self.wire)
        message = pb.ProcessingRequest()
        for name, value in ((":path", "/v1/chat/completions"), (":method", "POST")):
            message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
        for namespace, told in (route or {}).items():
            json_format.ParseDict(told, message.metadata_context.filter_metadata[namespace])
        message.protocol_config.request_body_mode = 2
        self.session.received(message.SerializeToString())
        message = pb.ProcessingRequest()
        if body is None:
            body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}]}).encode()
        message.request_body.body = body
        message.request_body.end_of_stream = True
        self.session.received(message.SerializeToString())

    @property
    def headers(self) -> dict[str, str]:
        mutation = self.wire.sent[-1].request_body.response.header_mutation
        return {one.header.key: one.header.raw_value.decode() for one in mutation.set_headers}

    @property
    def picked(self) -> str:
        return self.headers[PICKED]

    @property
    def status(self) -> int:
        return int(self.wire.sent[-1].immediate_response.status.code)


def found(whole: Picker) -> dict[tuple[str, str], int]:
    return dict(whole.metrics.pools_found)


class TestWhose:
    async def test_what_the_calls_metadata_names(self) -> None:
        whole = await serving(settings(*TWO))
        for name in ("spanish", "default/spanish"):
            assert Call(whole, metadata={b"x-gateway-inference-pool": name.encode()}).picked == "10.0.0.1:8000"
        assert found(whole) == {("spanish", "call"): 2}

    @pytest.mark.parametrize("name", ["french", "other/spanish", "", "\xff"])
    async def test_a_name_that_is_none_falls_back_to_the_first(self, name: str) -> None:
        whole = await serving(settings(*TWO))
        assert Call(whole, metadata={b"x-gateway-inference-pool": name.encode("latin-1")}).picked == "10.0.0.0:8000"
        assert Call(whole, route={"any": {"x-gateway-inference-pool": name}}).picked == "10.0.0.0:8000"
        assert found(whole) == {("english", "default"): 2}

    @pytest.mark.parametrize("namespace", ["envoy.lb", "com.google.lb_route_extension.ext.chain"])
    async def test_what_the_routes_metadata_names_in_any_namespace(self, namespace: str) -> None:
        whole = await serving(settings(*TWO))
        call = Call(whole, route={namespace: {"x-gateway-inference-pool": "spanish"}, "z": {"a": "b"}})
        assert call.picked == "10.0.0.1:8000"
        assert found(whole) == {("spanish", "metadata"): 1}

    @pytest.mark.parametrize(
        ("authority", "picked"),
        [
            (b"es-epp:9002", 1),
            (b"es-epp.default:9002", 1),
            (b"es-epp.default.svc.cluster.local:9002", 1),
            (b"outbound|9002||es-epp.default.svc.cluster.local", 1),
            (b"es-epp.other.svc:9002", 0),
            (b"both-epp", 0),
            (b"127.0.0.1:9002", 0),
            (b"", 0),
        ],
    )
    async def test_the_service_that_was_called(self, authority: bytes, picked: int) -> None:
        whole = await serving(
            settings("english", "spanish", "french"),
            pool("spanish", "es-epp"),
            pool("english", "both-epp"),
            pool("french", "both-epp"),
        )
        assert Call(whole, metadata={b":authority": authority}).picked == f"10.0.0.{picked}:8000"

    async def test_a_route_goes_before_an_adapter_and_that_before_the_first(self) -> None:
        whole = await serving(settings(*TWO), route(rule("english", model="bot")))
        spanish = whole.pools.named("spanish")
        assert spanish is not None
        for loaded in ("bot", "review"):
            running = Adapters(frozenset({"bot", loaded}), frozenset(), 4)
            spanish.endpoints.report(spanish.endpoints.slots.item(0), Report(adapters=running), 1.0)
        assert [Call(whole, model).picked[7] for model in ("bot", "review", "other")] == ["0", "1", "0"]
        assert found(whole) == {("english", "route"): 1, ("spanish", "adapter"): 1, ("english", "default"): 1}

    async def test_a_body_that_cannot_be_read_is_refused_by_the_first(self) -> None:
        whole = await serving(settings(*TWO))
        assert Call(whole, body=b"{").status == 400
        assert sum(whole.metrics.refusals.values()) == 1

    async def test_it_is_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = await serving(settings(*TWO), route(rule("spanish", model="m")))

        def twice(*args: object, **named: object) -> None:
            raise AssertionError("read again")

        monkeypatch.setattr("epp.dispatcher.parse", twice)
        assert Call(whole, "m").picked == "10.0.0.1:8000"
        assert whole.metrics.degradations == {}

    async def test_the_pool_that_picked_hears_of_the_end(self) -> None:
        whole = await serving(settings(*TWO), route(rule("spanish", model="m")))
        call = Call(whole, "m")
        in_flight = {one.name: one.endpoints.in_flight.sum() for one in whole.pools}
        assert in_flight == {"english": 0, "spanish": 1}
        message = pb.ProcessingRequest()
        message.response_headers.headers.headers.add(key=":status", raw_value=b"200")
        call.session.received(message.SerializeToString())
        message = pb.ProcessingRequest()
        message.response_body.body = b"{}"
        message.response_body.end_of_stream = True
        call.session.received(message.SerializeToString())
        assert not any(one.endpoints.in_flight.any() for one in whole.pools)
        assert whole.metrics.statuses[200] == 1


class TestAlone:
    async def test_there_is_nothing_to_find(self) -> None:
        whole = await serving(settings("english"), route(rule("other", model="m")))
        assert Call(whole, metadata={b"x-gateway-inference-pool": b"other"}).picked == "10.0.0.0:8000"
        assert found(whole) == {}

    async def test_its_dispatcher_answers_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("epp.front.Front.route", None)
        assert Call(await serving(settings("english"))).picked == "10.0.0.0:8000"


class TestHeaders:
    async def test_routes_can_go_by(self) -> None:
        whole = await serving(
            settings(*TWO, body_based_routing=True), route(rule("spanish", base="qwen")), adapters("qwen", "[poet]")
        )
        headers = Call(whole, "poet").headers
        assert headers["x-gateway-inference-pool"] == "spanish"
        assert headers["x-gateway-model-name"] == "poet"
        assert headers["x-gateway-base-model-name"] == "qwen"
        assert headers[PICKED] == "10.0.0.1:8000"
        assert Call(whole, "other").headers["x-gateway-base-model-name"] == ""
        assert set(Call(whole, "a\nb").headers) == {PICKED, "x-gateway-inference-pool", "x-request-id"}

    async def test_are_set_only_where_asked_for(self) -> None:
        assert set(Call(await serving(settings(*TWO))).headers) == {PICKED, "x-request-id"}


def pool(name: str, picker: str, **labels: str) -> str:
    selector = ", ".join(f"{key}: {value}" for key, value in (labels or {"app": name}).items())
    return f"""---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{{selector}}}}}
  targetPorts: [{{number: 8000}}]
  endpointPickerRef: {{name: {picker}, port: {{number: 9002}}}}
"""


class TestComingAndGoing:
    async def serving(self, tmp_path: Path, *manifests: str, **more: object) -> Picker:
        endpoints = tmp_path / "endpoints.yaml"
        rows = [
            f"{{name: {name}, address: 10.0.0.{n}, port: 8000, labels: {{app: {name}}}}}"
            for n, name in enumerate("abc")
        ]
        endpoints.write_text(f"endpoints: [{', '.join(rows)}]")
        config = HEADER + "dataLayer: {injectDefaults: false, discovery: {pluginRef: file}}\n"
        config += (
            f"plugins: [{{type: file-discovery, name: file, parameters: {{path: {endpoints}, watchFile: false}}}}]\n"
        )
        chosen = Settings(
            picker_service="epp",
            resources=tmp_path,
            secure_serving=False,
            config_text=config,
            **more,  # type: ignore[arg-type]
        )
        return await serving(chosen, *manifests)

    async def test_pools_that_name_our_service_are_served_with_what_they_select(self, tmp_path: Path) -> None:
        whole = await self.serving(tmp_path, pool("a", "epp"), pool("b", "other"), pool("c", "epp"))
        assert {one.name: [e.name for e in one.endpoints.members] for one in whole.pools} == {"a": ["a"], "c": ["c"]}
        assert [Call(whole, metadata={b"x-gateway-inference-pool": name}).picked[7] for name in (b"a", b"b", b"c")] == [
            "0",
            "0",
            "2",
        ]

    async def test_without_any_a_request_is_refused(self, tmp_path: Path) -> None:
        whole = await self.serving(tmp_path)
        assert Call(whole).status == 503
        assert sum(whole.metrics.refusals.values()) == 1

    async def test_one_that_stays_keeps_all_it_knows(self, tmp_path: Path) -> None:
        whole = await self.serving(tmp_path, pool("a", "epp"))
        before = whole.pools.named("a")
        Call(whole)
        self.now(whole, pool("a", "epp"), pool("c", "epp"))
        assert whole.pools.named("a") is before
        assert before is not None
        assert before.endpoints.in_flight.sum() == 1

    async def test_a_call_for_one_that_was_not_there_finds_it_when_it_is(self, tmp_path: Path) -> None:
        whole = await self.serving(tmp_path, pool("a", "epp"))
        named = {b"x-gateway-inference-pool": b"c"}
        assert Call(whole, metadata=named).picked == "10.0.0.0:8000"
        self.now(whole, pool("a", "epp"), pool("c", "epp"))
        assert Call(whole, metadata=named).picked == "10.0.0.2:8000"

    async def test_a_pool_selects_anew(self, tmp_path: Path) -> None:
        whole = await self.serving(tmp_path, pool("a", "epp"))
        self.now(whole, pool("a", "epp", app="b"))
        assert Call(whole).picked == "10.0.0.1:8000"

    async def test_one_that_goes_ends_what_it_had_under_way(self, tmp_path: Path) -> None:
        whole = await self.serving(tmp_path, pool("a", "epp"), pool("c", "epp"))
        call = Call(whole)
        gone = whole.pools.named("a")
        assert gone is not None
        self.now(whole, pool("c", "epp"))
        assert whole.pools.named("a") is None
        assert Call(whole).picked == "10.0.0.2:8000"
        assert gone.endpoints.in_flight.sum() == 1
        call.session.closed(False)
        assert gone.endpoints.in_flight.sum() == 0
        await whole.pools.close()

    async def test_what_was_counted_of_its_members_goes_with_it(self, tmp_path: Path) -> None:
        whole = await self.serving(tmp_path, pool("a", "epp"), pool("c", "epp"))
        for name in (b"a", b"c"):
            Call(whole, metadata={b"x-gateway-inference-pool": name})
        assert {endpoint for _, endpoint, *_ in whole.metrics.picks} == {"a", "c"}
        self.now(whole, pool("c", "epp"))
        await asyncio.sleep(0)
        assert {endpoint for _, endpoint, *_ in whole.metrics.picks} == {"c"}
        await whole.pools.close()

    async def test_one_that_comes_back_is_another(self, tmp_path: Path) -> None:
        whole = await self.serving(tmp_path, pool("a", "epp"))
        Call(whole)
        self.now(whole)
        self.now(whole, pool("a", "epp"))
        assert whole.pools.named("a").endpoints.in_flight.sum() == 0  # type: ignore[union-attr]
        assert Call(whole).picked == "10.0.0.0:8000"

    def now(self, whole: Picker, *manifests: str) -> None:
        whole._resources_changed(
            Source.DIRECTORY, read_manifest("".join(manifests).encode(), "f.yaml", "default").objects
        )


class TestIdle:
    POOLS = 100

    @pytest.fixture
    def traced(self) -> Iterator[None]:
        tracemalloc.start()
        yield
        tracemalloc.stop()

    @pytest.mark.usefixtures("traced")
    @pytest.mark.parametrize("gates", ["", "featureGates: [flowControl]\n"])
    async def test_a_pool_takes_no_memory_to_speak_of(self, gates: str) -> None:
        """25 KB where 200 MB for a hundred would be 1,200 (the process itself has 75)."""

        async def held(count: int) -> int:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            whole = await serving(
                settings(*(f"pool-{number}" for number in range(count)), config_text=NO_SCRAPING + gates)
            )
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            await whole.pools.close()
            return after - before

        await held(2)
        one, all_of_them = await held(1), await held(self.POOLS)
        assert (all_of_them - one) / (self.POOLS - 1) <= 40_000

    async def test_nothing_runs_for_it(self) -> None:
        loop = asyncio.get_running_loop()
        before = len(asyncio.all_tasks())
        gates = NO_SCRAPING + "featureGates: [flowControl]\n"
        whole = await serving(settings(*(f"pool-{number}" for number in range(self.POOLS)), config_text=gates))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == before
        assert all(one._ticker._soon is one._ticker._later is None for one in whole.pools)
        assert loop.is_running()

    async def test_a_request_costs_the_same_calls_beside_it(self) -> None:
        few, many = [await serving(settings(*(f"pool-{n}" for n in range(count)))) for count in (2, self.POOLS)]
        for whole in (few, many):
            calls(whole)  # what is remembered is, after one
        assert calls(many) == calls(few)


def calls(whole: Picker) -> dict[str, int]:
    """Python calls that a request for the second pool takes."""
    with counting() as counted:
        Call(whole, metadata={b"x-gateway-inference-pool": b"pool-1"})
    return dict(counted)


class TestMetrics:
    async def test_every_pool_by_its_name_and_each_family_once(self) -> None:
        whole = await serving(settings(*TWO, config_text=NO_SCRAPING + "featureGates: [flowControl]\n"))
        Call(whole, metadata={b"x-gateway-inference-pool": b"spanish"})
        page = whole.exposition.render("")[1].decode()
        assert 'inference_pool_ready_pods{name="english"} 0' in page
        assert 'epp_pool_endpoints{name="spanish"} 1' in page
        assert 'epp_pool_requests_total{name="spanish",by="call"} 1' in page
        assert 'llm_d_epp_flow_control_pool_saturation{inference_pool="english",stage="effective"}' in page
        assert 'outcome="Dispatched",priority="0",inference_pool="spanish"} 1' in page
        heads = [line for line in page.splitlines() if line.startswith("# TYPE")]
        assert len(heads) == len(set(heads))
        series = [line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")]
        assert len(series) == len(set(series))

    async def test_an_endpoint_of_two_pools_is_one_series(self, tmp_path: Path) -> None:
        whole = await TestComingAndGoing().serving(tmp_path, pool("x", "epp", app="a"), pool("y", "epp", app="a"))
        for name in (b"x", b"y"):
            Call(whole, metadata={b"x-gateway-inference-pool": name})
        page = whole.exposition.render("")[1].decode()
        lines = [line for line in page.splitlines() if line.startswith("llm_d_epp_inflight_requests{")]
        assert len(lines) == 1
        assert lines[0].endswith(" 2.0") or lines[0].endswith(" 2")


class TestSettings:
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ({"pool_names": ("a", "a")}, "--pool-name a is given twice"),
            (
                {"pool_names": ("a", "b"), "endpoints": ("1.1.1.1:1",)},
                "does not say of which pool it is: write NAME=1.1.1.1:1",
            ),
            ({"pool_names": ("a", "b"), "endpoints": ("c=1.1.1.1:1",)}, "there is no pool c; there are a, b"),
            ({"pool_names": ("a",), "picker_service": "s", "resources": Path("x")}, "exclude each other"),
            ({"picker_service": "s", "endpoints": ("a=1.1.1.1:1",)}, "needs --resources"),
            ({"pool_names": ("a", "b"), "envoy_eds_file": Path("x.yaml")}, "--envoy-eds-file x.yaml needs {pool}"),
            ({"pool_names": ("a", "b"), "decision_log": Path("x.log")}, "--decision-log x.log needs {pool}"),
        ],
    )
    def test_what_does_not_fit_is_told(self, flags: dict[str, object], said: str) -> None:
        with pytest.raises(ValueError, match=said.replace("{", r"\{").replace(".", r"\.")):
            from_flags(flags, {})

    def test_one_pool_needs_no_names(self) -> None:
        assert from_flags({"endpoints": ("1.1.1.1:1",), "envoy_eds_file": Path("x")}, {}).only_pool == "epp"
        assert from_flags({"endpoints": ("a=1.1.1.1:1",), "pool_names": ("a",)}, {}).only_pool == "a"

    async def test_files_are_by_pool(self, tmp_path: Path) -> None:
        paths = {"envoy_eds_file": tmp_path / "{pool}.yaml", "decision_log": tmp_path / "{pool}.log"}
        whole = await serving(settings(*TWO, **paths))
        assert sorted(os.listdir(tmp_path)) == ["english.yaml", "spanish.yaml"]
        text = (tmp_path / "spanish.yaml").read_text()
        assert msgspec.json.decode(text)["resources"][0]["cluster_name"] == "spanish"
        assert "10.0.0.1" in text
        for one in whole.pools:
            one.start()
        assert (tmp_path / "english.log").exists()
        await whole.pools.close()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_waits_for_a_first_endpoint_goes_when_envoy_knows_it_whatever_comes_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = HEADER + "featureGates: [flowControl]\ndataLayer: {injectDefaults: false}\n"
    whole = await serving(settings("only", config_text=waiting, envoy_eds_file=tmp_path / "eds.yaml"))
    only = whole.pools.first
    assert only is not None
    first, second = [Endpoint(name=f"pod-{n}", address=f"10.0.0.{n}", port=8000) for n in (1, 2)]
    monkeypatch.setattr("epp.pool.ENVOY_FOLLOWS_S", 3600.0)
    only.replace([])
    call = Call(whole)
    for members in ([first], [first, second], [], [second]):
        only.replace(members)
        await turns()
        assert len(call.wire.sent) == 2, "it goes to a server unknown to Envoy"
    monkeypatch.setattr("epp.pool.ENVOY_FOLLOWS_S", 0.0)
    only.replace([])
    only.replace([first])
    only.replace([first, second])
    await turns()
    assert call.picked.startswith("10.0.0.")
    await only.close()
