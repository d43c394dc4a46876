"""`python -m tests.fuzz TARGET [SECONDS]`: the coverage-guided fuzzer, for hours. Needs atheris (`make fuzz`).

The corpus grows in `.cache/fuzz/corpus`. An input that breaks a promise is written to `tests/fuzz/cases/TARGET/`, where
every later test run replays it.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # only `make fuzz` installs it

with atheris.instrument_imports(include=["epp", "hpack"]):
    from tests.fuzz.seeds import SEEDS
    from tests.fuzz.targets import TARGETS

CASES = Path(__file__).parent / "cases"
CORPUS = Path(".cache/fuzz/corpus")


def main(name: str, seconds: str = "600") -> None:
    corpus, cases = CORPUS / name, CASES / name
    corpus.mkdir(parents=True, exist_ok=True)
    cases.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS[name]():
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={cases}/", str(corpus), str(cases)], TARGETS[name])
    atheris.Fuzz()


main(*sys.argv[1:])
