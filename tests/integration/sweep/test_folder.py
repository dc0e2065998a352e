"""A sweep's folder and results: what survives, is used again, or is measured again."""

import json
import math
import os
import signal

import pytest

from conversion.checkpoint.locks import locked
from conversion.recipes.recipe import Recipe
from conversion.sweep import run as sweep
from conversion.sweep.folder import SweepFolder
from conversion.sweep.results import SweepResults, recipe_key
from tests.support.sweep import LAYERS
from tests.support.tiny import save_tiny


def test_it_deletes_nothing_of_others(folder, tmp_path, run):
    mine = tmp_path / "out" / "statistics" / "survey.csv"
    kept = tmp_path / "out" / "checkpoints" / "paper" / "notes.txt"
    stale = tmp_path / "out" / "statistics" / "0123456789abcdef"
    for file in (mine, kept, stale / "layer-0000.pt"):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    code, output, error = run(folder / "paper.yaml", "--keep")
    assert code == 1
    assert "no checkpoint to overwrite" in output + error
    stale.mkdir(exist_ok=True)
    (stale / "layer-0000.pt").write_text("1")
    assert run(folder / "ours.yaml", folder / "paper.yaml")[0] == 0
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {*left} == {mine, kept, tmp_path / "out" / "results.json"}
    assert not stale.exists()


def test_two_sweeps_do_not_share_a_folder(folder, tmp_path, run):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / ".lock", tmp_path / "out"):
        code, _, error = run(folder / "ours.yaml")
    assert code == 2
    assert "another process is writing it" in error


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
    for other in ("", "ridge: 100\nweigh_tokens: false\nrefit_sinks: false\nrefine_lr: 1e-3\n"):
        for name, method in recipes.items():
            files[name].write_text(f"{method}split: fixed\nwindow: 64\n{other}")
        assert run(*files.values(), "--calibration-tokens", 256)[0] == 0
    assert counted["conversions"] == ["refitted", "plain", "refitted"]
    assert "repeats" not in recipe_key(Recipe(repeats=0))
    assert recipe_key(Recipe(repeats=0.1))["repeats"] == 0.1


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


def test_another_file_is_not_overwritten(folder, tmp_path, run):
    path = tmp_path / "precious.json"
    path.write_text('{"mine": 1}')
    code, _, error = run("half", "--json", path)
    assert code == 2
    assert "not the results of a sweep" in error
    assert path.read_text() == '{"mine": 1}'


def test_what_is_kept_stays(folder, tmp_path, run, counted):
    kept = tmp_path / "out" / "checkpoints" / "ours" / "config.json"
    assert run(folder / "ours.yaml", "--keep")[0] == 0
    before = kept.read_bytes()
    # Without --keep, on another text; and with another recipe of that name.
    assert run(folder / "ours.yaml", "--windows", 2)[0] == 0
    assert counted["conversions"] == ["ours"]
    other = tmp_path / "ours.yaml"
    other.write_text((folder / "ours.yaml").read_text() + "method: care\n")
    assert run(other)[0] == 0
    assert counted["conversions"] == ["ours", "ours"]
    assert kept.read_bytes() == before
    assert not (tmp_path / "out" / ".measuring").exists()
    # It is not the one that was measured.
    assert run(other, "--keep")[0] == 0
    assert counted["conversions"] == ["ours"] * 3
    assert kept.read_bytes() != before


def test_statistics_that_a_killed_sweep_left_are_its_own(folder, tmp_path, run, monkeypatch):
    few = ("half", "--refit-tokens", 512)
    with monkeypatch.context() as killed:
        killed.setattr(SweepFolder, "clear_statistics", lambda _: None)
        assert run(*few, "--calibration-tokens", 256)[0] == 0
    # Statistics of less of the same text.
    code, _, error = run(*few, "--calibration-tokens", 128)
    assert code == 0, error
    with monkeypatch.context() as killed:
        killed.setattr(SweepFolder, "clear_statistics", lambda _: None)
        assert run(*few, "--calibration-tokens", 256)[0] == 0
    # Statistics of another model with the same tokens.
    code, _, error = run(*few, "--calibration-tokens", 256, source=save_tiny(tmp_path / "other"))
    assert code == 0, error


def test_an_interruption_that_became_an_error_ends_the_sweep(folder, run, monkeypatch):
    began = []

    def interrupted(source, out, *arguments, **options):
        began.append(out.name)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not convert a storage") from None

    monkeypatch.setattr(sweep, "convert", interrupted)
    assert run(folder / "ours.yaml", folder / "paper.yaml")[0] == 130
    assert began == ["ours"]


def test_a_kept_checkpoint_is_not_converted_again(folder, tmp_path, run, counted):
    recipe = (folder / "ours.yaml", "--keep")
    path = tmp_path / "out" / "results.json"
    assert run(*recipe)[0] == 0
    before = SweepResults.read(path).finished
    # As after a kill between conversion and figures.
    path.unlink()
    assert run(*recipe)[0] == 0
    assert SweepResults.read(path).finished == before
    # Other text to measure on.
    assert run(*recipe, "--windows", 2)[0] == 0
    assert SweepResults.read(path).finished[0].entry.perplexity.windows == 2
    assert counted["conversions"] == ["ours"]


@pytest.mark.parametrize(
    "change", ["recipe", "text", "dtype", "healed", "release", "unreadable", "cut"]
)
def test_a_kept_checkpoint_of_something_else_is(folder, tmp_path, run, counted, change):
    recipe, calibration = tmp_path / "mine.yaml", tmp_path / "mine.txt"
    recipe.write_text((folder / "ours.yaml").read_text())
    calibration.write_text((folder / "calibration.txt").read_text())
    arguments = [recipe, "--keep", "--calibration", calibration]
    assert run(*arguments)[0] == 0
    (tmp_path / "out" / "results.json").unlink()
    config = tmp_path / "out" / "checkpoints" / "mine" / "config.json"
    values = json.loads(config.read_text())
    match change:
        case "recipe":
            recipe.write_text(recipe.read_text() + "method: care\n")
        case "text":
            calibration.write_text(calibration.read_text()[::-1])
        case "dtype":
            arguments += ["--dtype", "bfloat16"]
        case "healed":
            text = {"files": [], "fingerprint": "", "tokens": 1}
            healing = {"recipe": {}, "teacher": "", "teacher_fingerprint": "", **text}
            values["mha2mla"]["healing"] = [healing]
        case "release":
            values["mha2mla"]["versions"]["vllm-mha2mla"] = "0.0.0"
        case "cut":
            weights = config.with_name("model.safetensors")
            weights.write_bytes(weights.read_bytes()[:-99])
        case "unreadable":
            values["mha2mla"] = {"format_version": 1}
    config.write_text(json.dumps(values))
    assert run(*arguments)[0] == 0
    assert counted["conversions"] == ["mine", "mine"]
    assert json.loads(config.read_text())["mha2mla"].get("healing", []) == []
