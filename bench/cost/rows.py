"""The rows of the table: what is measured, and what it may cost."""

from __future__ import annotations

from typing import Literal

import msgspec

Unit = Literal["r", "cores", "MB", "×"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table, and the scene that it is measured in.

    `budget` and `go` are in `unit`: "r" is CPU per request divided by that of the echo, "×" latency added divided by what the
    control adds. `of` names the row that a derived one is read from. `shared` lets all prompts begin alike for nine tenths of
    their length. `events` is the number of chunks of a streamed answer; the row is then the cost of one. `turns` is how long the
    answer takes where that is more, in the time that one chunk takes.
    """

    name: str
    title: str
    budget: float
    go: float | None = None
    unit: Unit = "r"
    prompt_bytes: int = 2400
    endpoints: int = 8
    lean: bool = False
    tls: bool = False
    shared: bool = False
    events: int = 0
    turns: int = 0
    real_page: bool = False
    connections: int = 16
    of: str = ""


ROWS = (
    Row(name="small", title="small chat (2.4 KB)", budget=0.25, go=0.75),
    Row(name="20k", title="20 KB prompt", budget=0.35, go=2.0, prompt_bytes=20_000),
    Row(name="100k", title="100 KB prompt", budget=0.9, go=5.9, prompt_bytes=100_000),
    Row(name="400k", title="400 KB prompt", budget=2.5, go=20.0, prompt_bytes=400_000),
    Row(name="20k-shared", title="20 KB, nine tenths shared", budget=0.35, prompt_bytes=20_000, shared=True),
    Row(name="400k-shared", title="400 KB, nine tenths shared", budget=2.5, prompt_bytes=400_000, shared=True),
    Row(name="tls", title="small chat over TLS", budget=0.28, tls=True),
    Row(name="chunk", title="streamed chunk, full duplex", budget=0.02, go=0.09, events=200),
    Row(name="lean", title="small chat, lean mode", budget=0.2, lean=True),
    Row(name="lean-chunk", title="streamed chunk, lean mode", budget=0.0, lean=True, events=200),
    Row(name="100", title="100 endpoints, 0.6 KB pages", budget=0.3, go=1.8, endpoints=100),
    Row(name="1000", title="1,000 endpoints, 0.6 KB pages", budget=0.8, go=25.0, endpoints=1000),
    Row(name="100-real", title="100 endpoints, 51 KB pages", budget=0.35, endpoints=100, real_page=True),
    Row(name="envoy", title="Envoy's own CPU, small chat", budget=0.35, go=0.5, of="small"),
    Row(name="envoy-lean", title="Envoy's own CPU, lean mode", budget=0.35, of="lean"),
    Row(name="idle-8", title="idle, 8 endpoints, 51 KB pages", budget=0.005, go=0.34, unit="cores", real_page=True),
    Row(
        name="idle-100",
        title="idle, 100 endpoints, 51 KB pages",
        budget=0.05,
        go=1.84,
        unit="cores",
        endpoints=100,
        real_page=True,
    ),
    Row(name="idle-1000", title="idle, 1,000, 0.6 KB pages", budget=0.25, go=1.3, unit="cores", endpoints=1000),
    Row(name="memory-rest", title="memory at rest", budget=90, go=77, unit="MB"),
    Row(name="memory-400k", title="memory, 400 KB prompts", budget=140, go=240, unit="MB", prompt_bytes=400_000),
    Row(name="latency-p50", title="added latency at half load, p50", budget=2.0, unit="×"),
    Row(name="latency-p99", title="added latency at half load, p99", budget=2.0, unit="×", of="latency-p50"),
    Row(name="lean-latency-p50", title="the same in lean mode, p50", budget=2.0, unit="×", lean=True),
    Row(name="lean-latency-p99", title="the same in lean mode, p99", budget=2.0, unit="×", of="lean-latency-p50"),
)
"""DESIGN: a chunk in lean mode costs nothing; what is measured there is the difference of two runs, within ±0.002."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A row measured. `us` is CPU per request (or chunk) of the picker, `envoy_us` of Envoy; `echo_us` is one r beside it.
    `added_ms` is the latency it adds, `control_ms` what a server adds that decides nothing.
    """

    row: str
    title: str
    unit: Unit
    value: float
    budget: float
    go_picker: float | None
    us: float | None = None
    envoy_us: float | None = None
    echo_us: float | None = None
    requests_per_s: float | None = None
    added_ms: float | None = None
    control_ms: float | None = None

    @property
    def within(self) -> bool:
        return self.value <= self.budget + (0.002 if self.unit == "r" else 0.0)
