"""Mistakes of a user: one line that names each, exit code 2, nothing left behind."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, GPT2Config

from conversion.layers.converter import LayerConverter
from conversion.layers.measurements import Measurements
from tests.support.processes import full_disk, one_line
from tests.support.tiny import TEXT, save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "source", shard_size="60KB")


@pytest.fixture
def source(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "source")
    (tmp_path / "text.txt").write_text(TEXT[:3000])
    return tmp_path / "source"


@pytest.fixture
def refused(mha2mla):
    """A conversion that must fail; its one line."""

    def run(source, *arguments):
        folder = source.parent
        before = sorted(folder.iterdir())
        text = folder / "text.txt"
        result = mha2mla("convert", source, folder / "out", "--calibration", text, *arguments)
        return one_line(folder, before, result)

    return run


def shard_with(source, name):
    index = json.loads((source / "model.safetensors.index.json").read_text())
    return source / index["weight_map"][name]


def test_unknown_family(source, refused):
    GPT2Config().save_pretrained(source)
    assert "'gpt2' is not supported" in refused(source)


def test_encoder(source, refused):
    shutil.rmtree(source)
    small = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(small).save_pretrained(source)
    assert "'bert' is not supported" in refused(source)


def test_missing_shard(source, refused):
    shard = shard_with(source, "model.norm.weight")
    shard.unlink()
    assert f"shard {shard.name} is missing" in refused(source)


def test_truncated_shard(source, refused):
    shard = shard_with(source, "model.norm.weight")
    shard.write_bytes(shard.read_bytes()[:-10])
    assert f"shard {shard.name} is truncated" in refused(source)


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight"]
)
def test_nan_weight(source, name, refused):
    shard = shard_with(source, name)
    tensors = load_file(shard)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, shard, metadata={"format": "pt"})
    line = refused(source)
    assert name in line
    assert "NaN" in line


def test_a_layer_that_comes_out_infinite(source, refused, monkeypatch):
    def overflowed(*_):
        return {"q_proj.weight": torch.full((4, 4), float("inf"))}

    monkeypatch.setattr(LayerConverter, "convert", overflowed)
    assert "layer 0: q_proj.weight came out NaN or infinite" in refused(source)


def test_a_link_out_of_the_folder_is_found_before_any_layer(source, refused, monkeypatch):
    (source.parent / "secret").write_text("the user's")
    (source / "LICENSE").symlink_to(source.parent / "secret")

    def too_late(*_):
        raise AssertionError("a layer was measured first")

    monkeypatch.setattr(Measurements, "measure", too_late)
    assert "LICENSE: a link out of the model's folder" in refused(source)


@pytest.mark.parametrize("refine_steps", [0, 9])
def test_ids_beyond_the_vocabulary(source, refused, refine_steps):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Rotary"])
    tokenizer.save_pretrained(source)
    # One window to calibrate on and one held out of the rest, or all of it to refine on.
    (source.parent / "text.txt").write_text("a" * 64 + "Rotary" * 90)
    recipe = source.parent / "recipe.yaml"
    recipe.write_text(
        "window: 64\ncalibration_tokens: 64\nrefit_tokens: 64\nrefine_window: 64\n"
        f"refine_steps: {refine_steps}\nheld_out_tokens: {2 if refine_steps else 64}\n"
    )
    assert "beyond the vocabulary of 256" in refused(source, "--recipe", recipe)


def test_missing_tensor(source, refused):
    shard = shard_with(source, "model.norm.weight")
    tensors = load_file(shard)
    del tensors["model.norm.weight"]
    save_file(tensors, shard, metadata={"format": "pt"})
    assert "promises model.norm.weight" in refused(source)


def test_config_of_another_model(source, refused):
    config = json.loads((source / "config.json").read_text())
    config["intermediate_size"] *= 2
    (source / "config.json").write_text(json.dumps(config))
    assert "config.json promises" in refused(source)


def test_quantised_weights(source, refused):
    name = "model.layers.0.mlp.up_proj.weight"
    shard = shard_with(source, name)
    tensors = load_file(shard)
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, shard, metadata={"format": "pt"})
    assert "unquantised" in refused(source)


def test_a_rope_that_changes_with_length(source, refused):
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    (source / "config.json").write_text(json.dumps(config))
    assert "rope_type 'dynamic'" in refused(source)


def test_unreadable_config(source, refused):
    (source / "config.json").write_text("{")
    assert "config.json" in refused(source)


def test_no_such_source(source, refused, mha2mla):
    assert "no such file" in refused(source.parent / "nowhere")
    assert "no such demo model" in mha2mla("convert", "demo:gpt5", source.parent / "x").stderr


def test_not_a_gguf_file(source, refused):
    path = source.parent / "model.gguf"
    path.write_bytes(b"GGUF nonsense")
    assert "not a GGUF file" in refused(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cache-fraction", "1.5"), "--cache-fraction"),
        (("--cache-fraction", "-1"), "--cache-fraction"),
        (("--kv-lora-rank", "8", "--rope-dim", "7"), "odd"),
        (("--kv-lora-rank", "8", "--rope-dim", "200"), "at most 32"),
        (("--q-lora-rank", "0"), "--q-lora-rank"),
        (("--q-lora-rank", "65"), "at most 64"),
        (("--method", "magic"), "--method"),
        (("--dtype", "int4"), "--dtype int4"),
        (("--device", "warp"), "--device warp"),
        (("--recipe", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_impossible_options(source, arguments, message, refused):
    assert message in refused(source, *arguments)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "no text"), (b"caf\xe9" * 9, "not UTF-8"), (b"a", "two tokens")]
)
def test_bad_calibration_text(source, content, message, refused):
    (source.parent / "text.txt").write_bytes(content)
    assert message in refused(source)


def test_weights_too_large_for_float16(source, refused):
    for shard in source.glob("*.safetensors"):
        weights = load_file(shard)
        for name in weights:
            weights[name] *= 1e7 if name.endswith("o_proj.weight") else 1
        save_file(weights, shard, metadata={"format": "pt"})
    assert "o_proj.weight: has numbers too large for float16" in refused(
        source, "--dtype", "float16"
    )


def test_two_tokens_are_enough(source, mha2mla):
    (source.parent / "text.txt").write_text("ab")
    text = source.parent / "text.txt"
    done = mha2mla("convert", source, source.parent / "out", "--calibration", text)
    assert done.returncode == 0, done.stderr


def test_existing_output(source, refused):
    out = source.parent / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    assert "already exists" in refused(source)
    assert "no checkpoint to overwrite" in refused(source, "--overwrite")
    assert (out / "precious.txt").read_text() == "mine"


def test_overwrite_spares_the_calibration_text(source, mha2mla):
    out = source.parent / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "mine.txt").write_text(TEXT[:3000])
    text = out / "mine.txt"
    result = mha2mla("convert", source, out, "--calibration", text, "--overwrite")
    assert result.returncode == 2
    assert "would replace" in result.stderr
    assert text.read_text() == TEXT[:3000]


def test_overwrite_replaces_a_checkpoint(source, mha2mla):
    out = source.parent / "out"
    arguments = ("convert", source, out, "--calibration", source.parent / "text.txt")
    assert mha2mla(*arguments).returncode == 0
    assert mha2mla(*arguments, "--cache-fraction", "0.25", "--overwrite").returncode == 0
    found = json.loads(mha2mla("inspect", out, "--json").stdout)
    assert found["cache_fraction"] == 0.25
    assert sorted(p.name for p in source.parent.iterdir()) == ["out", "source", "text.txt"]


def test_full_disk(source, refused):
    with full_disk(50_000):
        assert "cannot be written" in refused(source)


def conversion(source, out, text, *arguments):
    command = [
        sys.executable,
        "-m",
        "conversion.cli",
        "convert",
        source,
        out,
        "--calibration",
        text,
    ]
    return [*map(str, command), *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_conversion_leaves_nothing_that_looks_finished(source, mha2mla, number):
    out, text = source.parent / "out", source.parent / "text.txt"
    # Enough text that the conversion is still running when it is hit.
    text.write_text(TEXT * 200)
    process = subprocess.Popen(
        conversion(source, out, text, "--calibration-tokens", "1000000"),
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = source.parent / ".out.partial"
    deadline = time.monotonic() + 60
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not out.exists()
    if number == signal.SIGKILL:
        assert not (partial / "config.json").exists()
        text.write_text(TEXT)
        assert mha2mla("convert", source, out, "--calibration", text).returncode == 0
    else:
        assert "interrupted" in stderr
    assert not partial.exists()


def test_inspect_and_eval_refuse_what_is_not_converted(source, mha2mla):
    assert "not a converted one" in mha2mla("inspect", source).stderr
    text = source.parent / "text.txt"
    result = mha2mla("eval", source, "--baseline", source, "--text", text)
    assert result.returncode == 2
    assert "not a converted one" in result.stderr


def test_a_newer_format_version(source, mha2mla):
    out = source.parent / "out"
    text = source.parent / "text.txt"
    assert mha2mla("convert", source, out, "--calibration", text).returncode == 0
    config = json.loads((out / "config.json").read_text())
    config["mha2mla"]["format_version"] = 99
    (out / "config.json").write_text(json.dumps(config))
    result = mha2mla("inspect", out)
    assert result.returncode == 2
    assert "newer than this release" in result.stderr


def test_eval_writes_its_figures(source, mha2mla):
    out, text = source.parent / "out", source.parent / "text.txt"
    assert mha2mla("convert", source, out, "--calibration", text).returncode == 0
    figures = source.parent / "figures.json"
    result = mha2mla(
        "eval", out, "--baseline", source, "--text", text, "--window", 64, "--windows", 3,
        "--json", figures,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(figures.read_text())
    perplexity = found["perplexity"]
    assert perplexity["ratio"] == perplexity["converted"] / perplexity["baseline"]
    assert (perplexity["window"], perplexity["windows"]) == (64, 3)
    # 2 layers, 2 KV heads of 16: 128 numbers of 2 bytes (bfloat16), and half of that.
    assert found["cache"] == {
        "bytes_per_token": 128,
        "baseline_bytes_per_token": 256,
        "fraction": 0.5,
    }
