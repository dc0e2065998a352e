"""``mha2mla bench``: reading vLLM, making ratios, the sweep, the JSON and the plot."""

import io
import json
import subprocess

import pytest
from matplotlib.image import imread
from rich.console import Console
from transformers import LlamaConfig

pytest.importorskip("prometheus_client")

from conversion.bench.loads import (
    check_cache,
    max_model_len,
    parse_numbers,
    size_in_bytes,
    sweep,
)
from conversion.bench.machine import machine
from conversion.bench.metrics import parse_metrics
from conversion.bench.plots import throughput, write_plot
from conversion.bench.results import BenchResults, Figures, Point, Round, Settings, combine
from conversion.bench.server import Server
from conversion.commands.bench import tables
from conversion.errors import ServerError, UsageError
from tests.support.bench import KEYS, METRICS

LOG = """\
(Worker pid=11) INFO 11-24 15:00:03 [default_loader.py:501] Loading weights took 0.80 seconds
(EngineCore pid=7) INFO 11-24 15:00:04 [kv_cache_utils.py:2327] CPU KV cache size: 2,816 tokens, \
Maximum concurrency for 2,048 tokens per request: 1.38x
"""


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


def test_metrics_of_a_real_server():
    found = parse_metrics(METRICS)
    assert (found.running, found.preemptions, found.tokens) == (4, 3, 317)


def test_metrics_add_up_over_engines():
    second = METRICS.replace('engine="0"', 'engine="1"')
    samples = [line for line in second.splitlines() if not line.startswith("#")]
    assert parse_metrics(METRICS + "\n".join(samples) + "\n").running == 8


def test_metrics_of_something_else_are_refused():
    without = METRICS.replace("num_preemptions_total", "preempted_total")
    with pytest.raises(ServerError, match="vllm:num_preemptions_total"):
        parse_metrics(without)


def test_cache_tokens_come_from_the_log(tmp_path):
    log = tmp_path / "log"
    with subprocess.Popen(["true"]) as process:
        server = Server("http://127.0.0.1:1", log, process)
        log.write_text(LOG)
        assert server.cache_tokens == 2816
        log.write_text(LOG.replace("KV cache size", "KV size"))
        with pytest.raises(ServerError, match="KV cache size"):
            _ = server.cache_tokens


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


def test_sweep_goes_through_the_first_point():
    loads = sweep([256, 2048], 64, [16, 1], None)
    assert [(load.input_len, load.max_concurrency) for load in loads] == [
        (256, 16),
        (2048, 16),
        (256, 1),
    ]
    # Enough that the batch is full most of the time, and never a handful.
    assert [load.num_prompts for load in loads] == [48, 48, 8]
    assert {load.num_prompts for load in sweep([256], 64, [16], 5)} == {5}


def test_numbers_are_repeatable_and_comma_separated():
    assert parse_numbers("--input-len", ["256, 2048", "8192", "256"]) == [256, 2048, 8192]


@pytest.mark.parametrize("text", ["", "0", "-4", "many", "16,,4", "1.5"])
def test_other_numbers_are_refused(text):
    with pytest.raises(UsageError, match="--max-concurrency"):
        parse_numbers("--max-concurrency", [text])


def test_context_is_whole_blocks_within_the_models_limit():
    assert max_model_len(sweep([256], 64, [4], None), 8192) == 384
    assert max_model_len(sweep([256], 112, [4], None), 8192) == 384
    assert max_model_len(sweep([256], 113, [4], None), 8192) == 512
    assert max_model_len(sweep([8128], 64, [4], None), 8192) == 8192
    with pytest.raises(UsageError, match="8193"):
        max_model_len(sweep([8129], 64, [4], None), 8192)


def test_a_cache_too_small_for_one_request_is_refused_before_the_start():
    config = LlamaConfig(num_hidden_layers=30, num_key_value_heads=3, head_dim=64)
    # vLLM counted 2,816 tokens of this model in 64 MiB of bfloat16.
    check_cache(1 << 26, 2816, config, 2)
    with pytest.raises(UsageError, match=r"2816 tokens .* 2944; give at least 65MiB"):
        check_cache(1 << 26, 2944, config, 2)
    check_cache(65 << 20, 2944, config, 2)


def test_sizes():
    assert size_in_bytes("64MiB") == size_in_bytes("67108864") == 1 << 26
    assert size_in_bytes("2GiB") == 2 << 30
    for text in ("0", "-1MiB", "much"):
        with pytest.raises(UsageError, match="--kv-memory"):
            size_in_bytes(text)


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
