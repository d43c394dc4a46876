"""Where the API server is and who we are to it: in a cluster from the mounted service account, elsewhere from a kubeconfig.

Everything is read anew for every connection: tokens, certificates and authorities rotate in their files.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
import os
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import msgspec
import yaml

from epp.endpoint import host_port

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
EXEC_TIMEOUT_S = 60.0
EXPIRES_EARLY_S = 30.0
"""A credential that a command gave is asked for again so long before it ends."""


class AccessError(Exception):
    """The API server cannot be found, or we cannot say who we are. The message names the file and what is wrong in it."""


class Access(msgspec.Struct, frozen=True):
    """How to call the API server now. `base` precedes every path; `tls` None is plain HTTP; `authorization` "" is none."""

    host: str
    port: int
    base: str
    tls: ssl.SSLContext | None
    server_name: str
    authorization: str

    @property
    def address(self) -> str:
        return host_port(self.host, self.port)


class InCluster:
    """A pod's own service account. `host` and `port` are what the kubelet puts into the environment."""

    def __init__(self, host: str, port: int, account: Path = ACCOUNT) -> None:
        self._host = host
        self._port = port
        self._account = account

    def __str__(self) -> str:
        return f"the service account at {self._account}"

    async def read(self) -> Access:
        """Raises AccessError."""
        token = _text(self._account / "token").strip()
        tls = _context(cafile=self._account / "ca.crt")
        return Access(self._host, self._port, "", tls, self._host, f"Bearer {token}")


class _Variable(msgspec.Struct, frozen=True):
    name: str
    value: str


class _Exec(msgspec.Struct, frozen=True, rename="camel"):
    command: str
    api_version: str = "client.authentication.k8s.io/v1"
    args: tuple[str, ...] | None = None
    env: tuple[_Variable, ...] | None = None
    install_hint: str = ""


class _User(msgspec.Struct, frozen=True, rename="kebab"):
    token: str = ""
    # These three are camelCase in the file, alone among their kind.
    token_file: str = msgspec.field(default="", name="tokenFile")
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    username: str = ""
    password: str = ""
    exec: _Exec | None = None


class _Cluster(msgspec.Struct, frozen=True, rename="kebab"):
    server: str
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""


class _Context(msgspec.Struct, frozen=True):
    cluster: str
    user: str = ""


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str
    cluster: _Cluster


class _NamedUser(msgspec.Struct, frozen=True):
    name: str
    user: _User | None = None


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: _Context


_Name = Annotated[str, msgspec.Meta(min_length=1)]


class _Config(msgspec.Struct, frozen=True, rename="kebab"):
    current_context: _Name
    clusters: tuple[_NamedCluster, ...]
    contexts: tuple[_NamedContext, ...]
    users: tuple[_NamedUser, ...] | None = None


class _ExecStatus(msgspec.Struct, frozen=True, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime.datetime | None = None


class _ExecCredential(msgspec.Struct, frozen=True):
    status: _ExecStatus


class Kubeconfig:
    """The current context of a kubeconfig file: tokens, client certificates, commands that give either."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._credential: _ExecStatus | None = None

    def __str__(self) -> str:
        return f"the kubeconfig {self._path}"

    async def read(self) -> Access:
        """Raises AccessError."""
        cluster, user = self._current()
        if user.exec is not None:
            user = _with(user, await self._from_command(user.exec))
        try:
            url = urlsplit(cluster.server)
            host, port = url.hostname, url.port
        except ValueError:
            host = None
        if not host or url.scheme not in ("http", "https"):
            raise AccessError(f"{self._path}: the server {cluster.server!r} is no URL of HTTP or HTTPS")
        if cluster.proxy_url:
            raise AccessError(f"{self._path}: a proxy-url is not supported")
        tls = self._tls(cluster, user) if url.scheme == "https" else None
        return Access(
            host,
            port or (443 if tls else 80),
            url.path.rstrip("/"),
            tls,
            cluster.tls_server_name or host,
            self._authorization(user),
        )

    def _current(self) -> tuple[_Cluster, _User]:
        try:
            config = msgspec.convert(yaml.safe_load(_text(self._path)), _Config)
        except (yaml.YAMLError, msgspec.ValidationError) as error:
            raise AccessError(f"{self._path} is no kubeconfig: {error}") from None
        context = _named(
            {one.name: one.context for one in config.contexts}, config.current_context, "context", self._path
        )
        cluster = _named({one.name: one.cluster for one in config.clusters}, context.cluster, "cluster", self._path)
        if not context.user:
            return cluster, _User()
        users = {one.name: one.user or _User() for one in config.users or ()}
        return cluster, _named(users, context.user, "user", self._path)

    def _tls(self, cluster: _Cluster, user: _User) -> ssl.SSLContext:
        if cluster.certificate_authority_data:
            tls = _context(cadata=_decoded(cluster.certificate_authority_data, self._path))
        elif cluster.certificate_authority:
            tls = _context(cafile=self._beside(cluster.certificate_authority))
        else:
            tls = _context()
        if cluster.insecure_skip_tls_verify:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        certificate = self._pem(user.client_certificate_data, user.client_certificate)
        key = self._pem(user.client_key_data, user.client_key)
        if certificate and key:
            _show(tls, certificate, key, self._path)
        return tls

    def _pem(self, data: str, file: str) -> str:
        if data:
            return data if data.startswith("-----BEGIN") else _decoded(data, self._path)
        return _text(self._beside(file)) if file else ""

    def _authorization(self, user: _User) -> str:
        token = _text(self._beside(user.token_file)).strip() if user.token_file else user.token
        if token:
            return f"Bearer {token}"
        if user.username:
            pair = f"{user.username}:{user.password}".encode()
            return f"Basic {base64.b64encode(pair).decode()}"
        return ""

    def _beside(self, file: str) -> Path:
        """Relative paths start where the kubeconfig is."""
        return self._path.parent / file

    async def _from_command(self, command: _Exec) -> _ExecStatus:
        """What the command says, or said before where that holds still."""
        held = self._credential
        now = datetime.datetime.now(datetime.UTC)
        if held is not None and held.expiration_timestamp is not None:
            left = held.expiration_timestamp - now
            if left.total_seconds() > EXPIRES_EARLY_S:
                return held
        self._credential = await _run(command)
        return self._credential


def _with(user: _User, given: _ExecStatus) -> _User:
    return msgspec.structs.replace(
        user,
        token=given.token,
        client_certificate_data=given.client_certificate_data or user.client_certificate_data,
        client_key_data=given.client_key_data or user.client_key_data,
    )


async def _run(command: _Exec) -> _ExecStatus:
    """The credential that a command of `client.authentication.k8s.io` prints. Raises AccessError."""
    info = {"apiVersion": command.api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
    more = {one.name: one.value for one in command.env or ()}
    environment = {**os.environ, **more, "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()}
    try:
        process = await asyncio.create_subprocess_exec(
            command.command,
            *(command.args or ()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
    except OSError as error:
        hint = f"; {command.install_hint}" if command.install_hint else ""
        raise AccessError(f"the credential command {command.command} cannot be run: {error.strerror}{hint}") from None
    try:
        async with asyncio.timeout(EXEC_TIMEOUT_S):
            output, complaint = await process.communicate()
    except TimeoutError:
        raise AccessError(f"the credential command {command.command} said nothing for {EXEC_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = complaint.decode(errors="replace").strip()[-300:]
        raise AccessError(f"the credential command {command.command} ended with {process.returncode}: {said}")
    try:
        return msgspec.json.decode(output, type=_ExecCredential).status
    except msgspec.DecodeError as error:
        raise AccessError(f"the credential command {command.command} gave no ExecCredential: {error}") from None


def _context(cafile: Path | None = None, cadata: str | None = None) -> ssl.SSLContext:
    try:
        tls = ssl.create_default_context(cafile=str(cafile) if cafile is not None else None, cadata=cadata)
    except (OSError, ValueError) as error:
        raise AccessError(f"the cluster's authority {cafile or ''} cannot be used: {error}") from None
    # From Python 3.13 on the default, which certificates of many clusters do not keep to; they are pinned to one authority anyway.
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    tls.set_alpn_protocols(["http/1.1"])
    return tls


def _show(tls: ssl.SSLContext, certificate: str, key: str, path: Path) -> None:
    """Have the client show its certificate, which the ssl module takes from a file only."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as pair:
        pair.write(f"{certificate}\n{key}\n")
        pair.flush()
        try:
            tls.load_cert_chain(pair.name)
        except (OSError, ValueError) as error:
            raise AccessError(f"{path}: the client certificate cannot be used: {error}") from None


def _decoded(data: str, path: Path) -> str:
    try:
        text = base64.b64decode("".join(data.split()), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        text = ""
    # What is empty would be taken for "any authority that the system trusts".
    if "-----BEGIN" not in text:
        raise AccessError(f"{path}: certificate data is not PEM in base64")
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise AccessError(f"{path} cannot be read: {reason}") from None


_T = TypeVar("_T")


def _named(among: Mapping[str, _T], name: str, what: str, path: Path) -> _T:
    if name not in among:
        raise AccessError(f"{path}: there is no {what} {name!r}; there is {', '.join(sorted(among)) or 'none'}")
    return among[name]
