"""Hostile headers of safetensors files, and indexes that promise what is not there."""

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.hostile import SIZES, nested, value
from tests.fuzz.safetensors_bytes import join, split

INDEX = "model.safetensors.index.json"
# Of a header that was damaged before.
DAMAGED = (LookupError, ValueError, TypeError, AttributeError, OSError, RecursionError)
SHAPES = (
    *([], [0], [1], [-1], [2**62, 4], [2**40], ["2"], [2.0], None, 3, [[1]], [0, 2**63]),
    *([16, 16], [True]),
)
NAMES = (
    *("model.layers.0.self_attn.q_proj.bias", "lm_head.weight", "model.lm_head.weight", "", "x"),
    *("model.model.embed_tokens.weight", "embed_tokens.weight", "a\nb", "[bold]", "\x1b[31m"),
    *("model.layers.99.mlp.up_proj.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    *("model.layers.0.self_attn.q_proj.weight_scale", "model.layers.-1.input_layernorm.weight"),
)


def damage_header(rng: Random, folder: Path) -> str:
    """Change the header of one weight file."""
    files = sorted(p for p in folder.glob("*.safetensors") if p.is_file())
    try:
        path = rng.choice(files)
        header, data = split(path.read_bytes())
        names = sorted(set(header) - {"__metadata__"})
        name = rng.choice(names)
        done, made = rng.choice(WAYS)(rng, header, name, data)
    except DAMAGED:
        return "weights left as they are"
    path.write_bytes(made)
    return f"{path.name}: {name} {done}"


def _offsets(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    offsets = header[name]["data_offsets"]
    at = rng.randrange(2)
    offsets[at] = rng.choice((*SIZES, offsets[at] + 1, offsets[at] - 4, len(data) + 4, None, "0"))
    return f"data_offsets {offsets}", join(header, data)


def _overlap(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    other = rng.choice(sorted(set(header) - {"__metadata__"}))
    header[name] = header[other]
    return f"shares the bytes of {other}", join(header, data)


def _shape(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    shape = header[name]["shape"]
    flat = [shape[::-1], [*shape, 1], [1, *shape], [sum(shape)]]
    header[name]["shape"] = rng.choice((*SHAPES, *flat, *flat))
    return f"shape {header[name]['shape']}", join(header, data)


def _dtype(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    kinds = ("F64", "F32", "I32", "F16", "BF16", "I16", "U8", "BOOL", "F8_E4M3", "F4", "X", "", 3)
    header[name]["dtype"] = rng.choice((*kinds, None))
    if rng.random() < 0.4 and header[name]["shape"]:
        header[name]["shape"][-1] *= 2
    return f"dtype {header[name]['dtype']} of {header[name]['shape']}", join(header, data)


def _rename(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    new = rng.choice((*NAMES, name + "x", name.removeprefix("model."), f"model.{name}"))
    header[new] = header.pop(name)
    return f"is called {new!r}", join(header, data)


def _remove(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    del header[name]
    return "is missing", join(header, data)


def _twice(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    other = header[rng.choice(sorted(set(header) - {"__metadata__"}))]
    text = json.dumps(header).rstrip()[:-1] + f", {json.dumps(name)}: {json.dumps(other)}}}"
    return "is there twice", join(text, data)


def _more(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    new = rng.choice(NAMES)
    size = rng.choice((0, 64))
    entry = {"dtype": "F32", "shape": [size], "data_offsets": [len(data), len(data) + 4 * size]}
    header[new] = entry
    return f"and one more, {new!r} of {size}", join(header, data + bytes(4 * size))


def _metadata(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    header["__metadata__"] = rng.choice(({"format": "tf"}, {"format": "mlx"}, {"a": 3}, [], {}))
    if rng.random() < 0.2:
        del header["__metadata__"]
    return f"metadata {header.get('__metadata__')}", join(header, data)


def _size(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    size = rng.choice((0, 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1, len(data)))
    return f"header of {size} bytes", join(header, data, size)


def _junk(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    text = rng.choice((nested(100_000), "null", "[]", "", " " * 10**6, '{"a":' * 10**5))
    return f"header {text[:20]!r}...", join(text, data)


def _entry(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    key = rng.choice(("dtype", "shape", "data_offsets", "more"))
    header[name][key] = value(rng)
    if rng.random() < 0.3:
        header[name] = value(rng)
    return f"entry {str(header[name])[:80]}", join(header, data)


def _not_finite(rng: Random, header: dict, name: str, data: bytes) -> tuple[str, bytes]:
    _, end = header[name]["data_offsets"]
    kind = header[name]["dtype"]
    patterns = {"F32": b"\x00\x00\xc0\x7f", "BF16": b"\xc0\x7f", "F16": b"\x00\x7e"}
    bad = patterns.get(kind, b"\xff\xff\xff\xff")
    made = bytearray(data)
    made[end - len(bad) : end] = bad
    return "ends in NaN", join(header, bytes(made))


WAYS = (
    *(_offsets, _overlap, _shape, _shape, _dtype, _dtype, _rename, _remove, _twice, _more),
    *(_metadata, _size, _junk, _entry, _not_finite),
)


def damage_index(rng: Random, folder: Path) -> str:
    """Change the index; where there is none, make one first."""
    path = folder / INDEX
    try:
        if path.is_file():
            index = json.loads(path.read_text("utf-8"))
            weight_map: dict[str, Any] = index["weight_map"]
        else:
            file = next(iter(sorted(folder.glob("*.safetensors"))))
            names = set(split(file.read_bytes())[0]) - {"__metadata__"}
            weight_map = dict.fromkeys(sorted(names), file.name)
            index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
            if rng.random() < 0.5:
                file.rename(folder / "model-00001-of-00001.safetensors")
                weight_map = dict.fromkeys(weight_map, "model-00001-of-00001.safetensors")
                index["weight_map"] = weight_map
        name = rng.choice(sorted(weight_map))
    except (*DAMAGED, StopIteration):
        return "index left as it is"
    places = (
        *("../outside/other.safetensors", "/etc/passwd", "..", ".", "", "no.safetensors"),
        *("./" + str(weight_map[name]), "sub/../" + str(weight_map[name]), "config.json"),
        *("model-00001-of-00002.safetensors\n", "pytorch_model.bin", 3, None, [], "a" * 5000),
    )
    way = rng.randrange(8)
    if way < 3:
        weight_map[name] = rng.choice(places)
        done = f"{name} in {str(weight_map[name])[:60]!r}"
    elif way == 3:
        del weight_map[name]
        done = f"{name} is not named"
    elif way == 4:
        weight_map["model.layers.7.nothing"] = weight_map[name]
        done = "names a tensor that is not there"
    elif way == 5:
        index["weight_map"] = value(rng)
        done = f"weight_map {str(index['weight_map'])[:60]!r}"
    elif way == 6:
        files = sorted({str(file) for file in weight_map.values()})
        weight_map[name] = rng.choice(files)
        done = f"{name} in {weight_map[name]}"
    else:
        index["metadata"] = value(rng)
        done = "hostile metadata"
    path.write_text(json.dumps(index), "utf-8")
    return f"index: {done}"
