"""``mha2mla sweep`` on tiny models: figures against single runs, what is shared, what survives."""

import json
import math
import sys

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from conversion import cli, layer, sweep
from conversion.calibration.text import calibration_windows, evaluation_windows
from conversion.evaluation import compare
from conversion.pipeline import Options, calibration_text, convert
from conversion.progress import Progress
from conversion.recipe import Recipe
from conversion.source import open_source
from conversion.split import split_candidates
from conversion.sweep_results import SweepResults, recipe_key
from conversion.writer import locked
from tests.divergence import divergence
from tests.tiny import TEXT, save_tiny, tiny_tokenizer
from vllm_mha2mla.config import LatentLayout, layer_layouts

LAYERS, WINDOW = 2, 64
CALIBRATION = {"calibration_tokens": 512, "window": WINDOW, "held_out_tokens": 128}
UNSEEN = "Something else entirely: whales, 1851, and the sea; nothing of it was calibrated on. " * 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    save_tiny(folder / "source", num_hidden_layers=LAYERS)
    (folder / "calibration.txt").write_text(TEXT)
    (folder / "text.txt").write_text(UNSEEN)
    for name, changes in {
        "ours": {"cache_fraction": 0.4},
        "paper": {"cache_fraction": 0.4, "method": "mha2mla"},
        "longer": {"cache_fraction": 0.4, "window": 32},
    }.items():
        lines = [f"{key}: {value}\n" for key, value in (CALIBRATION | changes).items()]
        (folder / f"{name}.yaml").write_text("".join(lines))
    return folder


@pytest.fixture
def mha2mla(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mha2mla", *map(str, arguments)])
        monkeypatch.setattr(cli, "err", Console(stderr=True, width=400))
        monkeypatch.setenv("COLUMNS", "400")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture
def run(folder, tmp_path, mha2mla):
    def run(*arguments):
        return mha2mla(
            "sweep", folder / "source", "--out", tmp_path / "out", "--text", folder / "text.txt",
            "--window", WINDOW, "--calibration", folder / "calibration.txt", *arguments,
        )  # fmt: skip

    return run


@pytest.fixture
def counted(monkeypatch):
    """How often a layer is measured, a checkpoint converted, an original loaded."""
    counts = {"statistics": 0, "conversions": [], "originals": 0}
    measure, convert_one, load = layer.layer_statistics, sweep.convert, compare.load_source

    def statistics(*arguments):
        counts["statistics"] += 1
        return measure(*arguments)

    def conversion(source, out, *arguments, **options):
        counts["conversions"].append(out.name)
        return convert_one(source, out, *arguments, **options)

    def original(*arguments):
        counts["originals"] += 1
        return load(*arguments)

    monkeypatch.setattr(layer, "layer_statistics", statistics)
    monkeypatch.setattr(sweep, "convert", conversion)
    monkeypatch.setattr(compare, "load_source", original)
    return counts


def single(folder, out, **recipe):
    """One conversion by itself."""
    values = CALIBRATION | {"calibration": [str(folder / "calibration.txt")]} | recipe
    convert(open_source(str(folder / "source")), out, Recipe(**values), Options(), Progress())
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def perplexity(model):
    ids = evaluation_windows(tiny_tokenizer(), UNSEEN, WINDOW, None)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({}, {"method": "mha2mla"}),
        ({}, {"method": "transmla", "refit": True}),
        ({}, {"method": "care", "q_lora_rank": 40}),
        ({"tie_word_embeddings": False}, {"spread": False}),
    ],
)
def test_the_split_is_the_best_candidate_on_text_held_out(tmp_path, changes, recipe):
    folder, files = tmp_path, [tmp_path / "calibration.txt"]
    save_tiny(folder / "source", num_hidden_layers=LAYERS, **changes)
    files[0].write_text(TEXT)
    chosen = single(folder, folder / "auto", cache_fraction=0.5, **recipe).config
    held_out = calibration_windows(tiny_tokenizer(), files, 3 * 512, WINDOW, 128).held_out
    assert held_out.shape == (2, WINDOW)
    original = LlamaForCausalLM.from_pretrained(folder / "source").eval()
    losses = {}
    budget = Recipe(cache_fraction=0.5, **recipe)
    for layout in split_candidates(budget, 2, 16):
        widths = {"kv_lora_rank": layout.kv_lora_rank, "rope_dim": layout.qk_rope_head_dim}
        name = f"{layout.kv_lora_rank}+{layout.qk_rope_head_dim}"
        model = single(folder, folder / name, **widths, **recipe | {"refit": False})
        losses[name] = divergence(original, model, held_out)
    assert len(losses) > 2
    best = min(losses, key=losses.__getitem__)
    assert f"{chosen.kv_lora_rank}+{chosen.qk_rope_head_dim}" == best
    figures = chosen.mha2mla["figures"]
    assert figures.keys() == {f"held_out_divergence_{name}" for name in losses}
    for name, loss in losses.items():
        # Another order of float32 sums.
        assert figures[f"held_out_divergence_{name}"] == pytest.approx(loss, rel=1e-3)
    # The published methods' own shares would have been others.
    fixed = budget.layout(2, 16)
    own = f"{fixed.kv_lora_rank}+{fixed.qk_rope_head_dim}"
    assert best != own or budget.method == "calibrated"


def test_a_fixed_split_is_the_methods(folder, tmp_path):
    config = single(folder, tmp_path / "out", cache_fraction=0.4, split="fixed").config
    layout = Recipe(cache_fraction=0.4).layout(2, 16)
    assert (config.kv_lora_rank, config.qk_rope_head_dim) == (
        layout.kv_lora_rank, layout.qk_rope_head_dim,
    )  # fmt: skip
    assert not config.mha2mla["figures"]


def test_a_text_too_short_to_hold_out_is_chosen_on_and_said(folder, tmp_path, caplog):
    short = tmp_path / "short.txt"
    short.write_text(TEXT[:200])
    with caplog.at_level("INFO"):
        model = single(folder, tmp_path / "out", method="care", calibration=[str(short)])
    assert model.config.mha2mla["calibration"]["tokens"] == 3 * WINDOW
    assert "too short to hold any of it out" in caplog.text
    assert len(model.config.mha2mla["figures"]) > 2


def test_figures_are_those_of_single_runs_and_work_is_shared(folder, tmp_path, run, counted):
    report, figures = tmp_path / "report.html", tmp_path / "figures.json"
    code, output, error = run(
        folder / "ours.yaml", folder / "paper.yaml", "--report", report, "--json", figures
    )
    assert code == 0, error
    assert counted == {"statistics": LAYERS, "conversions": ["ours", "paper"], "originals": 1}
    found = SweepResults.model_validate_json(figures.read_text())
    assert [one.name for one in found.finished] == ["ours", "paper"]
    original = LlamaForCausalLM.from_pretrained(folder / "source", dtype=torch.float32)
    baseline = perplexity(original.eval())
    page = report.read_text()
    for one, method in zip(found.finished, ("calibrated", "mha2mla"), strict=True):
        model = single(folder, tmp_path / method, cache_fraction=0.4, method=method)
        figure = one.entry.perplexity
        assert figure.converted == pytest.approx(perplexity(model), rel=1e-4)
        assert figure.baseline == pytest.approx(baseline, rel=1e-4)
        widths = zip(one.kv_lora_rank, one.qk_rope_head_dim, strict=True)
        assert [LatentLayout(*pair) for pair in widths] == layer_layouts(model.config)
        assert len(one.entry.layer_error) == LAYERS
        excess = f"{math.log(figure.converted / figure.baseline):.4f}"
        assert excess in output
        assert excess in page
        assert f"{figure.converted:.3f}" in page
    assert page.count("<img") == 2
    # Neither checkpoints nor statistics stay.
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_it_deletes_nothing_of_others(folder, tmp_path, run):
    mine = tmp_path / "out" / "statistics" / "survey.csv"
    kept = tmp_path / "out" / "checkpoints" / "paper" / "notes.txt"
    stale = tmp_path / "out" / "statistics" / "0123456789abcdef"
    for file in (mine, kept, stale / "layer-0000.pt"):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    code, output, error = run(folder / "ours.yaml", folder / "paper.yaml")
    assert code == 1
    assert "no checkpoint to overwrite" in output + error
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {*left} == {mine, kept, tmp_path / "out" / "results.json"}
    assert not stale.exists()


def test_two_sweeps_do_not_share_a_folder(folder, tmp_path, run):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", tmp_path / "out"):
        code, _, error = run(folder / "ours.yaml")
    assert code == 2
    assert "another process is writing it" in error


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_figures_of_a_model_that_overflows_can_be_read_again(folder, tmp_path, run, figure):
    assert run(folder / "ours.yaml")[0] == 0
    path = tmp_path / "out" / "results.json"
    results = SweepResults.read(path)
    (one,) = results.finished
    one.figures["held_out_divergence_1"] = figure
    one.entry.perplexity.converted = figure
    results.write(path)
    again = SweepResults.read(path).finished[0]
    for value in (again.figures["held_out_divergence_1"], again.entry.perplexity.converted):
        assert value == pytest.approx(figure, nan_ok=True)


def test_text_that_repeats_is_measured_by_itself(folder, tmp_path, run, counted):
    repeating = tmp_path / "repeating.yaml"
    repeating.write_text((folder / "ours.yaml").read_text() + "repeats: 0.5\n")
    assert run(folder / "ours.yaml", repeating, folder / "paper.yaml")[0] == 0
    assert counted["conversions"] == ["ours", "repeating", "paper"]
    assert counted["statistics"] == 2 * LAYERS
    found = SweepResults.read(tmp_path / "out" / "results.json")
    plain, other, _ = (one.entry.perplexity.converted for one in found.finished)
    assert plain != other
    assert found.subject.calibration.fingerprint == plain_text(folder)
    model = single(folder, tmp_path / "single", cache_fraction=0.4, repeats=0.5)
    assert other == pytest.approx(perplexity(model), rel=1e-4)


def plain_text(folder):
    """The text by itself, whatever is repeated."""
    recipe = Recipe(**CALIBRATION | {"calibration": [str(folder / "calibration.txt")]})
    return calibration_text(open_source(str(folder / "source")), recipe).fingerprint


def test_inline_recipes_and_kept_checkpoints(folder, tmp_path, run):
    code, _, error = run(
        "calibrated@0.5", "care@0.25", "half", "--calibration-tokens", "256", "--keep",
        "--windows", 2, "--dtype", "bfloat16", "--held-out-tokens", 128,
    )  # fmt: skip
    assert code == 0, error
    found = SweepResults.read(tmp_path / "out" / "results.json")
    assert [one.recipe["held_out_tokens"] for one in found.finished] == [128, 128, 128]
    assert [one.name for one in found.finished] == ["calibrated@0.5", "care@0.25", "half"]
    assert [one.entry.cache.fraction for one in found.finished] == [0.5, 0.25, 0.5]
    assert found.finished[1].entry.method == "care"
    assert found.finished[0].entry.perplexity == found.finished[2].entry.perplexity
    assert found.finished[0].entry.perplexity.windows == 2
    for name in ("calibrated@0.5", "care@0.25", "half"):
        kept = tmp_path / "out" / "checkpoints" / name / "config.json"
        assert json.loads(kept.read_text())["dtype"] == "bfloat16"


def test_an_interrupted_sweep_goes_on_where_it_stopped(folder, tmp_path, run, counted, monkeypatch):
    recipes = (folder / "ours.yaml", folder / "paper.yaml")
    going = sweep.convert

    def interrupted(source, out, *arguments, **options):
        if out.name == "paper":
            raise KeyboardInterrupt
        return going(source, out, *arguments, **options)

    with monkeypatch.context() as stopped:
        stopped.setattr(sweep, "convert", interrupted)
        code, _, _ = run(*recipes)
    assert code == 130
    path = tmp_path / "out" / "results.json"
    first = SweepResults.read(path)
    assert [one.name for one in first.finished] == ["ours"]
    assert counted["statistics"] == LAYERS

    code, output, error = run(*recipes)
    assert code == 0, error
    assert counted["conversions"] == ["ours", "paper"]
    # The statistics outlived the interruption.
    assert counted["statistics"] == LAYERS
    both = SweepResults.read(path)
    assert [one.name for one in both.finished] == ["ours", "paper"]
    assert both.finished[0] == first.finished[0]
    assert f"{first.finished[0].entry.perplexity.converted:.3f}" in output

    code, _, _ = run(*recipes)
    assert code == 0
    assert counted["conversions"] == ["ours", "paper"]


def test_what_changed_is_measured_again(folder, tmp_path, run, counted):
    mine = tmp_path / "mine.yaml"
    mine.write_text("split: fixed\ncache_fraction: 0.4\nwindow: 64\n")
    few = ("--calibration-tokens", 256)
    assert run(mine, "care@0.25", *few)[0] == 2
    assert run(mine, *few)[0] == 0
    mine.write_text("split: fixed\ncache_fraction: 0.5\nwindow: 64\n")
    assert run(mine, *few)[0] == 0
    path = tmp_path / "out" / "results.json"
    (one,) = SweepResults.read(path).finished
    assert one.entry.cache.fraction == 0.5
    assert counted["conversions"] == ["mine", "mine"]
    # Other text, to calibrate on or to measure on, makes all figures others.
    assert run(mine, "--calibration-tokens", 320)[0] == 0
    assert run(mine, "--calibration-tokens", 320, "--windows", 3)[0] == 0
    assert counted["conversions"] == ["mine"] * 4
    assert SweepResults.read(path).finished[0].entry.perplexity.windows == 3


def test_settings_of_what_is_not_done_make_no_other_recipe(folder, tmp_path, run, counted):
    recipes = {"refitted": "method: calibrated\n", "plain": "method: mha2mla\n"}
    files = {name: tmp_path / f"{name}.yaml" for name in recipes}
    for other in ("", "ridge: 100\nweigh_tokens: false\nrefit_starts: false\nrefine_lr: 1e-3\n"):
        for name, method in recipes.items():
            files[name].write_text(f"{method}split: fixed\nwindow: 64\n{other}")
        assert run(*files.values(), "--calibration-tokens", 256)[0] == 0
    assert counted["conversions"] == ["refitted", "plain", "refitted"]
    assert "repeats" not in recipe_key(Recipe(repeats=0))
    assert recipe_key(Recipe(repeats=0.1))["repeats"] == 0.1


def test_a_failing_recipe_does_not_lose_the_others(folder, tmp_path, run, monkeypatch):
    lost = tmp_path / "lost.yaml"
    lost.write_text("kv_lora_rank: 500\nrope_dim: 8\n")
    odd = tmp_path / "odd.yaml"
    odd.write_text("cache_fraction: 0.3\n")
    going = sweep.convert

    def failing(source, out, *arguments, **options):
        if out.name == "odd":
            raise ValueError("eigenvalues did not converge\nsecond line")
        return going(source, out, *arguments, **options)

    monkeypatch.setattr(sweep, "convert", failing)
    report = tmp_path / "report.md"
    code, output, error = run(
        lost, odd, "calibrated@0.5", "--calibration-tokens", 128, "--report", report
    )
    assert code == 1
    assert "calibrated@0.5" in output
    assert "failed: lost: kv_lora_rank 500 is more than the source's 64" in error
    assert "failed: odd: ValueError: eigenvalues did not converge\n" in error
    assert "Traceback" not in error
    found = SweepResults.read(tmp_path / "out" / "results.json")
    assert [one.name for one in found.finished] == ["calibrated@0.5"]
    assert [one.name for one in found.failed] == ["lost", "odd"]
    assert "kv\\_lora\\_rank 500" in report.read_text()


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        (["mha2mla@much"], "mha2mla@much: 'much' is not a part of the cache"),
        (["magic@0.5"], "magic@0.5: --method: choose one of calibrated"),
        (["care@0"], "care@0: --cache-fraction"),
        (["haf"], "haf: neither a file nor one of half"),
        (["half", "half"], "half: a second recipe named half"),
        (["ours.yaml", "longer.yaml"], "longer and ours differ in window"),
    ],
)
def test_impossible_recipes(folder, tmp_path, run, monkeypatch, recipes, message):
    monkeypatch.chdir(folder)
    code, _, error = run(*recipes)
    assert code == 2
    assert message in error.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_another_file_is_not_overwritten(folder, tmp_path, run):
    path = tmp_path / "precious.json"
    path.write_text('{"mine": 1}')
    code, _, error = run("half", "--json", path)
    assert code == 2
    assert "not the results of a sweep" in error
    assert path.read_text() == '{"mine": 1}'
