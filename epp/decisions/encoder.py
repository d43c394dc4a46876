"""Records as lines of one run: salted, rounded, and with the pool told before the decision that counts on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from epp.decisions.lines import PRINT_BYTES, Candidates, Decision, Line, Members, Outcome, Run
from epp.decisions.recording import Ended, Population, Record, Seen, Taken
from epp.endpoint import Endpoint
from epp.request import BLOCK_BYTES

KEY_BYTES = 32

NOBODY = "default-flow"
"""The fairness id of a request that names none."""

_MAX_NAME = 256
_AES_BYTES = 16


class Encoder:
    """Turns records into lines. Times count from `zero_s`, which the wall clock calls `started`. `key` (`KEY_BYTES` secret bytes, of one run and kept nowhere) salts fingerprints and tenants.

    The salted fingerprint is AES of the block's fingerprint, cut to `PRINT_BYTES`: without the key nobody can tell from the
    log whether a text that he has in mind was sent, not even who knows some of the prompts in it. A keyed hash that is no cipher
    would not do: XXH3's seed follows from one known pair. AES takes 10 µs for 1,600 blocks.
    """

    def __init__(self, key: bytes, *, run: str, started: str, zero_s: float, pool: str) -> None:
        self._tenant_key = key[16:]
        # ECB is each block for itself, which is what a pseudorandom function of a block is.
        self._cipher = Cipher(AES(key[:16]), ECB()).encryptor()
        self._run = Run(run=run, started=started, pool=pool, block_bytes=BLOCK_BYTES)
        self._zero_s = zero_s
        self._members: tuple[Endpoint, ...] = ()
        self._encoder = msgspec.json.Encoder()

    def begin(self) -> bytes:
        """The line that a file begins with. The pool is told anew after it."""
        self._members = ()
        return self._line(self._run)

    def encode(self, record: Record) -> list[bytes]:
        """The record's line, each with its end, after the pool's where that is another than before."""
        if isinstance(record, Ended):
            return [self._line(_outcome(record, self._zero_s))]
        decision = self._line(self._decision(record))
        if record.population is None or record.population[1] is self._members:
            return [decision]
        self._members = record.population[1]
        return [self._line(_members(record.population)), decision]

    def _line(self, line: Line) -> bytes:
        return self._encoder.encode(line) + b"\n"

    def _decision(self, record: Taken) -> Decision:
        return Decision(
            request=record.number,
            arrived_s=round(record.opened_s - self._zero_s, 6),
            decided_s=round(record.decided_s - self._zero_s, 6),
            model=_name(record.model),
            target_model=_name(record.target_model) if record.target_model != record.model else "",
            tenant=self._tenant(record.fairness_id),
            priority=record.priority,
            stream=record.stream,
            prompt_bytes=record.prompt_bytes,
            prompt_tokens=record.prompt_tokens,
            max_tokens=record.max_tokens,
            fingerprints=self._salted(record),
            picked=record.slot if record.slot >= 0 else None,
            refused=record.refused,
            profile=record.profile,
            candidates=_candidates(record.seen) if record.seen is not None else None,
        )

    def _tenant(self, fairness_id: str) -> str:
        if fairness_id == NOBODY:
            return ""
        data = fairness_id.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(data, digest_size=8, key=self._tenant_key).hexdigest()

    def _salted(self, record: Taken) -> bytes:
        n = len(record.fingerprints)
        if not n:
            return b""
        blocks = np.zeros((n, _AES_BYTES // 8), dtype="<u8")
        blocks[:, 0] = record.fingerprints
        salted = np.frombuffer(self._cipher.update(blocks.tobytes()), dtype=np.uint8)
        return salted.reshape(n, _AES_BYTES)[:, :PRINT_BYTES].tobytes()


def _name(text: str) -> str:
    """A model's name is the client's word: one that is none is not written."""
    return text if len(text) <= _MAX_NAME and text.isprintable() else "other"


def _members(population: Population) -> Members:
    slots, endpoints = population
    return Members({slot: one.destination for slot, one in zip(slots.tolist(), endpoints, strict=True)})


def _candidates(seen: Seen) -> Candidates:
    slots = seen.slots.tolist()
    waiting, running, kv_usage, in_flight, in_flight_tokens, hit_blocks = np.array(seen.columns).round(4).tolist()
    return Candidates(
        endpoint=slots,
        score=_scores(slots, seen),
        waiting=waiting,
        running=running,
        kv_usage=kv_usage,
        in_flight=in_flight,
        in_flight_tokens=in_flight_tokens,
        hit_blocks=hit_blocks,
        left=seen.left,
    )


def _scores(slots: Sequence[int], seen: Seen) -> list[float | None]:
    totals = seen.totals.round(4).tolist()
    if len(totals) == len(slots) and seen.left == 0:
        return list(totals)
    known = dict(zip(seen.considered.tolist(), totals, strict=True))
    return [known.get(slot) for slot in slots] if known else []


def _outcome(record: Ended, zero_s: float) -> Outcome:
    return Outcome(
        request=record.number,
        ended_s=round(record.ended_s - zero_s, 6),
        status=record.status,
        ttft_s=round(record.ttft_s, 6) if record.ttft_s is not None else None,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        aborted=record.aborted,
        served=record.served,
    )
