"""Ratios of rounds, as JSON, as a table and as a plot."""

import io
import json

import pytest
from matplotlib.image import imread
from rich.console import Console

pytest.importorskip("prometheus_client")

from conversion.bench.machine import machine
from conversion.bench.plots import throughput, write_plot
from conversion.bench.results import BenchResults, Figures, Point, Round, Settings, combine
from conversion.commands.bench import tables
from tests.support.bench import KEYS


def figures(speed=50.0, **changes):
    values = {
        "cache_tokens": 2816,
        "max_running": 4,
        "request_throughput": speed / 10,
        "output_throughput": speed,
        "ttft_ms": 200.0,
        "tpot_ms": 1000 / speed,
        "preemptions": 0,
        "peak_memory_bytes": 3 << 30,
    }
    return Figures(**values | changes)


def results(points, rounds):
    found = combine(rounds)
    settings = Settings(
        checkpoint="converted", baseline="original", dtype="bfloat16", kv_memory_bytes=1 << 26,
        max_model_len=2048, input_len=[256], output_len=16, max_concurrency=[4], rounds=len(rounds),
        one_at_a_time=False, original_args=[], converted_args=[],
    )  # fmt: skip
    sweep = [
        Point(
            input_len=length, output_len=16, max_concurrency=at_once, num_prompts=8, **dict(found)
        )
        for length, at_once in points
    ]
    return BenchResults(**dict(found), settings=settings, machine=machine(), sweep=sweep)


ROUNDS = [
    Round(original=figures(50), converted=figures(60, cache_tokens=9216)),
    Round(original=figures(40), converted=figures(44, cache_tokens=9216, max_running=7)),
    Round(original=figures(45, preemptions=2), converted=figures(63, cache_tokens=9216)),
]


def test_rivals_are_beside_the_original():
    rounds = [
        one.model_copy(update={"rivals": {"fp8": figures(speed, cache_tokens=5632)}})
        for one, speed in zip(ROUNDS, (55, 60, 45), strict=True)
    ]
    found = combine(rounds).rivals["fp8"]
    assert found.figures.output_throughput == 55
    assert found.ratios.output_throughput == 55 / 45
    assert found.ratios.cache_tokens == 2
    assert found.spread.lowest.output_throughput == 1
    assert found.spread.highest.output_throughput == 1.5
    shown = results([(256, 4), (512, 4)], rounds)
    assert BenchResults.model_validate_json(shown.model_dump_json()) == shown
    console = Console(file=io.StringIO(), width=200)
    console.print(*tables(shown))
    assert "fp8" in console.file.getvalue()
    assert "5,632 (2.000)" in console.file.getvalue()
    legend = throughput(shown).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in legend] == ["original", "converted", "original, fp8"]


def test_rounds_become_medians_and_maxima():
    found = combine(ROUNDS)
    assert found.original.output_throughput == 45
    assert found.converted.output_throughput == 60
    assert found.converted.max_running == 7
    assert found.ratios.output_throughput == pytest.approx(60 / 45)
    assert found.ratios.cache_tokens == pytest.approx(9216 / 2816)
    assert found.ratios.preemptions is None
    # Rounds have the ratios 1.2, 1.1 and 1.4.
    assert found.spread.lowest.output_throughput == pytest.approx(1.1)
    assert found.spread.highest.output_throughput == pytest.approx(1.4)


def test_json_has_the_promised_keys():
    found = json.loads(results([(256, 4)], ROUNDS).model_dump_json())
    for block in ("original", "converted", "ratios"):
        assert set(found[block]) == KEYS
    assert len(found["rounds"]) == 3
    assert found["machine"]["cores"] >= 1
    assert found["sweep"][0]["ratios"] == found["ratios"]


def test_plot_has_a_panel_per_sweep(tmp_path):
    for points, panels in (
        ([(256, 4)], ["tokens per prompt"]),
        ([(256, 4), (2048, 4)], ["tokens per prompt"]),
        ([(256, 4), (256, 1)], ["requests at once"]),
        ([(256, 4), (2048, 4), (256, 1)], ["tokens per prompt", "requests at once"]),
    ):
        axes = throughput(results(points, ROUNDS)).get_axes()
        assert [one.get_xlabel().partition(" (")[0] for one in axes] == panels
    write_plot(tmp_path / "plot.png", results([(256, 4), (2048, 4)], ROUNDS))
    assert imread(tmp_path / "plot.png").std() > 0


def test_table_shows_ratio_and_spread():
    console = Console(file=io.StringIO(), width=80)
    for table in tables(results([(256, 4)], ROUNDS)):
        console.print(table)
    shown = console.file.getvalue()
    row = next(line for line in shown.splitlines() if "output tokens per second" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == [
        "45.0",
        "60.0",
        "1.333",
        "1.100 to 1.400",
    ]
