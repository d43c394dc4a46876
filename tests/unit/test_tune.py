"""Tuning: which numbers are searched, what is kept of a file, what counts as better, and that a gain has to hold."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.replay import commands, tuning
from bench.replay.knobs import Knob, knobs, turned
from bench.replay.options import candidates_of, setting_of
from bench.replay.search import Trial, changes, chosen, frontier, search
from epp.configuration import load
from tests.unit.test_replay import mooncake

TEXT = """\
# For µ-benchmarks: a comment that stays.
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-affinity-filter
  name: sticky
  parameters:
    affinityThreshold: 0.8   # share
    maxTTFTPenaltyMs: 5000
    peakPrefillThroughput: 15928
- {type: token-load-scorer, parameters: {queueThresholdTokens: 8000}}
- type: queue-scorer
- type: max-score-picker
  parameters: {maxNumOfEndpoints: 2}
- type: approx-prefix-cache-producer
  parameters: {lruCapacityPerServer: 500}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: sticky
  - {pluginRef: token-load-scorer, weight: 3}
  - pluginRef: queue-scorer
    weight: 1.5
  - pluginRef: max-score-picker
"""


def by_name(text: str) -> dict[str, Knob]:
    return {knob.name: knob for knob in knobs(text)}


class TestKnobs:
    def test_weights_and_parameters_of_what_chooses(self) -> None:
        found = by_name(TEXT)
        assert {name: knob.value for name, knob in found.items()} == {
            "sticky.affinityThreshold": 0.8,
            "sticky.maxTTFTPenaltyMs": 5000,
            "sticky.peakPrefillThroughput": 15928,
            "token-load-scorer.queueThresholdTokens": 8000,
            "weight of token-load-scorer": 3,
            "weight of queue-scorer": 1.5,
        }

    def test_bounds(self) -> None:
        found = by_name(TEXT)
        share, wait = found["sticky.affinityThreshold"], found["sticky.maxTTFTPenaltyMs"]
        assert (share.low, share.high, share.logarithmic) == (0, 1, False)
        assert (wait.low, wait.high, wait.logarithmic, wait.whole) == (625, 40_000, True, False)
        weight = found["weight of queue-scorer"]
        assert (weight.low, weight.high) == (0, 6)

    def test_whole_numbers_stay_whole(self) -> None:
        knob = by_name(TEXT)["token-load-scorer.queueThresholdTokens"]
        assert knob.whole and (knob.low, knob.high) == (1000, 64_000)
        assert "queueThresholdTokens: 7700}" in turned(TEXT, {knob.name: 7700.4}, [knob])

    def test_everything_else_stays(self) -> None:
        known = knobs(TEXT)
        assert turned(TEXT, {knob.name: knob.value for knob in known}, known) == TEXT
        other = turned(TEXT, {"sticky.affinityThreshold": 0.123456, "weight of queue-scorer": 0.0}, known)
        assert other == TEXT.replace("0.8   # share", "0.123   # share").replace("weight: 1.5", "weight: 0")
        load(other, "test")

    @given(st.lists(st.floats(0, 1), min_size=6, max_size=6))
    @example([1e-5] * 6)
    @settings(deadline=None, max_examples=30)
    def test_what_is_written_is_read_back(self, parts: list[float]) -> None:
        known = knobs(TEXT)
        values = {knob.name: knob.low + part * (knob.high - knob.low) for knob, part in zip(known, parts, strict=True)}
        again = by_name(turned(TEXT, values, known))
        for knob in known:
            assert again[knob.name].value == pytest.approx(float(knob.text(values[knob.name])))

    def test_profiles_of_one_name_are_told_apart(self) -> None:
        two = TEXT + "- name: other\n  plugins: [{pluginRef: queue-scorer, weight: 2}]\n"
        assert {"weight of queue-scorer in default", "weight of queue-scorer in other"} <= by_name(two).keys()

    @pytest.mark.parametrize("path", sorted(Path("config").glob("*.yaml")), ids=str)
    def test_every_sample_can_be_looked_through(self, path: Path) -> None:
        text = path.read_text()
        known = knobs(text)
        assert turned(text, {knob.name: knob.value for knob in known}, known).count("\n") == text.count("\n")


def trial(ttft_s: float, tokens: float) -> Trial:
    return Trial({"x": ttft_s}, ttft_s, tokens)


class TestChoice:
    def test_the_frontier(self) -> None:
        trials = [trial(3, 100), trial(1, 80), trial(2, 90), trial(2.5, 85), trial(2, 70), trial(4, 100)]
        assert [(one.ttft_p90_s, one.tokens_per_s) for one in frontier(trials)] == [(1, 80), (2, 90), (3, 100)]

    def test_the_best_gives_no_throughput_away(self) -> None:
        trials = [trial(3, 100), trial(1, 98.9), trial(2, 99.1), trial(2.5, 120)]
        assert chosen(trials) is trials[2]
        assert chosen(trials[:2]) is trials[0]

    def test_changes_are_what_is_written_differently(self) -> None:
        known = knobs(TEXT)
        values = {knob.name: knob.value for knob in known} | {"weight of queue-scorer": 1.5001}
        assert changes(known, values) == []
        assert changes(known, values | {"weight of queue-scorer": 2.0}) == ["weight of queue-scorer: 1.5 → 2"]


BAD = """\
# Whom a stranger started with.
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-scorer
- type: kv-cache-utilization-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: prefix-cache-scorer
    weight: 0.001
  - pluginRef: kv-cache-utilization-scorer
    weight: 5
  - pluginRef: max-score-picker
"""


def tune(*args: object) -> Result:
    return CliRunner().invoke(commands.tune, [str(one) for one in args])


def long_prefixes(path: Path) -> Path:
    """24 groups with 8,192 tokens in common each: one server holds a third of them well, all of them badly."""
    rng = random.Random(1)
    at_s = 0.0
    with path.open("w") as file:
        for number in range(300):
            at_s += rng.expovariate(6.0)
            group = rng.randrange(24)
            ids = [*range(group * 100, group * 100 + 16), 10_000 + number]
            line = {"timestamp": round(at_s * 1000), "input_length": 8500, "output_length": 20, "hash_ids": ids}
            file.write(json.dumps(line) + "\n")
    return path


@pytest.fixture
def asked(tmp_path: Path) -> tuple[object, ...]:
    """A log of shared prefixes, and a configuration that all but ignores them."""
    config = tmp_path / "bad.yaml"
    config.write_text(BAD)
    return long_prefixes(tmp_path / "log.jsonl"), "--config", config, "--replicas", 3, "--processes", 1, "--trials", 6


class TestSearch:
    def test_equal_seeds_find_equal_things_and_the_base_comes_first(self, tmp_path: Path) -> None:
        config = tmp_path / "bad.yaml"
        config.write_text(BAD)
        setting = setting_of(
            [mooncake(tmp_path / "log.jsonl", 60)],
            replicas=2,
            profile="h100-llama8b",
            lora_slots=0,
            speed=1.0,
            first=None,
            lean=False,
            interval_s=1.0,
        )
        (base,) = candidates_of([str(config)])
        known = knobs(BAD)
        told: list[int] = []
        one, other = (search(setting, base, known, trials=5, seed=3, processes=1, tell=told.append) for _ in range(2))
        assert one == other and len(one) == 5
        assert one[0].values == {knob.name: knob.value for knob in known}
        assert len({tuple(trial.values.items()) for trial in one}) == 5
        assert max(told) <= 5 * 2 * 60


class TestTune:
    def test_a_gain_that_holds_is_written_with_its_evidence(self, asked: tuple[object, ...], tmp_path: Path) -> None:
        output, report = tmp_path / "good.yaml", tmp_path / "report.html"
        result = tune(*asked, "--output", output, "--report", report)
        assert result.exit_code == 0, result.output
        text = output.read_text()
        assert text.startswith("# Tuned by epp tune from ") and "# Whom a stranger started with." in text
        assert "ttft_p90" in text and "%" in text and "weight of prefix-cache-scorer: 0.001 →" in text
        load(text, "good.yaml")
        assert by_name(text)["weight of prefix-cache-scorer"].value > 0.001
        assert report.read_text().count("<svg") == 1
        assert "frontier" in result.output and f"wrote {output}" in " ".join(result.output.split())
        # What it wrote itself it may write again.
        assert tune(*asked, "--output", output).exit_code == 0
        assert output.read_text() == text

    def test_a_gain_that_does_not_hold_is_not_written(
        self, asked: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tuning.Confirmation, "holds", property(lambda self: False))
        output = tmp_path / "good.yaml"
        result = tune(*asked, "--output", output)
        assert result.exit_code == 1 and "did not hold" in result.output and not output.exists()

    def test_somebody_elses_file_is_not_overwritten(self, asked: tuple[object, ...], tmp_path: Path) -> None:
        output = tmp_path / "mine.yaml"
        output.write_text("mine")
        result = tune(*asked, "--output", output)
        assert result.exit_code == 2 and "is not of epp tune's making" in result.output and output.read_text() == "mine"

    def test_a_file_without_numbers(self, asked: tuple[object, ...], tmp_path: Path) -> None:
        config = tmp_path / "plain.yaml"
        config.write_text(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: queue-scorer}]\n"
        )
        result = tune(asked[0], "--config", config)
        assert result.exit_code == 2 and "nothing to search" in result.output

    def test_the_help_reads(self) -> None:
        text = CliRunner().invoke(commands.tune, ["--help"], terminal_width=100).output
        assert max(map(len, text.splitlines())) <= 100 and "--trials" in text
