"""Conversions to coded rows: their bytes, their loss, and training through the code."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from conversion.checkpoint.inspection import inspect
from conversion.cli import app
from conversion.errors import RecipeError
from conversion.pipeline import HELD_OUT_DIVERGENCE
from conversion.recipes.recipe import Recipe
from tests.support.convert import convert_tiny, windows
from tests.support.divergence import divergence
from tests.support.healing import arguments
from tests.support.tiny import TEXT, save_tiny
from vllm_mha2mla.config import CONSTANTS
from vllm_mha2mla.hf import attention

# Tensors that no training changes.
FIXED = (*CONSTANTS, "kv_a_proj_with_mqa.weight", "kv_a_proj_with_mqa.bias")
CODED = {"bits": "auto", "held_out_tokens": 512}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("original") / "source")


@pytest.fixture(scope="module")
def original(source):
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tenth(source, tmp_path_factory):
    """A conversion to a tenth of the bytes, and its folder."""
    out = tmp_path_factory.mktemp("tenth") / "converted"
    return convert_tiny(source, out, cache_fraction=0.1, **CODED), out


@pytest.mark.parametrize("fraction", [0.1, 0.17, 0.3])
def test_bytes_are_met_and_not_exceeded(source, tmp_path, fraction):
    convert_tiny(source, tmp_path / "out", cache_fraction=fraction, **CODED)
    found = inspect(tmp_path / "out")
    assert found.row_bits is not None
    assert found.cache_bytes_per_token == sum(layer.bytes for layer in found.row_bits)
    # Keys and values of 2 heads of 16 numbers in 16 bits, in 2 layers.
    assert found.baseline_bytes_per_token == 2 * 2 * 2 * 16 * 2
    budget = int(found.baseline_bytes_per_token * fraction)
    # The largest step is from 6 to 8 bits of eight rotary pairs.
    assert budget - 4 < found.cache_bytes_per_token <= budget


def test_more_bytes_lose_less(source, original, tenth, tmp_path):
    few, out = tenth
    more = convert_tiny(source, tmp_path / "more", cache_fraction=0.2, **CODED)
    many = convert_tiny(source, tmp_path / "many", cache_fraction=0.45, **CODED)
    losses = [divergence(original, one, windows()) for one in (few, more, many)]
    assert losses[0] > 2 * losses[1] > 4 * losses[2]
    held_out = inspect(out).figures[HELD_OUT_DIVERGENCE]
    assert held_out == pytest.approx(losses[0], rel=1)


def test_coded_rows_lose_less_than_as_many_bytes_of_plain_ones(source, original, tenth, tmp_path):
    plain = convert_tiny(source, tmp_path / "plain", cache_fraction=0.1, bits=16)
    coded = divergence(original, tenth[0], windows())
    assert 2 * coded < divergence(original, plain, windows())


def test_nothing_but_the_rounding_is_lost_at_full_width(source, original, tmp_path, monkeypatch):
    model = convert_tiny(source, tmp_path / "out", cache_fraction=1, bits=8, refit=False)
    loss = divergence(original, model, windows())
    monkeypatch.setattr(attention, "rounded", lambda _code, rows, *_first: rows)
    # Float32 weights that were folded in float64.
    assert divergence(original, model, windows()) < 1e-9
    assert 1e-9 < loss < 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": "4"},
        {"bits": "8", "method": "transmla"},
        {"q_lora_rank": 32},
        {"refit": False},
        {"refit_sinks": False},
    ],
    ids=str,
)
def test_other_recipes(source, original, tmp_path, changes):
    model = convert_tiny(source, tmp_path / "out", cache_fraction=0.4, **CODED | changes)
    bits = {bits for layer in model.config.row_bits_per_layer for bits in layer}
    assert "bits" not in changes or bits == {int(changes["bits"])}
    assert divergence(original, model, windows()) < 0.5


def test_exact_widths_of_so_many_bits(source, tmp_path):
    convert_tiny(source, tmp_path / "out", kv_lora_rank=24, rope_dim=16, bits=4)
    found = inspect(tmp_path / "out")
    assert found.row_bits is not None
    assert found.row_bits[0].latent == {4: 24}
    assert found.row_bits[0].rotary == {4: 16}
    assert found.cache_bytes_per_token == 2 * (20 + 2)


@pytest.mark.parametrize(("variant", "sizes"), [("mqa", {}), ("mha", {}), ("gqa", {"head_dim": 8})])
def test_other_shapes(tmp_path, variant, sizes):
    source = save_tiny(tmp_path / "source", variant, attention_bias=True, **sizes)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    model = convert_tiny(source, tmp_path / "out", cache_fraction=0.45, **CODED)
    assert divergence(original, model, windows()) < 0.2


def test_too_few_bytes_are_refused_before_any_work(source, tmp_path):
    with pytest.raises(RecipeError, match=r"cache_fraction 0\.01: below the"):
        convert_tiny(source, tmp_path / "out", cache_fraction=0.01, **CODED)


def test_constants_stay_exact_in_a_16_bit_checkpoint(source, tmp_path):
    from conversion.pipeline import Options, convert
    from conversion.runtime.progress import Progress
    from conversion.source import open_source

    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    recipe = Recipe(
        calibration=[str(text)], calibration_tokens=512, window=128, cache_fraction=0.3, **CODED
    )
    options = Options(dtype=torch.bfloat16)
    convert(open_source(str(source)), tmp_path / "out", recipe, options, Progress())
    written = load_file(tmp_path / "out" / "model.safetensors")
    exact = {name for name, tensor in written.items() if tensor.dtype == torch.float32}
    assert {name.rpartition(".")[2] for name in exact} == set(CONSTANTS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    for name in exact:
        assert torch.equal(model.get_buffer(name), written[name])


def test_refinement_trains_through_the_code(source, original, tenth, tmp_path):
    values = {"cache_fraction": 0.1, "refine_steps": 40, "refine_window": 128, "refine_lr": 1e-3}
    refined = convert_tiny(source, tmp_path / "refined", **values | CODED)
    assert divergence(original, refined, windows()) < divergence(original, tenth[0], windows())
    old = tenth[0].state_dict()
    for name, tensor in refined.state_dict().items():
        fixed = name.endswith(FIXED) or ".self_attn." not in name
        assert torch.equal(tensor, old[name]) == fixed, name


@pytest.mark.parametrize("train", ["attention", "all"])
def test_healing_trains_through_the_code(source, original, tenth, tmp_path, train):
    folder = tenth[1].parent
    (folder / "text.txt").write_text(TEXT)
    if not (folder / "source").exists():
        (folder / "source").symlink_to(source)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"train: {train}\n")
    out = tmp_path / "healed"
    more = ("--recipe", recipe, "--window", 128, "--lr", 5e-4)
    done = CliRunner().invoke(app, arguments(folder, out, *more, tokens=60 * 128))
    assert done.exit_code == 0, done.output
    before, after = (load_file(path / "model.safetensors") for path in (tenth[1], out))
    for name, tensor in after.items():
        fixed = name.endswith(FIXED) or (train == "attention" and ".self_attn." not in name)
        assert torch.equal(tensor, before[name]) == fixed, name
    healed = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    loss = divergence(original, tenth[0], windows())
    assert divergence(original, healed, windows()) < loss
    assert inspect(out).row_bits == inspect(tenth[1]).row_bits
