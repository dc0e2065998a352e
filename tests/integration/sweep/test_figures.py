"""The figures of `mha2mla sweep`: against single runs, whatever is shared or fails."""

import json
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from conversion.pipeline import calibration_text
from conversion.recipes.recipe import Recipe
from conversion.source import open_source
from conversion.sweep import run as sweep
from conversion.sweep.results import SweepResults
from tests.support.sweep import CALIBRATION, LAYERS, perplexity, single
from vllm_mha2mla.config import LatentWidths, latent_widths


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
        assert [LatentWidths(*pair) for pair in widths] == latent_widths(model.config)
        assert len(one.entry.layer_error) == LAYERS
        excess = f"{math.log(figure.converted / figure.baseline):.4f}"
        assert excess in output
        assert excess in page
        assert f"{figure.converted:.3f}" in page
    assert page.count("<img") == 2
    # Neither checkpoints nor statistics stay.
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_rivals_are_measured_once(folder, tmp_path, run, counted):
    rivals = ("--baseline-kv-cache-dtype", "int8_per_token_head,int4_per_token_head")
    report = tmp_path / "report.html"
    code, output, error = run(folder / "paper.yaml", *rivals, "--report", report)
    assert code == 0, error
    assert counted["originals"] == 1
    found = SweepResults.read(tmp_path / "out" / "results.json")
    names = [f"original, {rival.kv_cache_dtype}" for rival in found.rivals]
    assert [rival.name for rival in found.rivals] == names
    for rival in found.rivals:
        assert rival.perplexity.baseline == found.finished[0].entry.perplexity.baseline
        assert f"{rival.perplexity.ratio:.4f}" in output
        assert rival.name in report.read_text()
    # Asked for again, nothing is measured; without them, they are no part of the results.
    assert run(folder / "paper.yaml", *rivals)[0] == 0
    assert run(folder / "paper.yaml")[0] == 0
    assert counted["originals"] == 1
    assert SweepResults.read(tmp_path / "out" / "results.json").rivals == []


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
        (["mha2mla@much"], "mha2mla@much: 'much' is not a share of the cache"),
        (["magic@0.5"], "magic@0.5: --method: choose one of calibrated"),
        (["care@0"], "care@0: --cache-fraction"),
        (["haf"], "haf: neither a file nor one of quick, half"),
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
