"""The process of `epp attach`, put together from its parts."""

from __future__ import annotations

import asyncio
import logging
import random

import uvloop

from epp.assembly import StartError, credentials_of
from epp.attach.attacher import Attacher
from epp.kubernetes.api import Api
from epp.observe import logs
from epp.ports import serve
from epp.settings import Settings

log = logging.getLogger("epp")


def run(settings: Settings) -> int:
    """Attach pools until told to end. Returns the exit status: 1 where it could not start."""
    logs.configure(level=settings.log_level, encoder=settings.log_encoder, time_encoding=settings.log_time_encoding)

    def make() -> Attacher:
        api = Api(credentials_of(settings), asyncio.get_running_loop().time)
        return Attacher(api, settings.pool_namespace, faults=_fault, rng=random.Random())

    log.info("attaching the pools of %s that ask for it", settings.pool_namespace)
    try:
        uvloop.run(serve(make, 0.0))
    except StartError as error:
        log.error("cannot start: %s", error)
        return 1
    return 0


def _fault(kind: str, error: Exception) -> None:
    log.error("a bug in %s", kind, exc_info=error)
