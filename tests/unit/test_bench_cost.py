"""What was measured before stays beside what is measured again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.cost import report
from bench.cost.report import kept, plot, write
from bench.cost.rows import Result


def measured(row: str, value: float) -> Result:
    return Result(row=row, title=row, unit="r", value=value, budget=1.0, go_picker=2.0)


def test_rows_are_kept_also_beside_one_that_can_no_longer_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    write(kept([measured("small", 0.2), measured("20k", 0.3), measured("tls", 0.4)]))
    path = tmp_path / "cost.json"
    rows = msgspec.json.decode(path.read_bytes())
    rows[1]["result"]["unit"] = "furlongs"
    path.write_bytes(msgspec.json.encode(rows))
    everything = kept([measured("small", 0.1), measured("lean", 1.5)])
    assert [(one.result.row, one.result.value, one.within) for one in everything] == [
        ("small", 0.1, True),
        ("tls", 0.4, True),
        ("lean", 1.5, False),
    ]
    plot(everything)
    assert (tmp_path / "cost.png").stat().st_size > 1000
