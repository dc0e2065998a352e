"""``mha2mla heal`` on tiny models: what it trains, what it writes, how it goes on."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.healing.recipe import HealingRecipe
from conversion.healing.text import packed_windows
from tests.support.convert import convert_tiny, windows
from tests.support.divergence import divergence
from tests.support.healing import WINDOW, arguments, in_two_processes, losses, original
from tests.support.processes import environment, kill_with_children
from tests.support.tiny import TEXT, save_tiny, tiny_tokenizer
from vllm_mha2mla.config import read_provenance
from vllm_mha2mla.hf.llama import LlamaMLAForCausalLM


@pytest.fixture
def models(poor_models):
    return poor_models


@pytest.fixture
def heal(mha2mla):
    """A healing that must succeed, in this process; the healed model."""

    def run(models, out, *more, **options):
        done = mha2mla(*arguments(models, out, *more, **options))
        assert done.returncode == 0, done.stderr
        return LlamaMLAForCausalLM.from_pretrained(out).eval()

    return run


def test_distillation_follows_the_teacher_and_trains_attention_only(
    models, tmp_path, heal, mha2mla
):
    before = LlamaMLAForCausalLM.from_pretrained(models / "converted").eval()
    after = heal(models, tmp_path / "healed")
    teacher = original(models)
    assert divergence(teacher, after, windows()) < 0.8 * divergence(teacher, before, windows())

    old, new = (
        load_file(folder / "model.safetensors")
        for folder in (models / "converted", tmp_path / "healed")
    )
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(".self_attn." in name for name in changed)
    assert not any(name.endswith("rope_inv_freq") for name in changed)

    provenance = read_provenance(after.config)
    (healing,) = provenance.healing
    assert healing.tokens == 40 * WINDOW
    assert healing.files == ["text.txt"]
    assert healing.after["divergence"] < healing.before["divergence"]
    # The weights that were measured are the ones written: the same held-out windows, once more.
    text = packed_windows(tiny_tokenizer(), [models / "text.txt"], HealingRecipe(window=WINDOW))
    held_out = text.held_out
    with torch.no_grad():
        again = [float(after(row[None], labels=row[None]).loss) for row in held_out]
    mean = torch.tensor(again).mean().exp()
    # Mixed precision where the processor has it: a part in two hundred.
    assert healing.after["perplexity"] == pytest.approx(float(mean), rel=0.02)
    assert provenance.recipe == read_provenance(before.config).recipe
    assert len(losses(tmp_path / "healed")) == 40
    assert (tmp_path / "healed" / "healing.png").stat().st_size > 1000
    assert "## Healed" in (tmp_path / "healed" / "README.md").read_text()
    assert not (tmp_path / ".healed.healing").exists()

    # A healed checkpoint can be healed again, and remembers both.
    again = arguments(models, tmp_path / "twice", tokens=2 * WINDOW)
    again[1] = str(tmp_path / "healed")
    assert mha2mla(*again).returncode == 0
    config = json.loads((tmp_path / "twice" / "config.json").read_text())
    assert len(config["mha2mla"]["healing"]) == 2
    # Transformers finds its classes in the installed package.
    module = config["auto_map"]["AutoModelForCausalLM"].partition(".")[0]
    assert (tmp_path / "twice" / f"{module}.py").is_file()


def test_next_tokens_of_all_weights(models, tmp_path, heal):
    after = heal(models, tmp_path / "healed", "--objective", "lm", "--train", "all")
    before = LlamaMLAForCausalLM.from_pretrained(models / "converted").eval()
    ids = windows()

    def loss(model):
        with torch.no_grad():
            return float(model(ids, labels=ids).loss)

    assert loss(after) < 0.8 * loss(before)
    old, new = before.state_dict(), after.state_dict()
    assert not torch.equal(old["model.norm.weight"], new["model.norm.weight"])
    (healing,) = read_provenance(after.config).healing
    assert healing.recipe["objective"] == "lm"
    assert "divergence" not in healing.after


def test_generation_options_that_transformers_calls_invalid_are_carried_over(
    models, tmp_path, mha2mla
):
    shutil.copytree(models / "converted", tmp_path / "converted")
    # Trainer saves states with transformers, which refuses this without do_sample.
    options = '{"temperature": 0.25}'
    (tmp_path / "converted" / "generation_config.json").write_text(options)
    asked = arguments(models, tmp_path / "healed", tokens=2 * WINDOW)
    asked[1] = str(tmp_path / "converted")
    assert mha2mla(*asked).returncode == 0
    assert (tmp_path / "healed" / "generation_config.json").read_text() == options


def test_a_tied_head_that_is_stored_too_stays_the_embedding(tmp_path, heal):
    source = save_tiny(tmp_path / "source", tie_word_embeddings=True)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    convert_tiny(
        source, tmp_path / "converted", cache_fraction=0.3, split="fixed", method="mha2mla"
    )
    (tmp_path / "text.txt").write_text(TEXT)
    heal(tmp_path, tmp_path / "healed", "--train", "all", tokens=2 * WINDOW)
    healed = load_file(tmp_path / "healed" / "model.safetensors")
    assert not torch.equal(healed["lm_head.weight"], tensors["lm_head.weight"])
    assert torch.equal(healed["lm_head.weight"], healed["model.embed_tokens.weight"])


def test_a_mix_with_hidden_states_and_a_stored_teacher(models, tmp_path, heal):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objective: mix\nhidden_weight: 0.5\naccumulation: 2\n")
    heal(models, tmp_path / "mixed", "--recipe", recipe)
    # 40 windows, two to a step.
    assert [step for step, _ in losses(tmp_path / "mixed")] == list(range(1, 21))

    live = heal(models, tmp_path / "live")
    options = ("--cache-teacher", tmp_path / "cache")
    recipe.write_text("teacher_top_k: 256\n")
    stored = heal(models, tmp_path / "stored", "--recipe", recipe, *options)
    # The same but for float16 log-probabilities.
    apart = [divergence(original(models), model, windows()) for model in (live, stored)]
    assert apart[0] == pytest.approx(apart[1], rel=0.02)
    pairs = zip(losses(tmp_path / "live"), losses(tmp_path / "stored"), strict=True)
    assert all(one == pytest.approx(other, rel=0.02) for one, other in pairs)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    heal(models, tmp_path / "again", "--recipe", recipe, *options)
    assert files == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")
    }


@pytest.mark.slow
def test_killed_it_goes_on_with_the_same_curve(models, tmp_path, heal):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("save_steps: 4\naccumulation: 2\n")
    # So short that it is passed more than twice.
    short = tmp_path / "short.txt"
    short.write_text(TEXT[:1500])
    more = ("--recipe", recipe)
    whole = heal(models, tmp_path / "whole", *more, text=short)
    steps = 20
    out = tmp_path / "killed"
    command = [
        sys.executable, "-m", "conversion.cli", *arguments(models, out, *more, text=short)
    ]  # fmt: skip
    # Once a state is whole, while one is being saved, and after the last step.
    states = tmp_path / ".killed.healing"
    for sign in ("checkpoint-4/trainer_state.json", "checkpoint-12",
                 f"checkpoint-{steps}/trainer_state.json"):  # fmt: skip
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
        while not (states / sign).exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
    resumed = heal(models, out, *more, text=short)
    assert losses(out) == losses(tmp_path / "whole")
    assert len(losses(out)) == steps
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    first, second = (read_provenance(model.config).healing[0] for model in (whole, resumed))
    assert first == second


@pytest.mark.slow
def test_slow_steps_are_saved_in_time(models, tmp_path, heal):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("save_minutes: 0.00001\n")
    out = tmp_path / "healed"
    command = [sys.executable, "-m", "conversion.cli", *arguments(models, out, "--recipe", recipe)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    # The first of a hundred steps that save_steps would save.
    sign = tmp_path / ".healed.healing" / "checkpoint-2" / "trainer_state.json"
    while not sign.exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    # Saving more often changes nothing in the healing.
    heal(models, out)
    heal(models, tmp_path / "whole")
    assert losses(out) == losses(tmp_path / "whole")


def test_a_bfloat16_checkpoint_in_shards_stays_one(models, tmp_path, mha2mla):
    source = save_tiny(tmp_path / "source", shard_size="60KB")
    converted = tmp_path / "converted"
    options = ["--cache-fraction", "0.3", "--no-refit", "--dtype", "bfloat16"]
    calibration = ["--calibration", str(models / "text.txt")]
    assert mha2mla("convert", source, converted, *options, *calibration).returncode == 0
    asked = arguments(models, tmp_path / "healed", "--keep", "end", tokens=8 * WINDOW)
    asked[1] = str(converted)
    assert mha2mla(*asked).returncode == 0
    names = sorted(path.name for path in converted.glob("*.safetensors"))
    assert len(names) > 1
    changed = set()
    for name in names:
        old, new = (load_file(folder / name) for folder in (converted, tmp_path / "healed"))
        assert {key: t.dtype for key, t in old.items()} == {key: t.dtype for key, t in new.items()}
        changed |= {key for key in old if not torch.equal(old[key], new[key])}
    assert changed
    assert all(".self_attn." in name for name in changed)


@pytest.mark.slow
def test_two_processes_make_larger_steps_and_go_on_with_the_same_curve(models, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("save_steps: 4\n")
    command = in_two_processes(models, tmp_path / "two", "--recipe", recipe)
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in losses(tmp_path / "two")] == list(range(1, 21))
    model = LlamaMLAForCausalLM.from_pretrained(tmp_path / "two").eval()
    (healing,) = read_provenance(model.config).healing
    assert healing.tokens == 40 * WINDOW
    assert healing.after["divergence"] < 0.9 * healing.before["divergence"]

    command = in_two_processes(models, tmp_path / "killed", "--recipe", recipe)
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    # While the second state is being saved.
    while not (tmp_path / ".killed.healing" / "checkpoint-8").exists():
        assert process.poll() is None
        time.sleep(0.002)
    kill_with_children(process)
    assert not (tmp_path / "killed").exists()
    command = in_two_processes(models, tmp_path / "killed", "--recipe", recipe)
    subprocess.run(command, check=True, env=environment())
    assert losses(tmp_path / "killed") == losses(tmp_path / "two")
