"""Hostile numbers in GGUF files, and hostile metadata."""

import struct
from pathlib import Path
from random import Random

import numpy as np

from tests.fuzz.gguf_bytes import parse
from tests.fuzz.mutate_bytes import damage as damage_bytes
from tests.support.gguf import VOCABULARY, gguf_tensors, write_gguf
from tests.support.tiny import tiny_llama

NUMBERS = (0, 1, 2, 3, 7, 8, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63)
METADATA = {
    "{arch}.block_count": (0, 1, 3, 2**31, 2.0, "2", [2, 2], [2, 3], None),
    "{arch}.context_length": (0, 1, 512.0, None),
    "{arch}.embedding_length": (0, 16, 33, None),
    "{arch}.feed_forward_length": (0, 47, [48, 48], [48, 49], None),
    "{arch}.attention.head_count": (0, 1, 2, 3, 8, [4, 4], [4, 2], "four", None),
    "{arch}.attention.head_count_kv": (0, 1, 3, 4, 8, [2, 2], [2, 0], [], None),
    "{arch}.attention.layer_norm_rms_epsilon": (0.0, -1.0, float("nan"), 1, "x", None),
    "{arch}.attention.key_length": (0, 4, 7, 16, None),
    "{arch}.attention.value_length": (4, 16, None),
    "{arch}.attention.sliding_window": (0, 16, 4096),
    "{arch}.attention.causal": (True, False),
    "{arch}.attention.scale": (0.5,),
    "{arch}.attention.clamp_kqv": (0.0, 8.0),
    "{arch}.rope.dimension_count": (0, 4, 7, 16, None),
    "{arch}.rope.freq_base": (0.0, -1.0, float("inf"), float("nan"), 5e5, "x", None),
    "{arch}.rope.scaling.type": ("none", "linear", "yarn", "longrope", "", 3),
    "{arch}.rope.scaling.factor": (0.0, 1.0, 2.0, -2.0, float("nan"), "x"),
    "{arch}.rope.scaling.original_context_length": (0, 64, 512.0),
    "{arch}.rope.scaling.attn_factor": (0.0, 1.0, 2.0),
    "{arch}.rope.scale_linear": (1.0, 2.0),
    "{arch}.rope.more": (1, "x"),
    "{arch}.expert_count": (0, 4),
    "{arch}.vocab_size": (0, 3),
    "{arch}.logit_scale": (2.0,),
    "{arch}.unheard_of": (1,),
    "general.alignment": (0, 1, 3, 32, 64, 2**31, "x"),
    "general.type": ("model", "adapter", "mmproj", 3),
    "split.count": (0, 1, 2, 10**6),
    "tokenizer.ggml.model": ("gpt2", "llama", "bert", "evil", 3, None),
    "tokenizer.ggml.pre": ("gpt-2", "llama-bpe", "evil", 3, None),
    "tokenizer.ggml.eos_token_id": (0, 257, 10**6, -1, "x", [1], None),
    "tokenizer.ggml.eot_token_id": (258, 10**6),
    "tokenizer.ggml.bos_token_id": (260, 10**6, "x"),
    "tokenizer.ggml.add_bos_token": (True, False, 3),
    "tokenizer.chat_template": ("{{ messages }}", "{{", "", 3, ["x"]),
    "tokenizer.chat_template.tool_use": ("{{ tools }}", 3),
    "general.sampling.temp": (0.7, -1.0, float("nan"), "x"),
    "a\nb": (1,),
}
LENGTHS = (0, 1, 2**20, 2**40, 2**63 - 1)


def damage(rng: Random, folder: Path) -> str:
    """Damage a GGUF file of the folder, or write another one in its place."""
    path = rng.choice(sorted(folder.glob("*.gguf")))
    way = rng.random()
    if way < 0.3:
        return damage_bytes(rng, folder)
    if way < 0.65:
        return _number(rng, path)
    if way < 0.7:
        return _huge_list(rng, path)
    return _metadata(rng, folder)


def _number(rng: Random, path: Path) -> str:
    """Change counts, lengths, types, sizes or offsets."""
    try:
        numbers = parse(path).numbers
    except (ValueError, KeyError, struct.error):
        return f"{path.name}: left as it is"
    data, done = bytearray(path.read_bytes()), []
    # Most are lengths of tokens.
    few = numbers[:3] + numbers[-120:]
    for _ in range(rng.choice((1, 1, 2))):
        place, size = rng.choice(few if rng.random() < 0.6 else numbers)
        old = int.from_bytes(data[place : place + size], "little")
        new = rng.choice((*NUMBERS, old + 1, old - 1, old * 2, old + 32)) % (1 << (8 * size))
        data[place : place + size] = new.to_bytes(size, "little")
        done.append(f"{old} at {place} is {new}")
    path.write_bytes(data)
    return f"{path.name}: {', '.join(done)}"


def _huge_list(rng: Random, path: Path) -> str:
    """Put a list in front of the metadata that says to be longer than it is."""
    data = bytearray(path.read_bytes())
    count = int.from_bytes(data[16:24], "little")
    key, kind, length = b"a.list", rng.choice((0, 4, 7, 8, 9, 12)), rng.choice(LENGTHS)
    entry = len(key).to_bytes(8, "little") + key + (9).to_bytes(4, "little")
    for _ in range(rng.choice((0, 0, 1, 2000))):
        entry += (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    entry += kind.to_bytes(4, "little") + length.to_bytes(8, "little")
    data[16:24] = (count + 1).to_bytes(8, "little")
    data[24:24] = entry
    path.write_bytes(data)
    return f"{path.name}: a list of {length} of type {kind}, {len(entry)} bytes"


def _metadata(rng: Random, folder: Path) -> str:
    """Write the file with other metadata, and sometimes other tensors."""
    changes = {}
    for key in rng.sample(sorted(METADATA), rng.choice((1, 1, 2, 3))):
        changes[key] = rng.choice(METADATA[key])
    model = tiny_llama(
        hidden_size=32,
        intermediate_size=48,
        vocab_size=VOCABULARY,
        tie_word_embeddings=rng.random() < 0.5,
    )
    tensors = gguf_tensors(model)
    done = _tensors(rng, tensors) if rng.random() < 0.3 else ""
    for path in folder.glob("*.gguf"):
        path.unlink()
    try:
        write_gguf(folder / "m.gguf", tensors, model.config, changes)
    except (ValueError, TypeError, KeyError, struct.error, IndexError, OverflowError):
        # The writer does not write everything.
        write_gguf(folder / "m.gguf", tensors, model.config)
        return f"m.gguf: {done or 'undamaged'}"
    return f"m.gguf: {changes} {done}"


def _tensors(rng: Random, tensors: dict[str, np.ndarray]) -> str:
    name = rng.choice(sorted(tensors))
    way = rng.randrange(6)
    if way == 0:
        del tensors[name]
        return f"no {name}"
    if way == 1:
        tensors["rope_freqs.weight"] = rng.choice(
            (np.ones(4), np.full(4, 2.0), np.zeros(4), np.ones(3), np.array([1, 2, 4, 8.0]))
        ).astype(np.float32)
        return f"rope_freqs {tensors['rope_freqs.weight']}"
    if way == 2:
        tensors[name] = tensors[name].T.copy()
        return f"{name} transposed"
    if way == 3:
        new = rng.choice(("blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.7.attn_q.weight", "x", ""))
        tensors[new] = np.ones(rng.choice((16, 32)), np.float32)
        return f"and {new!r} of {tensors[new].shape}"
    if way == 4:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = rng.choice((np.nan, np.inf))
        return f"{name} ends in {tensors[name].flat[-1]}"
    tensors[name] = tensors[name].astype(rng.choice((np.float16, np.float64, np.int32)))
    return f"{name} as {tensors[name].dtype}"
