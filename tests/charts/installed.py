"""What a chart installed, brought to life by hand: the container's arguments, its files, its account, and Envoy's configuration, all as
the API server has them. There is no kubelet; pods are written by the test."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from bench.processes import Process, Stand, answers, free_port
from tests.charts.render import run
from tests.cluster import Cluster

RELEASE = "model"
PATIENCE_S = 60.0


class Installed:
    """One release in a namespace of its own. Addresses are made those of this machine; nothing else is changed."""

    def __init__(self, cluster: Cluster, stand: Stand, helm: Path, chart: str, namespace: str, *values: str) -> None:
        self.cluster = cluster
        self.stand = stand
        self.namespace = cluster.namespace(namespace)
        self.directory = stand.directory
        admin = cluster.kubeconfig(self.directory / "admin", namespace=namespace)
        where = [f"--kubeconfig={admin}", f"--namespace={namespace}"]
        run(helm, "install", RELEASE, f"deploy/helm/{chart}", *values, *where)
        self.grpc, self.health, self.metrics, self.front = (free_port() for _ in range(4))
        (self.directory / "config").mkdir()
        (self.directory / "eds").mkdir()

    def get(self, version: str, resource: str, name: str) -> dict[str, Any]:
        at = f"/{'apis' if '/' in version else 'api'}/{version}/namespaces/{self.namespace}/{resource}/{name}"
        found: dict[str, Any] = self.cluster.request("GET", at)
        return found

    def picker(self) -> Process:
        """The picker as its pod would start it: returns once its probe of life succeeds."""
        spec = self.get("apps/v1", "deployments", f"{RELEASE}-epp")["spec"]["template"]["spec"]
        (container,) = (one for one in spec.get("initContainers", spec["containers"]) if one["name"] == "epp")
        for name, text in self.get("v1", "configmaps", f"{RELEASE}-epp")["data"].items():
            (self.directory / "config" / name).write_text(text)
        token = self.directory / "token"
        token.write_text(self.cluster.account_token(self.namespace, spec["serviceAccountName"]))
        account = self.cluster.kubeconfig(self.directory / "account", user={"tokenFile": str(token)})
        args = [self._here(arg) for arg in container["args"]]
        # In a pod the ports are its own, and NAMESPACE and the account are in the environment.
        ours = [f"--grpc-port={self.grpc}", f"--grpc-health-port={self.health}", f"--metrics-port={self.metrics}"]
        ours += ["--host=127.0.0.1", f"--kubeconfig={account}", f"--pool-namespace={self.namespace}"]
        return self.start(args + ours)

    def start(self, args: list[str]) -> Process:
        process = self.stand.start("epp", [sys.executable, "-m", "epp", "run", *args])
        process.wait_until(lambda: answers(f"http://127.0.0.1:{self.metrics}/healthz"), PATIENCE_S)
        return process

    @property
    def ready(self) -> bool:
        return answers(f"http://127.0.0.1:{self.metrics}/readyz")

    def envoy(self) -> Process:
        """Envoy with the configuration of its ConfigMap. Returns once it is ready by its own probe."""
        text = self.get("v1", "configmaps", f"{RELEASE}-proxy")["data"]["envoy.yaml"]
        for name in (f"{RELEASE}-epp", f"{RELEASE}-servers"):
            text = text.replace(f"{name}.{self.namespace}.svc.cluster.local", "127.0.0.1")
        config = yaml.safe_load(self._here(text))
        admin, probe = free_port(), free_port()
        config["admin"]["address"]["socket_address"]["port_value"] = admin
        static = config["static_resources"]
        for listener, port in zip(static["listeners"], (self.front, probe), strict=True):
            listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
        for cluster in static["clusters"]:
            if cluster["name"] in ("picker", "admin"):
                (host,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
                port = self.grpc if cluster["name"] == "picker" else admin
                host["endpoint"]["address"]["socket_address"]["port_value"] = port
        process = self.stand.start_envoy(config)
        process.wait_until(lambda: answers(f"http://127.0.0.1:{probe}/ready"), PATIENCE_S)
        return process

    def _here(self, text: str) -> str:
        return text.replace("/etc/epp", str(self.directory / "config")).replace("/eds", str(self.directory / "eds"))

    def metrics_status(self, token: str) -> int:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            url = f"http://127.0.0.1:{self.metrics}/metrics"
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def ask(self) -> tuple[int, str]:
        """A chat through Envoy: the status, and which server answered."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.front}/v1/chat/completions",
            b'{"model": "base", "messages": [{"role": "user", "content": "Hello"}]}',
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.headers.get("x-server", "")
        except urllib.error.HTTPError as error:
            error.close()
            return error.code, ""
