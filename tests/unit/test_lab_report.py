"""From runs to findings: knees, estimates, verdicts, and a page that needs nothing else."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.lab.cells import SETS, VARIATIONS, WORKLOADS, Cell, scene
from bench.lab.contenders import CONTENDERS, DEFAULT
from bench.lab.heats import close, is_heat, qualified, starters
from bench.lab.knee import bisect, expected, key
from bench.lab.markdown import limits, misses, overall, plain_cells, requirements, varied_cells
from bench.lab.oracle import GREEDY, POOLED, Bound
from bench.lab.outcome import Estimate, Standing, by_cell, estimate, levels, numbers, ratio, standings
from bench.lab.record import Outcome, Record
from bench.lab.report import Findings, joined, read, write
from bench.lab.running import Job, Result, jobs, knee_key, run
from bench.lab.scene import server
from bench.lab.summary import Slo, summarise, usual_slo
from bench.lab.traces import names, taken, trace
from bench.lab.validation import Line
from bench.lab.verdict import BLEND, verdicts

SLO = Slo(first_s=1.0, per_prompt_token_s=0.001, per_square_s=0.0, per_token_s=0.05)


def record(number: int, **changes: object) -> Record:
    one = Record(
        id=str(number),
        at_s=float(number),
        prompt_tokens=100 + number,
        output_tokens=11,
        model="",
        tenant=f"t{number % 2}",
        outcome=Outcome.DONE,
        server=number % 2,
        picked_s=float(number),
        ttft_s=0.1 * (number + 1),
        e2e_s=0.1 * (number + 1) + 0.2,
        cached_tokens=20,
        available_tokens=40,
    )
    return msgspec.structs.replace(one, **changes)


class TestSummary:
    def test_numbers_by_hand(self) -> None:
        got = summarise([record(number) for number in range(10)], 2, SLO, warm_up=0.0)
        assert got.ttft.p50 == pytest.approx(0.55)
        assert got.ttft.mean == pytest.approx(0.55)
        assert got.e2e.p90 == pytest.approx(0.91 + 0.2)
        assert got.longest_ttft.p50 == pytest.approx(1.0)
        assert got.per_token_s.p99 == pytest.approx(0.02)
        assert got.tenant_ttft_p90_s["t0"] == pytest.approx(0.1 + 0.8 * 0.9)
        assert got.captured == pytest.approx(0.5)
        assert got.hit == pytest.approx(200 / 1045)
        assert got.duration_s == 9.0
        assert got.attained == 1.0
        assert got.goodput_rps == pytest.approx(10 / 9)
        assert got.request_spread == 1.0
        assert got.token_spread == pytest.approx(425 / 422.5)
        assert got.work_spread == pytest.approx((425 + 5 * 12 * 11) / (422.5 + 5 * 12 * 11))

    def test_the_warm_up_is_left_out_and_the_lost_count_against_the_slo(self) -> None:
        records = [record(number) for number in range(8)]
        records += [record(8, outcome=Outcome.LOST, e2e_s=math.nan), record(9, outcome=Outcome.REFUSED, server=-1)]
        got = summarise(records, 2, SLO, warm_up=0.5)
        assert (got.requests, got.lost, got.refused) == (5, 1, 1)
        assert got.attained == pytest.approx(0.6)
        assert got.ttft.p50 == pytest.approx(0.7)

    def test_slow_tokens_and_late_first_tokens_miss_the_slo(self) -> None:
        assert SLO.holds(record(1))
        assert not SLO.holds(record(1, e2e_s=1.0))
        assert not SLO.holds(record(1, ttft_s=1.2, e2e_s=1.3))
        assert SLO.holds(record(1, prompt_tokens=300, ttft_s=1.2, e2e_s=1.3))

    def test_the_usual_slo_is_kept_by_an_idle_server_however_long_the_prompt(self) -> None:
        profile = server("Llama-3.1-8B@H200")
        slo, latency = usual_slo(profile), profile.latency()
        for tokens in (8192, 20_000, 400_000):
            chunks = [(s, min(8192, tokens - s)) for s in range(0, tokens, 8192)]
            idle_s = sum(latency.step_s(n, (s + n) ** 2 - s**2, 1, 0, 0) for s, n in chunks)
            allowed_s = slo.first_s + (slo.per_prompt_token_s + slo.per_square_s * tokens) * tokens
            assert 0.98 + 2.4 * idle_s < allowed_s < 1.05 + 3.6 * idle_s

    def test_nothing_has_no_summary(self) -> None:
        with pytest.raises(ValueError, match="without requests"):
            summarise([], 2, SLO)


class TestKnee:
    @given(st.floats(0.02, 500.0), st.floats(0.5, 2.0), st.floats(1.2, 2.0))
    def test_it_is_found_to_three_percent_wherever_one_begins(self, knee: float, begin: float, stride: float) -> None:
        found = bisect(lambda speed: speed <= knee, begin, stride=stride)
        assert knee / 1.031 <= found <= knee

    def test_it_is_expected_in_proportion_to_the_servers(self) -> None:
        workload = WORKLOADS["root"]
        knees = {key(workload, 8): 4.0, key(workload, 4): 3.0}
        assert expected(workload, 16, knees) == 8.0
        assert expected(workload, 8, knees) == 6.0
        assert expected(WORKLOADS["groups"], 16, knees) is None

    def test_what_never_holds_has_none(self) -> None:
        assert bisect(lambda speed: False) == 0.0

    def test_what_always_holds_is_no_measurement(self) -> None:
        with pytest.raises(ValueError, match="too short"):
            bisect(lambda speed: True)


class TestCells:
    def test_every_cell_of_every_set_can_be_run(self) -> None:
        for cells in SETS.values():
            assert len(set(cells())) == len(cells())
            for cell in cells():
                assert cell.variation in VARIATIONS
        requests = list(taken(trace("root"), 10, 1.0))
        for variation in VARIATIONS:
            around = scene(Cell(trace="root", servers=9, load=1.0, variation=variation), 1, requests)
            assert len(around.servers) == 9

    def test_every_trace_has_its_servers(self) -> None:
        assert set(WORKLOADS) == set(names())

    @pytest.mark.parametrize("contender", CONTENDERS)
    def test_every_contender_runs_and_gets_over_the_loss_of_a_server(self, contender: str) -> None:
        cell = Cell(trace="adapters", servers=2, load=1.0, variation="loss")
        summary = run(Job(cell, 1, contender, 1.0)).summary
        assert summary.requests == 400
        assert summary.refused == 0
        assert summary.ttft.p99 < 120.0

    def test_a_run_that_fails_says_which(self) -> None:
        cell = Cell(trace="adapters", servers=2, load=1.0, variation="nonsense")
        with pytest.raises(RuntimeError, match=r"epp in adapters × 2, load 1, nonsense, seed 1: KeyError"):
            run(Job(cell, 1, DEFAULT, 1.0))


class TestHeats:
    heat = Cell(trace="root", servers=8, load=0.8)
    further = Cell(trace="root", servers=4, load=0.5)

    def test_who_was_far_behind_in_the_heats_runs_no_further(self) -> None:
        p90_s = {DEFAULT: 9.0, BLEND: 9.0, "least request": 9.0, "LMETRIC": 1.0, "Llumnix": 1.1, "random": 1.3}
        found = [standing(self.heat, name, ttft_p90=value) for name, value in p90_s.items()]
        found.append(standing(self.further, "random", ttft_p90=0.1))
        worth = qualified(by_cell(found))
        assert worth == {"root": {DEFAULT, BLEND, "least request", "LMETRIC", "Llumnix"}}
        assert starters(self.further, ["random", "Llumnix"], worth) == ["Llumnix"]
        crowd = [standing(self.heat, f"{number}", ttft_p90=1.0 + 0.01 * number) for number in range(12)]
        assert qualified(by_cell(crowd))["root"] == {DEFAULT, BLEND, "least request", *"012345"}
        elsewhere = msgspec.structs.replace(self.further, trace="groups")
        assert starters(elsewhere, ["random", "Llumnix"], worth) == ["random", "Llumnix"]

    def test_further_seeds_are_for_those_who_were_close(self) -> None:
        p90_s = {DEFAULT: 9.0, "LMETRIC": 1.0, "Llumnix": 1.29, "random": 1.31}
        (found,) = by_cell([standing(self.heat, name, ttft_p90=value) for name, value in p90_s.items()]).values()
        assert close(found) == {DEFAULT, "LMETRIC", "Llumnix"}
        assert close({}) == {DEFAULT}

    def test_the_go_picker_does_not_start_in_lean_mode(self) -> None:
        lean = msgspec.structs.replace(self.heat, variation="lean")
        assert starters(lean, [DEFAULT, BLEND, "Go picker, sticky"], {}) == [DEFAULT]

    def test_jobs_are_of_those_who_start(self) -> None:
        found = jobs([self.heat, self.further], [1, 2], lambda cell: ["a", "b"] if is_heat(cell) else ["b"])
        assert [(job.cell, job.seed, job.contender) for job in found] == [
            *((self.further, seed, "b") for seed in (1, 2)),
            *((self.heat, seed, name) for seed in (1, 2) for name in "ab"),
        ]


class TestOutcome:
    def test_an_estimate_by_hand(self) -> None:
        assert estimate([1.0, 2.0, 3.0]) == Estimate(2.0, 2.484)
        assert estimate([5.0]) == Estimate(5.0, 0.0)
        with pytest.raises(ValueError, match="nothing"):
            estimate([])

    def test_runs_of_one_cell_come_together(self) -> None:
        cell = Cell(trace="root", servers=2, load=1.0)
        summaries = [summarise([record(n, ttft_s=t) for n in range(10)], 2, SLO) for t in (0.1, 0.3)]
        results = [Result(Job(cell, seed, "x", 1.0), one, 0.0) for seed, one in enumerate(summaries)]
        (standing,) = standings(results)
        assert (standing.contender, standing.seeds) == ("x", 2)
        assert standing.mean("ttft_p90") == pytest.approx(0.2)

    def test_two_contenders_are_compared_seed_by_seed(self) -> None:
        cell = Cell(trace="root", servers=2, load=1.0)
        found = {("x", 1): 0.1, ("x", 2): 0.4, ("y", 1): 0.2, ("y", 2): 0.8, ("z", 3): 0.5}
        results = [
            Result(Job(cell, seed, name, 1.0), summarise([record(n, ttft_s=t) for n in range(10)], 2, SLO), 0.0)
            for (name, seed), t in found.items()
        ]
        x, y, z = standings(results)
        assert ratio(x, y, "ttft_p90") == Estimate(0.5, 0.0)
        assert ratio(y, z, "ttft_p90") == Estimate(1.0, 0.0)

    def test_who_ran_fewer_seeds_stands_where_those_put_it(self) -> None:
        cell = Cell(trace="root", servers=2, load=1.0)
        found = {("x", 1): 0.1, ("x", 2): 0.4, ("y", 1): 0.2, ("y", 2): 0.8, ("z", 1): 0.12}
        results = [
            Result(Job(cell, seed, name, 1.0), summarise([record(n, ttft_s=t) for n in range(10)], 2, SLO), 0.0)
            for (name, seed), t in found.items()
        ]
        (contenders,) = by_cell(standings(results)).values()
        assert contenders["z"].mean("ttft_p90") == 0.12
        assert levels(contenders) == pytest.approx({"x": 0.25, "y": 0.5, "z": 0.3})
        assert levels({}) == {}

    def test_what_was_never_measured_is_left_out(self) -> None:
        refused = summarise([record(1, outcome=Outcome.REFUSED, server=-1)], 2, SLO, warm_up=0.0)
        assert "ttft_p90" not in numbers(refused)
        assert numbers(refused)["refused"] == 1.0


def standing(cell: Cell, contender: str, **means: float) -> Standing:
    usual = {
        "ttft_p90": 1.0,
        "longest_ttft_p99": 1.0,
        "work_spread": 1.0,
        "captured": 1.0,
        "goodput_rps": 1.0,
        "hit": 0.5,
    }
    return Standing(cell, contender, 1, {name: Estimate(value) for name, value in {**usual, **means}.items()})


class TestVerdicts:
    def failures(self, *found: Standing) -> dict[int, int]:
        return {number: len(one.failed) for number, one in enumerate(verdicts(by_cell(found))) if one.failed}

    def test_each_requirement_sees_what_it_asks_for(self) -> None:
        groups = Cell(trace="groups", servers=8, load=1.3)
        blind = Cell(trace="groups", servers=8, load=1.3, variation="no metrics")
        half, lean = (msgspec.structs.replace(groups, variation=variation) for variation in ("half speed", "lean"))
        plain = standing(groups, DEFAULT)
        assert self.failures(plain, standing(groups, "LMETRIC", ttft_p90=0.99)) == {}
        assert self.failures(plain, standing(groups, "LMETRIC", ttft_p90=0.9)) == {0: 1}
        assert self.failures(plain, standing(groups, BLEND, ttft_p90=1.3)) == {1: 1}
        assert self.failures(plain, standing(groups, BLEND, ttft_p90=1.5)) == {}
        assert self.failures(plain, standing(groups, "least request", longest_ttft_p99=0.8)) == {2: 1}
        assert self.failures(standing(blind, DEFAULT, work_spread=1.3)) == {3: 1}
        assert self.failures(standing(half, DEFAULT, work_spread=1.3)) == {}
        assert self.failures(standing(groups, DEFAULT, captured=0.9)) == {4: 1}
        assert self.failures(plain, standing(half, DEFAULT, goodput_rps=0.85)) == {}
        assert self.failures(plain, standing(half, DEFAULT, goodput_rps=0.8)) == {5: 1}
        assert self.failures(plain, standing(lean, DEFAULT, ttft_p90=1.05)) == {6: 1}

    def test_work_is_as_even_as_that_of_others_who_find_as_much_cached(self) -> None:
        cell = Cell(trace="sessions", servers=8, load=0.8)
        uneven = standing(cell, DEFAULT, work_spread=1.5)
        sticky, loose = standing(cell, "LMETRIC", work_spread=1.6), standing(cell, "Llumnix", work_spread=1.1, hit=0.4)
        assert self.failures(uneven, sticky, loose) == {}
        assert self.failures(uneven, sticky, msgspec.structs.replace(loose, numbers=sticky.numbers)) == {}
        assert self.failures(uneven, loose) == {3: 1}
        assert self.failures(uneven, standing(cell, "Llumnix", work_spread=1.4)) == {3: 1}

    def test_a_miss_within_the_interval_is_none_for_sure(self) -> None:
        cell = Cell(trace="root", servers=8, load=1.3)

        def of(name: str, *p90_s: float) -> Standing:
            one = standing(cell, name, ttft_p90=sum(p90_s) / len(p90_s))
            return msgspec.structs.replace(one, seeds=len(p90_s), runs={"ttft_p90": dict(enumerate(p90_s))})

        for p90_s, sure in (((1.0, 1.1, 1.2), False), ((1.10, 1.101, 1.102), True)):
            (miss,) = verdicts(by_cell([of(DEFAULT, *p90_s), of("LMETRIC", 1.0, 1.0, 1.0)]))[0].failed
            assert miss.value == pytest.approx(sum(p90_s) / 3, rel=1e-3)
            assert miss.surely_missed is sure
        # Who ran but one seed, being far behind, is no measure beside who ran them all; alone it shows how far.
        ours, slow = of(DEFAULT, 1.0, 1.0, 1.0), of("random", 0.5)
        (check,) = verdicts(by_cell([ours, slow, of("LMETRIC", 2.0, 2.0, 2.0)]))[0].checks
        assert check.value == 0.5
        (check,) = verdicts(by_cell([ours, slow]))[0].checks
        assert check.value == 2.0

    def test_the_worst_miss_is_named_first(self) -> None:
        cells = [Cell(trace="groups", servers=8, load=load) for load in (0.5, 1.0)]
        found = [standing(cell, DEFAULT, captured=value) for cell, value in zip(cells, (0.9, 0.5), strict=True)]
        assert [one.value for one in verdicts(by_cell(found))[4].failed] == [0.5, 0.9]


class TestMarkdown:
    plain = Cell(trace="root", servers=8, load=1.3)
    small, lean = (
        msgspec.structs.replace(plain, servers=4),
        msgspec.structs.replace(plain, variation="lean"),
    )

    def table(self) -> dict[Cell, dict[str, Standing]]:
        found: list[Standing] = []
        for cell in (self.plain, self.small, self.lean):
            for name, p90_s in ((DEFAULT, (1.0, 2.0)), ("LMETRIC", (2.0, 2.0))):
                one = standing(cell, name, ttft_p90=sum(p90_s) / 2)
                found.append(msgspec.structs.replace(one, seeds=2, runs={"ttft_p90": dict(enumerate(p90_s, 1))}))
        return by_cell(found)

    def test_plain_cells_stand_beside_their_best_rival(self) -> None:
        _, _, row = plain_cells(self.table())
        assert row.startswith("| root | 1.3 | 1.5 | 2 (LMETRIC) | **0.75 ± 3** | – |")

    def test_what_differs_is_a_row_and_a_trace_a_column(self) -> None:
        head, _, *rows = varied_cells(self.table())
        assert head == "| what differs | root |"
        assert rows == ["| 4 servers | 1.3: 0.75 ± 3 |", "| lean | 1.3: 0.75 ± 3 |"]

    def test_all_cells_in_one_number_are_the_geometric_mean_beside_the_best_rival_of_each(self) -> None:
        table = self.table()
        table[self.small]["Llumnix"] = standing(self.small, "Llumnix", ttft_p90=8.0)
        table[self.lean][DEFAULT] = standing(self.lean, DEFAULT, ttft_p90=6.0)
        table[self.lean]["LMETRIC"] = standing(self.lean, "LMETRIC", ttft_p90=2.0)
        # Ours 0.75, 0.75 and 3.
        assert list(overall(table))[2:] == [
            "| LMETRIC | 3 | 1.00 |",
            f"| {DEFAULT} | 3 | 1.19 |",
            "| Llumnix | 1 | 4.00 |",
        ]
        del table[self.plain]["LMETRIC"], table[self.small][DEFAULT], table[self.lean]["LMETRIC"]
        assert list(overall(table))[2:] == []

    def test_requirements_name_the_worst_and_misses_all(self) -> None:
        table = self.table()
        table[self.lean][DEFAULT] = standing(self.lean, DEFAULT, ttft_p90=3.0)
        found = verdicts(table)
        first = list(requirements(found))[2]
        assert first.startswith("| p90 TTFT within 2 %")
        assert "| 3 | 2 | 1, 0 | 1.5 where 1.02 is the bound: root × 8, load 1.3, lean |" in first
        slow, fast = (
            Bound(self.plain, name, 1, *[Estimate(value)] * 3) for name, value in ((GREEDY, 1.2), (POOLED, 0.3))
        )
        assert list(limits(table, [slow, fast]))[2] == f"| {self.plain} | 1 | 2 (LMETRIC) | 1.2 | 0.3 | 0.83 |"
        assert len([line for line in misses(found) if "1.5 (1.02): root × 8, load 1.3, lean" in line]) == 1


class TestReport:
    def test_what_was_run_again_replaces_what_was_there_and_the_rest_is_kept(self) -> None:
        cells = [Cell(trace="groups", servers=8, load=load) for load in (0.5, 1.0)]
        cells.append(Cell(trace="root", servers=8, load=1.0))
        knees = {knee_key(cell): 2.0 for cell in cells}
        everyone = [standing(cell, name) for cell in cells for name in (DEFAULT, BLEND)]
        before = Findings(cells="quick", seeds=2, standings=everyone, knees=knees, validation=[])
        again = [standing(cell, DEFAULT, ttft_p90=0.5) for cell in cells[:2]]
        after = msgspec.structs.replace(before, standings=again)
        found = {(one.cell, one.contender): one.mean("ttft_p90") for one in joined(before, after).standings}
        assert len(found) == 6
        assert [found[cell, DEFAULT] for cell in cells] == [0.5, 0.5, 1.0]
        moved = msgspec.structs.replace(after, knees={knee_key(cells[0]): 3.0})
        kept = {one.cell for one in joined(before, moved).standings if one.contender == BLEND}
        assert kept == {cells[2]}
        assert joined(before, msgspec.structs.replace(after, seeds=3)).standings == again

    def test_what_is_written_can_be_read_and_stands_alone(self, tmp_path: Path) -> None:
        cells = [Cell(trace="groups", servers=8, load=load) for load in (0.5, 1.0)]
        cells.append(Cell(trace="groups", servers=8, load=1.0, variation="lean"))
        found = [
            standing(cell, name, ttft_p90=0.1 * (1 + index), ttft_p50=0.1)
            for cell in cells
            for index, name in enumerate((DEFAULT, BLEND, "<Tom & Jerry>"))
        ]
        line = Line("prefill", "a blog", "tokens/s", 100.0, 90.0)
        findings = Findings(cells="quick", seeds=1, standings=found, knees={"groups": 1.5}, validation=[line])
        written = write(findings, tmp_path)
        assert {path.name for path in written} == {
            "lab.json",
            "lab-ranking.png",
            "lab-load.png",
            "lab-cells.png",
            "lab-variations.png",
            "lab.html",
        }
        assert read(tmp_path / "lab.json") == findings
        page = (tmp_path / "lab.html").read_text()
        assert page.count("<svg") == 3
        assert not re.search(r'(src|href)="(?!#|data:)|@import|url\((?!#)', page)
        assert "in 3 of 3 cells; the next in that, " in page and f"{BLEND} 2.00 times" in page
        assert "bear on it meets 5 in all of them" in page
        assert "&lt;Tom &amp; Jerry&gt;" in page
        assert "-10.0%" in page
