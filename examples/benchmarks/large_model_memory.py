"""Measure the memory that the conversion of a large model takes: of Llama-3-8B's shape, or others.

The script writes a checkpoint of that shape with random weights, in bfloat16 and in shards,
converts it to half the cache, and prints the peak of the resident memory beside its parts. A
finished layer leaves only the held-out text before it in memory, so 3 layers show what 32 need.
With --device cuda it prints the peak of that device's memory instead of the parts of the process's.
Each layer takes 0.4 GB of disk for the original, the embedding and the head take 2.1 GB, and the
converted checkpoint as much again. All of it is deleted at the end.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from conversion.families import FAMILIES
from conversion.pipeline import Options, convert
from conversion.recipes.make import make_recipe
from conversion.runtime.numbers import ceil_div
from conversion.runtime.progress import Progress
from conversion.source import open_source

SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
# What the shapes of large models of other families have different.
OTHERS: dict[str, dict[str, int | None]] = {
    "qwen3_moe": {
        "hidden_size": 2048,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
    "mistral": {"sliding_window": None},
    "olmo2": {"num_key_value_heads": 32, "intermediate_size": 11008},
    "gemma": {"hidden_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 16},
}
MIB = 2**20


def write_model(folder: Path, layers: int, device: str = "cpu", family: str = "llama") -> None:
    """Write a random checkpoint: a shard per layer, and one each for embedding and head.

    The numbers are drawn on ``device``: on a CPU, that takes longer than a conversion on a GPU.
    """
    values = SHAPE | OTHERS.get(family, {})
    config = AutoConfig.for_model(family, **values, num_hidden_layers=layers, dtype="bfloat16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    shapes = {
        stored: shape
        for name, tensor in model.state_dict().items()
        for stored, shape, _ in FAMILIES[family].stored_parts(name, tuple(tensor.shape))
    }
    shards: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        place = f"layer-{parts[2]}" if "layers" in parts else parts[-2]
        shards.setdefault(f"model-{place}.safetensors", []).append(name)
    for shard, names in shards.items():
        tensors = {name: _random(name, shapes[name], device) for name in names}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    where = {name: shard for shard, names in shards.items() for name in names}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _byte_tokenizer().save_pretrained(folder)


def _random(name: str, shape: tuple[int, ...], device: str) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=torch.bfloat16, device=device)
    return (tensor.fill_(1) if "norm" in name else tensor.normal_(std=0.02)).cpu()


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def resident(field: str) -> int:
    """Read this process's resident memory (``VmRSS``) or its peak (``VmHWM``), in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Write, convert, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="llama", choices=list(FAMILIES))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--bits", default="auto", help="of the rows; 16 is much the fastest")
    parser.add_argument("--refit", action="store_true")
    parser.add_argument("--offload", action="store_true", help="activations in files")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go for the while")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "source"
        write_model(source, arguments.layers, arguments.device, arguments.family)
        # The memory that writing took is not part of the peak.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        checkpoint = open_source(str(source))
        recipe = make_recipe(
            None,
            calibration_tokens=arguments.tokens,
            window=arguments.window,
            bits=arguments.bits,
            refit=arguments.refit,
        )
        options = Options(
            device=arguments.device, offload=Path(folder) if arguments.offload else None
        )
        on_gpu = arguments.device != "cpu"
        if on_gpu:
            # Its libraries are loaded with it, which is no part of a layer's time.
            torch.linalg.inv(torch.eye(2, device=arguments.device))
            torch.cuda.reset_peak_memory_stats()
        start = time.monotonic()
        convert(checkpoint, Path(folder) / "converted", recipe, options, Progress())
        peak, seconds = resident("VmHWM") - before, time.monotonic() - start
        layer = sum(t.nbytes for t in checkpoint.layer(0, torch.float32).parameters())
    # The original stream, and the held-out text before every layer and after the last with two
    # gradients of it. Later, with a refit, the original stream of more text and a window of sink
    # tokens, the converted one and the heads' outputs, as wide.
    refitted = 3 * (recipe.text_tokens + recipe.window)
    held_out = ceil_div(recipe.held_out, recipe.window) * recipe.window
    tokens = recipe.calibration_tokens + held_out * (arguments.layers + 3)
    if arguments.refit:
        tokens = max(tokens, refitted)
    kept = 0 if arguments.offload else tokens * checkpoint.config.hidden_size * 4
    print(f"peak resident memory above what the imports take  {peak / MIB:8,.0f} MiB")
    if on_gpu:
        peak = torch.cuda.max_memory_allocated()
        print(f"peak of the memory that tensors take on the GPU   {peak / MIB:8,.0f} MiB")
    print(f"activations                                       {kept / MIB:8,.0f} MiB")
    print(f"one layer in float32                              {layer / MIB:8,.0f} MiB")
    if not on_gpu:
        print(f"(peak - activations) / layer                      {(peak - kept) / layer:8.2f}")
    print(f"seconds per layer                                 {seconds / arguments.layers:8.0f}")


if __name__ == "__main__":
    main()
