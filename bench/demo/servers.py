"""Real model servers that a user names: do they answer, and what do they serve?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import msgspec

from epp.discovery.source import DiscoveryError
from epp.discovery.static import parse_endpoint


class Unusable(Exception):
    """A named server cannot take part. The message says which, why, and what to do."""


class Card(msgspec.Struct, frozen=True):
    """One entry of `/v1/models`. vLLM gives adapters their base model as `parent`."""

    id: str
    parent: str | None = None
    max_model_len: int | None = None


class _Cards(msgspec.Struct, frozen=True):
    data: tuple[Card, ...]


class Offer(msgspec.Struct, frozen=True):
    """What all the servers serve. `max_model_len` is in tokens, None where the server does not say."""

    model: str
    adapters: tuple[str, ...] = ()
    max_model_len: int | None = None


def parse_servers(text: str) -> tuple[str, ...]:
    """`host:port,host:port`. Raises Unusable for a malformed or repeated one."""
    servers = tuple(part.strip() for part in text.split(",") if part.strip())
    for server in servers:
        try:
            parse_endpoint(server)
        except DiscoveryError as error:
            raise Unusable(str(error)) from None
        if servers.count(server) > 1:
            raise Unusable(f"server {server} is named twice")
    return servers


async def ask(servers: Sequence[str], client: aiohttp.ClientSession) -> Offer:
    """Ask every server what it serves. Raises Unusable for one that does not answer or lacks the first one's model."""
    return agree(dict(zip(servers, await asyncio.gather(*(_cards(server, client) for server in servers)), strict=True)))


def agree(cards: dict[str, tuple[Card, ...]]) -> Offer:
    """The first server's first base model, and the adapters of it that every server lists. Raises Unusable."""
    first, listed = next(iter(cards.items()))
    base = next((card for card in listed if card.parent is None), None)
    if base is None:
        raise Unusable(f"server {first} lists no model at /v1/models")
    for server, theirs in cards.items():
        if base.id not in {card.id for card in theirs}:
            names = ", ".join(card.id for card in theirs) or "nothing"
            raise Unusable(f"server {server} does not serve {base.id}, the model of {first}: it lists {names}")
    everywhere = set.intersection(*({card.id for card in theirs} for theirs in cards.values()))
    adapters = tuple(card.id for card in listed if card.parent == base.id and card.id in everywhere)
    return Offer(base.id, adapters, base.max_model_len)


async def _cards(server: str, client: aiohttp.ClientSession) -> tuple[Card, ...]:
    url = f"http://{server}/v1/models"
    try:
        async with client.get(url, timeout=aiohttp.ClientTimeout(total=5.0)) as response:
            if response.status != 200:
                raise Unusable(f"server {server} answers {url} with status {response.status}: is it an OpenAI server?")
            return msgspec.json.decode(await response.read(), type=_Cards).data
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        reason = str(error) or "no answer within 5 s"
        raise Unusable(f"server {server} does not answer: {reason}; start it, or leave it out of --servers") from None
    except msgspec.DecodeError as error:
        raise Unusable(f"server {server} answers {url} with no list of models: {error}") from None
