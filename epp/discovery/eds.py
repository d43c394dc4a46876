"""The membership as Envoy reads it: an endpoint discovery (EDS) file, replaced by rename whenever it changes.

Envoy watches the directory (`path_config_source.watched_directory`) and takes a file moved into it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from epp.discovery.names import is_ip
from epp.endpoint import Endpoint

logger = logging.getLogger("epp.discovery")

RETRY_S = 1.0
_TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


def eds_document(cluster: str, endpoints: Iterable[Endpoint]) -> str:
    """JSON, which Envoy reads under the names `.json` and `.yaml` alike. The same members give the same text in any order.

    An endpoint whose address is no IP is left out: EDS knows no names.
    """
    places = sorted({(one.address, one.port) for one in endpoints if is_ip(one.address)})
    hosts = [
        {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}
        for address, port in places
    ]
    assignment = {"@type": _TYPE, "cluster_name": cluster, "endpoints": [{"lb_endpoints": hosts}] if hosts else []}
    return json.dumps({"resources": [assignment]}, indent=1) + "\n"


class EdsFile:
    """Owns one EDS file. A write that fails is logged once per reason and tried again every `retry_s` seconds."""

    def __init__(self, path: str | Path, *, cluster: str = "servers", retry_s: float = RETRY_S) -> None:
        self.path = Path(path)
        self.cluster = cluster
        self._retry_s = retry_s
        self._wanted: str | None = None
        self._written: str | None = None
        self._complaint: str | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def current(self) -> bool:
        """Whether the file says what was last published."""
        return self._written == self._wanted

    def publish(self, endpoints: Iterable[Endpoint]) -> bool:
        """Make the file say `endpoints`. Returns whether it was written: False where it says so already or cannot be.

        To be called on the event loop, which is used only to try again.
        """
        self._wanted = eds_document(self.cluster, endpoints)
        return self._write()

    def begin(self) -> None:
        """Make a file without endpoints where there is none, since Envoy does not start without. One that is there stays as it is: what
        an earlier process knew is better than nothing."""
        if not self.path.exists():
            self.publish(())

    def close(self) -> None:
        """Give up on what could not be written. The file stays, so that Envoy keeps its endpoints."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _write(self) -> bool:
        self.close()
        assert self._wanted is not None
        if self._written is None:
            self._written = self._found()
        if self.current:
            return False
        try:
            self._replace(self._wanted)
        except OSError as error:
            self._complain(error)
            self._timer = asyncio.get_running_loop().call_later(self._retry_s, self._write)
            return False
        self._written = self._wanted
        if self._complaint is not None:
            logger.info("%s is written again", self.path)
            self._complaint = None
        return True

    def _found(self) -> str | None:
        """What an earlier process left."""
        try:
            return self.path.read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def _replace(self, text: str) -> None:
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            unfinished.write_text(text)
            unfinished.replace(self.path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _complain(self, error: OSError) -> None:
        complaint = error.strerror or str(error)
        if complaint != self._complaint:
            self._complaint = complaint
            directory = self.path.parent
            reason = complaint if directory.is_dir() else f"there is no directory {directory}"
            logger.error("cannot write %s, so Envoy keeps the endpoints it has: %s", self.path, reason)
