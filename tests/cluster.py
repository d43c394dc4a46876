"""A real Kubernetes API server over etcd, on loopback, with nothing behind it: no controller, no kubelet. Tests write status themselves."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.processes import Process, Stand, free_port
from tests.certificates import Authority, store

ADMIN_TOKEN = "admin-of-a-test"
READY_TIMEOUT_S = 120.0
"""It takes 3 s on an idle machine."""

Object = dict[str, Any]


class Refusal(Exception):
    """What the API server answered instead of a 2xx; the message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Cluster:
    """etcd and kube-apiserver, from `with` on. RBAC is on; the admin's token may do everything.

    `authority` signed the server's certificate and may sign client certificates, whose common name is the user.
    """

    def __init__(self, directory: Path, etcd: Path, server: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.authority = Authority(directory / "authority.pem")
        self._programs = (etcd, server)
        self._etcd_port = free_port()
        self._stand = Stand(directory)
        self._server: Process | None = None
        self._plurals: dict[tuple[str, str], str] = {}
        self._connection: http.client.HTTPSConnection | None = None

    def __enter__(self) -> Self:
        try:
            self._start_etcd()
            self._write_credentials()
            self.start_server()
        except BaseException:
            self._stand.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disconnect()
        self._stand.close()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    # --- processes ---------------------------------------------------------------------------------------------------

    def _start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{free_port()}"
        self._stand.start(
            "etcd",
            [
                str(self._programs[0]),
                f"--data-dir={self.directory / 'etcd'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                # Nothing here outlives a crash of the machine.
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
        )

    def _write_credentials(self) -> None:
        store(self.directory / "serving", self.authority.issue(["localhost", "127.0.0.1"]))
        (self.directory / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n')
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (self.directory / "accounts.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def start_server(self) -> None:
        """Start the API server, on the same port and with the same data each time. Returns when it is ready."""
        at = self.directory
        self._server = self._stand.start(
            "kube-apiserver",
            [
                str(self._programs[1]),
                f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                f"--secure-port={self.port}",
                f"--cert-dir={at / 'generated'}",
                f"--tls-cert-file={at / 'serving' / 'tls.crt'}",
                f"--tls-private-key-file={at / 'serving' / 'tls.key'}",
                f"--client-ca-file={self.authority.path}",
                f"--token-auth-file={at / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={at / 'accounts.pem'}",
                f"--service-account-signing-key-file={at / 'accounts.pem'}",
                "--service-cluster-ip-range=10.96.0.0/16",
                # It waits for service accounts that a controller would make.
                "--disable-admission-plugins=ServiceAccount",
                "--shutdown-delay-duration=0s",
            ],
        )
        self._server.wait_until(self._ready, READY_TIMEOUT_S)

    def stop_server(self) -> None:
        """End the API server as an upgrade does; etcd stays."""
        self._disconnect()
        if self._server is not None:
            # It waits for watches to end, which they do not.
            self._server.stop(3.0)

    def kill_server(self) -> None:
        """End the API server at once, in the middle of whatever it does."""
        self._disconnect()
        if self._server is not None:
            self._server.kill()

    def _ready(self) -> bool:
        try:
            self.request("GET", "/readyz", raw=True)
        except (OSError, Refusal, http.client.HTTPException):
            self._disconnect()
            return False
        return True

    # --- talking to it -----------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        token: str = ADMIN_TOKEN,
        raw: bool = False,
    ) -> Any:
        """What the server answers, from JSON unless `raw`. Raises Refusal for any status but a 2xx."""
        headers = {"authorization": f"Bearer {token}", "content-type": content_type}
        payload = None if body is None else json.dumps(body)
        connection = self._connected()
        try:
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException):
            self._disconnect()
            raise
        if response.status >= 300:
            raise Refusal(response.status, _message(data))
        return data.decode() if raw else json.loads(data)

    def apply(self, *objects: Object, dry_run: bool = False) -> list[Object]:
        """Server-side apply, strict about fields. Returns what came of it. Objects without a namespace that need one are in `default`."""
        query = "fieldManager=test&force=true&fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        return [
            self.request("PATCH", f"{self.path(one)}?{query}", one, content_type="application/apply-patch+yaml")
            for one in objects
        ]

    def delete(self, one: Object, *, grace_s: int | None = None) -> None:
        """One that is not there is as good as deleted. A pod on a node only begins to terminate, unless `grace_s` is 0."""
        query = "" if grace_s is None else f"?gracePeriodSeconds={grace_s}"
        try:
            self.request("DELETE", self.path(one) + query)
        except Refusal as refusal:
            if refusal.status != 404:
                raise

    def path(self, one: Object) -> str:
        """Where the object is."""
        version, kind, metadata = one["apiVersion"], one["kind"], one["metadata"]
        at = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if (version, kind) not in self._plurals:
            for resource in self.request("GET", at)["resources"]:
                if "/" not in resource["name"]:
                    named = resource["name"]
                    self._plurals[version, resource["kind"]] = (
                        f"namespaces/{{}}/{named}" if resource["namespaced"] else named
                    )
        if (version, kind) not in self._plurals:
            raise Refusal(404, f"no {kind} in {version}")
        within = self._plurals[version, kind].format(metadata.get("namespace", "default"))
        return f"{at}/{within}/{metadata['name']}"

    def install(self, *crds: Object) -> None:
        """Returns when their objects can be made."""
        self.apply(*crds)
        self._until(lambda: all(self._established(crd) for crd in crds), "the CRDs are served")

    def uninstall(self, crd: Object) -> None:
        """Returns when there is none of its objects."""
        self.delete(crd)
        self._until(lambda: not self._exists(crd), "the CRD is gone")

    def _exists(self, one: Object) -> bool:
        try:
            self.request("GET", self.path(one))
        except Refusal:
            return False
        return True

    def _established(self, crd: Object) -> bool:
        seen = self.request("GET", self.path(crd))
        conditions = {one["type"]: one["status"] for one in seen["status"].get("conditions") or []}
        group, names = crd["spec"]["group"], crd["spec"]["names"]
        if conditions.get("Established") != "True":
            return False
        try:
            for version in crd["spec"]["versions"]:
                self.request("GET", f"/apis/{group}/{version['name']}/{names['plural']}")
        except Refusal:
            return False
        return True

    def _until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited in vain until {what}")
            time.sleep(0.05)

    def namespace(self, name: str) -> str:
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return name

    def pod(
        self,
        name: str,
        *,
        namespace: str,
        labels: Mapping[str, str],
        ip: str,
        ready: bool = True,
        annotations: Mapping[str, str] | None = None,
    ) -> Object:
        """A pod that a kubelet would say is running at `ip`, made or changed. Deleted, it stays until it is deleted with `grace_s=0`."""
        pod: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": dict(labels),
                "annotations": dict(annotations or {}),
            },
            "spec": {"nodeName": "nowhere", "containers": [{"name": "server", "image": "server"}]},
        }
        self.apply(pod)
        self.set_status(pod, ip=ip, ready=ready)
        return pod

    def set_status(self, pod: Object, *, ip: str, ready: bool) -> None:
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [condition]}
        path = f"{self.path(pod)}/status"
        self.request("PATCH", path, {"status": status}, content_type="application/merge-patch+json")

    def add_token(self, token: str, user: str, *groups: str) -> None:
        """Another bearer token; it counts from the next start of the server on."""
        with (self.directory / "tokens.csv").open("a") as tokens:
            tokens.write(f'{token},{user},{user},"{",".join(groups)}"\n')

    def account_token(self, namespace: str, name: str, *, expires_s: int = 3600) -> str:
        """A token of a service account, which is made where there is none."""
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        self.apply(account)
        spec = {"spec": {"expirationSeconds": expires_s}}
        answer = self.request("POST", f"{self.path(account)}/token", spec)
        return str(answer["status"]["token"])

    def kubeconfig(self, path: Path, *, namespace: str = "default", user: Mapping[str, object] | None = None) -> Path:
        """Write a kubeconfig to `path`: for the admin, or for `user` in the words of that file."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
            "clusters": [
                {"name": "test", "cluster": {"server": self.url, "certificate-authority": str(self.authority.path)}}
            ],
            "users": [{"name": "test", "user": dict(user or {"token": ADMIN_TOKEN})}],
        }
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def _connected(self) -> http.client.HTTPSConnection:
        if self._connection is None:
            context = ssl.create_default_context(cafile=str(self.authority.path))
            self._connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=30.0)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _message(data: bytes) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(data)["message"])
    return data.decode(errors="replace")[:500]
