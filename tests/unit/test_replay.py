"""Replay: what is read, counted, compared and refused. Runs are small and in this process."""

from __future__ import annotations

import io
import random
import re
import tracemalloc
from collections.abc import Iterator, Sequence
from math import isnan, nan
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.lab.offered import TraceError
from bench.lab.record import Outcome, Record
from bench.lab.summary import Slo
from bench.replay import commands, conditions, display, options, wording
from bench.replay.comparison import Difference, Row, compare
from bench.replay.histogram import BUCKETS, bucket, quantiles
from bench.replay.measures import MEASURES, Unit
from bench.replay.servers import SHORT, pool
from bench.replay.source import Recorded, survey
from bench.replay.tally import Tally, tally
from epp import cli
from epp.decisions.lines import Decision, Line, Members, Run
from epp.decisions.lines import Outcome as Ending

SLO = Slo(first_s=1.0, per_prompt_token_s=0.0, per_square_s=0.0, per_token_s=1.0)
LEAST = "config/least-loaded.yaml"


class TestHistogram:
    @given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
    @settings(deadline=None)
    def test_quantiles_are_within_a_step(self, values: list[float], share: float) -> None:
        counts = np.bincount([bucket(one) for one in values], minlength=BUCKETS)
        exact = np.quantile(values, share, method="inverted_cdf")
        assert exact / 1.011 <= quantiles(counts, share) <= exact * 1.011

    def test_ends_and_nothing(self) -> None:
        assert bucket(0.0) == 0 and bucket(1e9) == BUCKETS - 1
        assert isnan(quantiles(np.zeros(BUCKETS), 0.5))


def record(at_s: float, ttft_s: float = 0.5, **more: object) -> Record:
    fields = {
        "id": "r",
        "at_s": at_s,
        "prompt_tokens": 100,
        "output_tokens": 11,
        "model": "",
        "tenant": "",
        "outcome": Outcome.DONE,
        "server": 0,
        "ttft_s": ttft_s,
        "e2e_s": ttft_s + 1.0,
        "cached_tokens": 40,
        "available_tokens": 80,
        **more,
    }
    return Record(**fields)  # type: ignore[arg-type]


def tallied(records: Sequence[Record], begin_s: float = 0.0, end_s: float = 100.0) -> Tally:
    return tally(records, begin_s=begin_s, end_s=end_s, servers=2, long_prompt=1000, slo=SLO)


def cells(rows: Sequence[Row], index: int = 0) -> dict[str, float]:
    return {row.measure.name: row.cells[index].value for row in rows}


class TestTally:
    def test_every_measure_of_a_few_records(self) -> None:
        records = [
            record(10, 1.5),
            record(20, 0.5, server=1, prompt_tokens=1000, cached_tokens=0, available_tokens=0),
            record(30, nan, outcome=Outcome.REFUSED, server=-1),
            record(101, 99.0),
        ]
        got = cells(compare([tallied(records)]))
        assert got["ttft_mean"] == pytest.approx(1.0)
        assert got["ttft_p50"] == pytest.approx(0.5, rel=0.01) and got["ttft_p90"] == pytest.approx(1.5, rel=0.01)
        assert got["ttft_long_p99"] == pytest.approx(0.5, rel=0.01)
        assert got["e2e_p90"] == pytest.approx(2.5, rel=0.01)
        assert got["token_p50"] == pytest.approx(0.1, rel=0.01)
        assert got["hit"] == pytest.approx(40 / 1100) and got["captured"] == pytest.approx(0.5)
        assert got["attained"] == pytest.approx(1 / 3) and got["goodput"] == pytest.approx(0.01)
        assert got["refused"] == pytest.approx(1 / 3)
        # 60 uncached tokens on one server, 1,000 on the other.
        assert got["spread"] == pytest.approx(1000 / 530)

    def test_the_warm_up_is_left_out(self) -> None:
        got = cells(compare([tallied([record(10, 9.0), record(60, 0.5)], begin_s=50.0)]))
        assert got["ttft_mean"] == pytest.approx(0.5)

    def test_runs_add_up(self) -> None:
        one, other = tallied([record(10, 0.5)]), tallied([record(10, 1.5)])
        both = one + other
        assert both.runs == 2 and cells(compare([both]))["ttft_mean"] == pytest.approx(1.0)
        assert cells(compare([both]))["goodput"] == pytest.approx(1 / 200)

    def test_memory_does_not_grow_with_the_trace(self) -> None:
        def peak(count: int) -> int:
            tracemalloc.start()
            try:
                tallied_from(record(100 * n / count) for n in range(count))
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        assert peak(20_000) < 1.05 * peak(1_000)


def tallied_from(records: Iterator[Record]) -> Tally:
    return tally(records, begin_s=0.0, end_s=100.0, servers=2, long_prompt=1000, slo=SLO)


def noisy(seed: int, slower: float = 1.0, count: int = 2000) -> Tally:
    rng = random.Random(seed)
    return tallied([record(100 * n / count, slower * rng.lognormvariate(0, 0.5)) for n in range(count)])


class TestComparison:
    def test_equal_runs_differ_by_nothing(self) -> None:
        for row in compare([noisy(1), noisy(1)]):
            if row.measure.name == "ttft_long_p99":
                assert isnan(row.cells[1].value)
                continue
            assert row.cells[1].difference == Difference(0.0, 0.0, 0.0), row.measure.name
            assert not row.cells[1].difference.sure

    def test_what_is_slower_is_found_to_be(self) -> None:
        row = next(row for row in compare([noisy(1), noisy(2, 1.2)]) if row.measure.name == "ttft_p90")
        found = row.cells[1].difference
        assert found is not None and found.sure
        assert found.low < 0.2 < found.high and found.high - found.low < 0.3
        assert wording.is_better(found, row.measure) is False

    def test_the_interval_covers_what_chance_does(self) -> None:
        """Two halves of one kind of traffic: of 40 pairs about two may be told apart wrongly."""
        wrong = 0
        for seed in range(40):
            rows = compare([noisy(seed, count=400), noisy(1000 + seed, count=400)])
            found = next(row for row in rows if row.measure.name == "ttft_mean").cells[1].difference
            wrong += found is not None and found.sure
        assert wrong <= 6

    def test_shares_differ_in_points(self) -> None:
        one = tallied([record(n, cached_tokens=40) for n in range(100)])
        other = tallied([record(n, cached_tokens=50) for n in range(100)])
        row = next(row for row in compare([one, other]) if row.measure.name == "hit")
        assert row.cells[1].difference is not None
        assert row.cells[1].difference.value == pytest.approx(0.1)
        assert wording.difference(row.cells[1].difference, row.measure) == "+10.0 points (+10.0 … +10.0)"
        assert wording.is_better(row.cells[1].difference, row.measure) is True

    def test_every_measure_has_a_name_of_its_own(self) -> None:
        assert len(MEASURES) == 16 and all(re.fullmatch(r"\w+", name) for name in MEASURES)


class TestConditions:
    @pytest.mark.parametrize(
        "text, bound, is_difference, in_parts",
        [
            ("ttft_p90 > +5%", 0.05, True, True),
            ("ttft_p90>-5%", -0.05, True, True),
            ("ttft_p90 >= 800ms", 0.8, False, False),
            (" ttft_p99 > 1.5s ", 1.5, False, False),
            ("ttft_p50 > +20ms", 0.02, True, False),
            ("hit < -2%", -0.02, True, False),
            ("attained < 99%", 0.99, False, False),
            ("attained < .99", 0.99, False, False),
            ("refused > 0", 0.0, False, False),
            ("spread > 1.2", 1.2, False, False),
            ("spread > +10%", 0.1, True, True),
            ("goodput < -1", -1.0, True, False),
        ],
    )
    def test_are_read(self, text: str, bound: float, is_difference: bool, in_parts: bool) -> None:
        got = conditions.parse(text)
        assert got.bound == pytest.approx(bound)
        assert (got.is_difference, got.in_parts) == (is_difference, in_parts)

    @pytest.mark.parametrize(
        "text, says",
        [
            ("ttft_p90", "is no condition: expected a measure"),
            ("ttft_p90 => 5%", "is no condition"),
            ("ttft_p90 > 5 %%", "is no condition"),
            ("tfft_p90 > +5%", "did you mean ttft_p90?"),
            ("ttft_p90 > 5", "is a time; give ms or s"),
            ("ttft_p90 > 5%", r"must be a difference: \+5% or -5%"),
            ("hit > 5ms", "hit is no time"),
            ("spread > 5%", "spread is no share"),
        ],
    )
    def test_mistakes_are_explained(self, text: str, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            conditions.parse(text)

    def test_hold_or_not(self) -> None:
        rows = compare([noisy(1), noisy(1, 1.2)])
        for text, holds in (
            ("ttft_p90 > +5%", True),
            ("ttft_p90 > +30%", False),
            ("ttft_mean > +100ms", True),
            ("ttft_mean > 1.2s", True),
            ("ttft_mean > 2s", False),
            ("hit < -1%", False),
            ("hit < 41%", True),
            ("ttft_long_p99 > 0s", False),
        ):
            assert conditions.parse(text).holds(rows, 1) is holds, text


class TestWording:
    def test_numbers(self) -> None:
        assert wording.value(0.0316, Unit.SECONDS) == "31.6 ms"
        assert wording.value(12.34, Unit.SECONDS) == "12.3 s"
        assert wording.value(1234.0, Unit.SECONDS) == "1,234 s"
        assert wording.value(nan, Unit.SHARE) == "–"
        measure = MEASURES["ttft_p90"]
        assert wording.difference(Difference(-0.0001, -0.05, 0.02), measure) == "0.0 % (−5.0 … +2.0)"


# --- the commands ----------------------------------------------------------------------------------------------------


def mooncake(path: Path, count: int = 120, rate: float = 4.0) -> Path:
    rng = random.Random(1)
    at_s = 0.0
    with path.open("w") as file:
        for number in range(count):
            at_s += rng.expovariate(rate)
            group = rng.randrange(5)
            ids = [group * 10, group * 10 + 1, 1000 + number]
            file.write(
                f'{{"timestamp": {round(at_s * 1000)}, "input_length": 1500, "output_length": 20, "hash_ids": {ids}}}\n'
            )
    return path


def replay(*args: object) -> Result:
    return CliRunner().invoke(commands.replay, [str(one) for one in args])


SMALL = ("--replicas", 2, "--seeds", 1, "--processes", 1)


class TestReplay:
    def test_side_by_side_with_a_report(self, tmp_path: Path) -> None:
        log, report = mooncake(tmp_path / "log.jsonl"), tmp_path / "report.html"
        result = replay(log, "--config", "default", "--config", LEAST, "--report", report, *SMALL)
        assert result.exit_code == 0, result.output
        assert "a trace of 120 requests" in result.output and "2 × Llama-3.1-8B@H100" in result.output
        for name in MEASURES:
            assert re.search(rf"\b{name}\b.*\d.*…", result.output), name
        page = report.read_text()
        assert page.count("<svg") == 3 and "least-loaded" in page and "scorer" in page
        assert not re.search(r'(src|href)="(?!#|data:)|@import|url\((?!#)', page)

    def test_fails_where_a_condition_holds(self, tmp_path: Path) -> None:
        log = mooncake(tmp_path / "log.jsonl")
        pair = ("--config", "default", "--config", LEAST, *SMALL)
        good = replay(log, *pair, "--fail-if", "refused > 0", "--fail-if", "ttft_p90 > 60s")
        assert good.exit_code == 0 and good.output.count("ok     ") == 2
        bad = replay(log, *pair, "--fail-if", "refused > 0", "--fail-if", "hit < 99%")
        assert bad.exit_code == 1 and "FAILED hit < 99%  least-loaded:" in bad.output

    def test_is_its_seeds(self, tmp_path: Path) -> None:
        log = mooncake(tmp_path / "log.jsonl")
        assert replay(log, *SMALL).output == replay(log, *SMALL).output

    def test_a_broken_log_is_named_by_line_before_anything_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(options, "run_all", lambda *args: pytest.fail("it ran"))
        log = mooncake(tmp_path / "log.jsonl")
        with log.open("a") as file:
            file.write('{"timestamp": 1, "hash_ids": [1]}\n')
        result = replay(log, *SMALL)
        assert result.exit_code == 2
        assert f"{log}:121: beside hash_ids, input_length and output_length are needed" in result.output

    @pytest.mark.parametrize(
        "args, says",
        [
            (("--config", "no.yaml"), "--config no.yaml cannot be read: No such file"),
            (("--config", LEAST, "--config", LEAST), "--config is given twice"),
            (("--profile", "h100"), "there is no profile 'h100'; known: 2xh100-qwen32b, 4xh100-llama70b, a100-llama8b"),
            (("--fail-if", "ttft_p90 > +5%"), "needs a second --config"),
            (("--fail-if", "ttft > +5%"), "there is no measure 'ttft'"),
            (("--profile", "h100-lama8b"), "did you mean h100-llama8b?"),
            (("--refresh-metrics-interval", "soon"), "soon"),
            (("--refresh-metrics-interval", "0s"), "0s is shorter than 50ms"),
            (("--speed", "nan"), "'nan' is no number above 0"),
            (("--fail-if", "TTFT-P90 > 1s"), "did you mean ttft_p90?"),
            (("--fail-if", "hit < 2"), "hit is a share; write 2%"),
            (("--fail-if", "hit < 2%, refused > 0"), "repeat --fail-if for another"),
            (("--report", "/no/such/place/report.html"), "there is no directory /no/such/place"),
        ],
    )
    def test_wrong_usage_is_explained(self, tmp_path: Path, args: Sequence[str], says: str) -> None:
        result = replay(mooncake(tmp_path / "log.jsonl", 5), *args)
        assert result.exit_code == 2 and says in " ".join(result.output.split()), result.output

    def test_a_configuration_with_a_mistake(self, tmp_path: Path) -> None:
        config = tmp_path / "c.yaml"
        config.write_text("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: qeue-scorer}]\n")
        result = replay(mooncake(tmp_path / "log.jsonl", 5), "--config", config)
        assert result.exit_code == 2 and "c.yaml:3" in result.output and "queue-scorer" in result.output

    def test_a_plugin_that_fails_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = tmp_path / "c.yaml"
        config.write_text(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
            "plugins: [{type: 'tests.unit.test_replay:Failing', name: mine}]\n"
            "schedulingProfiles: [{name: default, plugins: [{pluginRef: mine}]}]\n"
        )
        result = replay(mooncake(tmp_path / "log.jsonl", 5), "--config", config, *SMALL)
        assert result.exit_code == 2 and "Error: c failed in the replay: ZeroDivisionError" in result.output

    def test_the_first_requests_only(self, tmp_path: Path) -> None:
        result = replay(mooncake(tmp_path / "log.jsonl"), "--first", 50, *SMALL)
        assert "a trace of 50 requests" in result.output

    def test_other_formats(self, tmp_path: Path) -> None:
        azure = tmp_path / "azure.csv"
        azure.write_text(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            + "".join(f"2023-11-16 18:17:{n:02}.0000000,{500 + n},{9}\n" for n in range(30))
        )
        result = replay(azure, *SMALL)
        assert result.exit_code == 0 and "lengths without text of 30 requests" in result.output
        openai = tmp_path / "openai.jsonl"
        chat = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello " * 200}]}
        openai.write_bytes(b"".join(msgspec.json.encode(chat) + b"\n" for _ in range(30)))
        result = replay(openai, *SMALL)
        assert result.exit_code == 0 and "a trace of 30 requests over 29.0 seconds" in result.output


class Failing:
    def score(self, request: object, candidates: object) -> object:
        return 1 / 0


class TestDecisionLog:
    def log(self, path: Path, first: int, count: int, *, tokens: int = 700) -> Path:
        lines: list[Line] = [
            Run(run="a", started="2026-01-01T00:00:00Z", pool="p", block_bytes=256),
            Members({0: "10.0.0.1:80", 1: "10.0.0.2:80", 2: "10.0.0.3:80"}),
        ]
        for number in range(first, first + count):
            blocks = b"".join(value.to_bytes(6, "little") for value in (*range(7), 1000 + number))
            lines.append(
                Decision(
                    request=number,
                    arrived_s=number / 4,
                    decided_s=number / 4,
                    model="m",
                    prompt_bytes=2048,
                    fingerprints=blocks,
                    picked=0,
                )
            )
            lines.append(
                Ending(
                    request=number,
                    ended_s=number / 4 + 2,
                    status=200,
                    ttft_s=0.25,
                    prompt_tokens=tokens,
                    cached_tokens=350,
                    output_tokens=20,
                )
            )
        path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        return path

    def test_parts_are_one_log_and_what_was_recorded_is_shown(self, tmp_path: Path) -> None:
        older, newer = self.log(tmp_path / "d.1", 1, 40), self.log(tmp_path / "d", 41, 40)
        result = replay(older, newer, "--seeds", 1, "--processes", 1)
        assert result.exit_code == 0, result.output
        assert "a decision log of 80 requests over 19.8 seconds" in result.output
        assert "on 3 × Llama-3.1-8B@H100" in result.output
        assert re.search(r"ttft_p90\s+25\d ms", result.output) and re.search(r"hit\s+50.0 %", result.output)

    def test_tokens_are_as_large_as_servers_counted_them(self, tmp_path: Path) -> None:
        source = survey([self.log(tmp_path / "d", 1, 20, tokens=640)])
        assert source.tokens_per_byte == pytest.approx(640 / 2048)
        assert {one.prompt_tokens for one in source.requests()} == {640}
        assert source.servers == 3 and source.main_model == "m"

    def test_priorities_are_replayed(self, tmp_path: Path) -> None:
        """Below 0 a request is refused where the pool is full; one that has to wait at 0 is not."""
        config = tmp_path / "c.yaml"
        config.write_text(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
            "plugins: [{type: queue-scorer}, {type: concurrency-detector, parameters: {maxConcurrency: 1}}]\n"
            "saturationDetector: {pluginRef: concurrency-detector}\n"
            "schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer}]}]\n"
        )
        refused = {}
        for priority in (0, -1):
            log = tmp_path / f"d{priority}"
            lines = [msgspec.json.decode(line, type=Line) for line in self.log(log, 1, 40).read_bytes().splitlines()]
            changed = [
                msgspec.structs.replace(one, priority=priority, arrived_s=1.0 + number / 1e3)
                if isinstance(one, Decision)
                else one
                for number, one in enumerate(lines)
            ]
            log.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in changed))
            output = replay(log, "--config", config, "--seeds", 1, "--processes", 1).output
            (found,) = re.findall(r"refused\s+([\d.]+) %", output)
            refused[priority] = float(found)
        assert refused[0] == 0 and refused[-1] > 50

    def test_other_traces_come_in_one_file(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="only a decision log may come in several files"):
            survey([mooncake(tmp_path / "a"), mooncake(tmp_path / "b")])

    def test_parts_of_a_source_are_traces_of_their_own(self, tmp_path: Path) -> None:
        source = survey([self.log(tmp_path / "d", 1, 20)])
        part = source.part(12, 4)
        assert [one.at_s for one in part.requests()] == pytest.approx([0, 0.25, 0.5, 0.75])
        assert (part.count, part.span_s) == (4, 0.75)
        # The last block of each is its number's own.
        assert [one.blocks[-1] for one in part.part(1, 2).requests()] == [1014, 1015]

    def test_a_log_without_a_prompt(self, tmp_path: Path) -> None:
        path = tmp_path / "d"
        path.write_bytes(msgspec.json.encode(Run(run="a", started="2026-01-01T00:00:00Z", pool="p", block_bytes=256)))
        with pytest.raises(TraceError, match="no request in it that has a prompt"):
            survey([path])


class TestServers:
    def test_kinds_in_turn(self) -> None:
        names = [one.name for one in pool("h100-llama8b, a100-llama8b", 3)]
        assert names == ["Llama-3.1-8B@H100", "Llama-3.1-8B@A100-80", "Llama-3.1-8B@H100"]

    @pytest.mark.parametrize("name", SHORT)
    def test_every_name_is_a_server(self, name: str) -> None:
        assert pool(name, 1) == pool(SHORT[name], 1)


class TestCommandLine:
    def test_the_commands_are_listed_and_help_reads(self) -> None:
        listed = CliRunner().invoke(cli.cli, ["--help"]).output
        assert "replay   Replay a log" in listed
        text = CliRunner().invoke(commands.replay, ["--help"], terminal_width=100).output
        assert max(map(len, text.splitlines())) <= 100 and "--fail-if CONDITION" in text

    def test_what_is_missing_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*args: object, **named: object) -> None:
            raise ModuleNotFoundError("No module named 'rich'", name="rich.table")

        monkeypatch.setattr(commands.replay, "main", missing)
        result = CliRunner().invoke(cli.cli, ["replay", "log", "--config", "x"])
        assert result.exit_code == 2
        assert "epp replay needs the routing lab: pip install 'epp[lab]' (rich.table is missing)" in result.output


class TestOnAScreen:
    def rows(self, count: int) -> tuple[list[str], tuple[Row, ...]]:
        return [f"policy-{n}" for n in range(count)], compare([noisy(n) for n in range(count)])

    @pytest.mark.parametrize("width", [40, 80, 120, 200])
    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_no_number_is_cut_off_however_narrow_it_is(self, count: int, width: int) -> None:
        names, rows = self.rows(count)
        out = io.StringIO()
        recorded = Recorded((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 0.5)
        display.show(Console(file=out, width=width), rows, names, recorded)
        said = " ".join(out.getvalue().split())
        assert all(name in said for name in names) and "as recorded" in said
        for row in rows:
            for cell in row.cells:
                assert wording.value(cell.value, row.measure.unit) in said
                if cell.difference is not None:
                    assert wording.difference(cell.difference, row.measure) in said

    def test_a_pipeline_hears_now_and_then_how_far_it_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        with display.progress("replaying", 1_000_000) as tell:
            for done in range(0, 1_000_001, 50):
                tell(done)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 10 and said[2] == "replaying: 300,000 of 1,000,000 requests"
        with display.progress("reading", 10_000) as tell:
            tell(10_000)
        assert capsys.readouterr().err == ""
