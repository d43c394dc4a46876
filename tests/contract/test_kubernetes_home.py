"""Who may read metrics and who leads, asked of an API server over HTTP that answers, refuses, or is gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from epp.assembly import StartError, credentials_of
from epp.home import Home, base_model_source
from epp.kubernetes.access import Access, AccessError, InCluster, Kubeconfig
from epp.kubernetes.api import Api
from epp.kubernetes.election import Election
from epp.kubernetes.lease import Leadership
from epp.kubernetes.review import ADMITTED_S, REFUSED_S, UNANSWERED_S, Reviews
from epp.settings import Settings
from tests.apiserver import FakeApi
from tests.certificates import Authority
from tests.contract.test_kubernetes import until
from tests.waiting import PATIENCE_S

TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"


@pytest.fixture
async def server() -> AsyncIterator[FakeApi]:
    fake = FakeApi()
    await fake.start()
    yield fake
    await fake.stop()


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Judged:
    """Reviews against a server that knows the token `good`, whose user may get what is in `paths`."""

    def __init__(self, server: FakeApi, kubeconfig: Path) -> None:
        self.clock = Clock()
        self.server = server
        self.paths = {"/metrics"}
        self.users = {"good": "prometheus"}
        self.specs: list[dict[str, Any]] = []
        server.post = self.answer
        self.reviews = Reviews(Api(Kubeconfig(kubeconfig), self.clock))

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        spec = body["spec"]
        self.specs.append(spec)
        if path == TOKENS:
            user = self.users.get(spec["token"])
            known = {"username": user, "uid": "7", "groups": ["system:authenticated"], "extra": {"pod": ["p"]}}
            return {"status": {"authenticated": True, "user": known} if user else {"authenticated": False}}
        assert path == ACCESS
        return {"status": {"allowed": spec["nonResourceAttributes"]["path"] in self.paths}}

    async def __call__(self, token: str, path: str = "/metrics") -> HTTPStatus:
        return await self.reviews.judge(f"Bearer {token}", path)


@pytest.fixture
async def judged(server: FakeApi, tmp_path: Path) -> AsyncIterator[Judged]:
    one = Judged(server, server.kubeconfig(tmp_path / "kubeconfig"))
    yield one
    one.reviews.close()


async def test_a_token_is_somebodys_who_may_or_may_not(judged: Judged) -> None:
    assert await judged("good") is HTTPStatus.OK
    assert await judged("good", "/debug/endpoints") is HTTPStatus.FORBIDDEN
    assert await judged("bad") is HTTPStatus.UNAUTHORIZED
    assert judged.specs[1] == {
        "user": "prometheus",
        "uid": "7",
        "groups": ["system:authenticated"],
        "extra": {"pod": ["p"]},
        "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
    }


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer  ", "Basic Z29vZA==", "good"])
async def test_without_a_bearer_token_nobody_is_asked(judged: Judged, header: str) -> None:
    assert await judged.reviews.judge(header, "/metrics") is HTTPStatus.UNAUTHORIZED
    assert judged.server.asked == []


async def test_answers_are_remembered_for_a_while(judged: Judged) -> None:
    for _ in range(3):
        assert await judged("good") is HTTPStatus.OK
        assert await judged("bad") is HTTPStatus.UNAUTHORIZED
    assert len(judged.specs) == 3
    judged.users = {"bad": "somebody"}
    judged.clock.now_s += REFUSED_S
    assert await judged("bad") is HTTPStatus.OK
    assert await judged("good") is HTTPStatus.OK
    judged.clock.now_s += ADMITTED_S
    assert await judged("good") is HTTPStatus.UNAUTHORIZED


async def test_while_nobody_answers_who_was_let_in_is_and_nobody_else(judged: Judged, server: FakeApi) -> None:
    assert await judged("good") is HTTPStatus.OK
    await server.stop()
    judged.clock.now_s += ADMITTED_S
    assert await judged("good") is HTTPStatus.OK
    assert await judged("new") is HTTPStatus.SERVICE_UNAVAILABLE
    judged.clock.now_s += UNANSWERED_S
    assert await judged("good") is HTTPStatus.SERVICE_UNAVAILABLE


async def test_while_the_server_is_known_to_be_silent_it_is_not_waited_for(judged: Judged, server: FakeApi) -> None:
    assert await judged("good") is HTTPStatus.OK
    await server.stop()
    judged.clock.now_s += ADMITTED_S
    assert await judged("good") is HTTPStatus.OK
    await server.start()
    asked = len(server.asked)
    assert await judged("good") is HTTPStatus.OK
    assert len(server.asked) == asked
    # Whoever watches finds out that it is back.
    judged.reviews._api.reach.answered()
    assert await judged("good") is HTTPStatus.OK
    assert len(server.asked) > asked


async def test_who_is_known_does_not_wait_for_a_stranger(judged: Judged) -> None:
    assert await judged("good") is HTTPStatus.OK
    async with judged.reviews._one_at_a_time:
        async with asyncio.timeout(PATIENCE_S):
            assert await judged("good") is HTTPStatus.OK


async def test_a_server_that_does_not_let_us_ask_lets_nobody_in(judged: Judged, server: FakeApi) -> None:
    server.refuse = 403
    assert await judged("good") is HTTPStatus.SERVICE_UNAVAILABLE
    server.refuse = 0
    assert await judged("good") is HTTPStatus.OK


async def test_a_stranger_who_tries_many_tokens_makes_nothing_grow(judged: Judged) -> None:
    for number in range(300):
        assert await judged(f"guess-{number}") is HTTPStatus.UNAUTHORIZED
    assert len(judged.reviews._known) <= 256


# --- leading -----------------------------------------------------------------------------------------------------------


class Leases:
    """What the API server does with one Lease: versions, conflicts."""

    def __init__(self, server: FakeApi) -> None:
        self.server = server
        server.install(LEASES)
        server.post = self.write
        self.version = 0

    def write(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        name = body["metadata"]["name"]
        now = self.server.documents.get(f"{LEASES}/{name}")
        if now is not None and body["metadata"].get("resourceVersion") != now["metadata"]["resourceVersion"]:
            return {"code": 409, "message": "the Lease has been modified"}
        self.version += 1
        lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        self.server.documents[f"{LEASES}/{name}"] = lease
        return lease

    def holder(self, name: str) -> str:
        return str(self.server.documents[f"{LEASES}/{name}"]["spec"].get("holderIdentity", ""))


class Led:
    def __init__(self, server: FakeApi, kubeconfig: Path, identity: str) -> None:
        self.changes: list[bool] = []
        self.faults: list[Exception] = []
        self.leadership = Leadership(
            Api(Kubeconfig(kubeconfig), asyncio.get_running_loop().time),
            "default",
            "epp-default-llama.llm-d.ai",
            identity,
            on_change=lambda: self.changes.append(self.leadership.leading),
            faults=lambda _, error: self.faults.append(error),
            rng=random.Random(identity),
        )


async def test_one_of_two_leads_and_the_other_takes_over_at_once_when_it_is_told_to_end(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epp.kubernetes.lease.RETRY_S", 0.05)
    leases, kubeconfig = Leases(server), server.kubeconfig(tmp_path / "kubeconfig")
    one, two = Led(server, kubeconfig, "one"), Led(server, kubeconfig, "two")
    one.leadership.start()
    await until(lambda: one.leadership.leading)
    two.leadership.start()
    await until(lambda: leases.version > 4)
    assert not two.leadership.leading
    await server.stop()
    await asyncio.sleep(0.3)
    assert one.leadership.leading
    await server.start()
    seen = leases.version
    await until(lambda: leases.version > seen)
    await one.leadership.release()
    assert not one.leadership.leading
    await until(lambda: two.leadership.leading)
    assert leases.holder("epp-default-llama.llm-d.ai") == "two"
    await two.leadership.release()
    await two.leadership.release()
    assert leases.holder("epp-default-llama.llm-d.ai") == ""
    assert (one.changes, two.changes) == ([True], [True])
    assert one.faults == two.faults == []


async def test_told_to_end_in_the_middle_of_taking_the_lease_it_gives_it_back(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(server)
    one = Led(server, server.kubeconfig(tmp_path / "kubeconfig"), "one")
    monkeypatch.setattr(Election, "wrote", lambda *_: None)
    one.leadership.start()
    await until(lambda: leases.version == 1)
    await one.leadership.release()
    assert leases.holder("epp-default-llama.llm-d.ai") == ""


async def test_a_release_does_not_wait_for_a_server_that_is_silent(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("epp.kubernetes.lease.RETRY_S", 0.05)
    monkeypatch.setattr("epp.kubernetes.lease.RELEASE_TIMEOUT_S", 0.1)
    # Whoever waits for the connection to give up waits for ever.
    monkeypatch.setattr("epp.kubernetes.api.ANSWER_TIMEOUT_S", 3600.0)
    leases = Leases(server)
    one = Led(server, server.kubeconfig(tmp_path / "kubeconfig"), "one")
    one.leadership.start()
    await until(lambda: one.leadership.leading)
    server.silent = True
    async with asyncio.timeout(PATIENCE_S):
        await one.leadership.release()
    assert leases.holder("epp-default-llama.llm-d.ai") == "one"
    assert "the Lease epp-default-llama.llm-d.ai is left to run out: no answer in time" in caplog.messages


# --- who we are --------------------------------------------------------------------------------------------------------


async def test_in_a_cluster_the_service_account_is_read_each_time(tmp_path: Path) -> None:
    Authority(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("first\n")
    credentials = InCluster("fd00::1", 6443, tmp_path)
    access = await credentials.read()
    assert (access.address, access.authorization) == ("[fd00::1]:6443", "Bearer first")
    assert access.tls is not None
    (tmp_path / "token").write_text("second")
    assert (await credentials.read()).authorization == "Bearer second"
    (tmp_path / "token").unlink()
    with pytest.raises(AccessError, match="token cannot be read"):
        await credentials.read()


def kubeconfig(path: Path, cluster: str = "server: http://127.0.0.1:1", user: str = "{}", context: str = "it") -> Path:
    path.write_text(f"""
current-context: {context}
clusters: [{{name: it, cluster: {{{cluster}}}}}]
contexts: [{{name: it, context: {{cluster: it, user: it}}}}]
users: [{{name: it, user: {user}}}]
""")
    return path


async def test_base_models_are_done_without_where_a_pod_is_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epp.assembly.ACCOUNT", tmp_path / "none")

    def source(settings: Settings) -> object:
        return base_model_source(settings, lambda _: None, lambda _, __: None)

    assert source(Settings(home=tmp_path)) is None
    assert source(Settings(home=tmp_path, service_host="10.96.0.1")) is None
    assert source(Settings(home=tmp_path, kubeconfig=tmp_path / "named")) is not None


async def read(path: Path, **parts: str) -> Access:
    return await Kubeconfig(kubeconfig(path / "kubeconfig", **parts)).read()


async def test_what_a_kubeconfig_says(tmp_path: Path) -> None:
    plain = await read(tmp_path, cluster="server: 'http://api.example:8080/base/'", user="{token: t}")
    assert (plain.host, plain.port, plain.base, plain.tls) == ("api.example", 8080, "/base", None)
    assert plain.authorization == "Bearer t"
    basic = await read(tmp_path, user="{username: me, password: it}")
    assert basic.authorization == "Basic bWU6aXQ="
    secure = await read(tmp_path, cluster="server: 'https://10.0.0.1', tls-server-name: kubernetes")
    assert (secure.port, secure.server_name, secure.authorization) == (443, "kubernetes", "")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"context": "other"}, "there is no context 'other'; there is it"),
        ({"cluster": "server: 'ftp://x'"}, "no URL of HTTP"),
        ({"cluster": "server: 'https://x:port'"}, "no URL of HTTP"),
        ({"cluster": "server: 'https://[::1'"}, "no URL of HTTP"),
        ({"cluster": "server: 'https://x', certificate-authority: gone.pem"}, "cannot be used"),
        ({"cluster": "server: 'https://x', certificate-authority-data: '&&&'"}, "not PEM"),
        ({"cluster": "server: 'http://x', proxy-url: 'http://y'"}, "proxy-url is not supported"),
        ({"cluster": "sever: x"}, "is no kubeconfig"),
        ({"user": "{tokenFile: gone}"}, "gone cannot be read"),
        ({"user": "{exec: {command: no-such-command, installHint: install it}}"}, "cannot be run.*install it"),
        ({"user": "{exec: {command: sh, args: ['-c', 'echo why >&2; exit 3']}}"}, "ended with 3: why"),
        ({"user": "{exec: {command: echo, args: [nonsense]}}"}, "gave no ExecCredential"),
    ],
)
async def test_what_is_wrong_with_a_kubeconfig_is_told(tmp_path: Path, parts: dict[str, str], message: str) -> None:
    with pytest.raises(AccessError, match=message):
        await read(tmp_path, **parts)


async def test_a_command_gives_a_token_that_is_kept_until_it_ends(tmp_path: Path) -> None:
    count = tmp_path / "count"
    script = tmp_path / "credential"
    script.write_text(f"""#!/bin/sh
echo x >> {count}
echo '{{"kind": "ExecCredential", "status": {{"token": "'$WHO'", "expirationTimestamp": "'$END'"}}}}'
""")
    script.chmod(0o755)
    for end, asked in (("2099-01-01T00:00:00Z", 1), ("2001-01-01T00:00:00Z", 3)):
        user = f"{{exec: {{command: {script}, env: [{{name: WHO, value: me}}, {{name: END, value: '{end}'}}]}}}}"
        credentials = Kubeconfig(kubeconfig(tmp_path / "kubeconfig", user=user))
        for _ in range(asked if asked > 1 else 4):
            assert (await credentials.read()).authorization == "Bearer me"
        assert len(count.read_text().split()) == asked
        count.unlink()


async def test_a_kubeconfig_that_says_nothing_keeps_the_process_from_starting(tmp_path: Path) -> None:
    broken = tmp_path / "kubeconfig"
    broken.write_text("a: b")
    settings = Settings(kubeconfig=broken, pool_names=("llama",))
    home = Home(settings, lambda _: None, lambda _, __: None, on_change=lambda: None, faults=lambda _, __: None)
    with pytest.raises(StartError, match="is no kubeconfig"):
        await home.start()
    await home.close()


def test_the_way_to_kubernetes_is_looked_for_where_others_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = tmp_path / "account"
    account.mkdir()
    monkeypatch.setattr("epp.assembly.ACCOUNT", account)
    own = tmp_path / ".kube" / "config"
    own.parent.mkdir()
    inside = "10.96.0.1"
    with pytest.raises(StartError, match="neither a service account of a pod nor a kubeconfig"):
        credentials_of(Settings(home=tmp_path))
    own.touch()
    assert str(credentials_of(Settings(home=tmp_path, service_host=inside))) == f"the kubeconfig {own}"
    (account / "token").touch()
    assert str(credentials_of(Settings(home=tmp_path, service_host=inside))).startswith("the service account")
    assert str(credentials_of(Settings(home=tmp_path, kubeconfig=Path("x"), service_host=inside))) == "the kubeconfig x"
