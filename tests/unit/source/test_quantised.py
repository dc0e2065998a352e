"""Quantised sources: read as their own libraries dequantise them, or refused as what they are."""

import json
import logging

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

from conversion.errors import SourceError
from conversion.source import open_source
from conversion.source.scaled import unpack
from tests.support.tiny import save_tiny

WEIGHTS = "model.safetensors"
ROWS, COLUMNS = 96, 64
EXCEPT = ("embed_tokens", "norm")
SCHEMES = {
    "int8 per channel": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "int8 per tensor": ("naive-quantized", {"num_bits": 8, "strategy": "tensor"}),
    "int8 asymmetric": (
        "int-quantized",
        {"num_bits": 8, "strategy": "channel", "symmetric": False},
    ),
    "int8 per group": ("naive-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32}),
    "fp8 per tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "fp8 per channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "fp8 blocks": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 16]},
    ),
    "int4 per group": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 16}),
    "int4 per channel": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}),
    "int4 asymmetric": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False},
    ),
    "int8 packed": ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32}),
    "int3 packed": (
        "pack-quantized",
        {"num_bits": 3, "strategy": "channel", "symmetric": False},
    ),
    "int4 by columns": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 16, "actorder": "group"},
    ),
}


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model", tie_word_embeddings=False, dtype=torch.bfloat16)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def quantise(folder, settings, change):
    """Replace every matrix but the embedding by ``change(matrix)``, suffix -> tensor."""
    tensors = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        module = name.removesuffix(".weight")
        if any(part in name for part in EXCEPT):
            tensors[name] = tensor.bfloat16()
        else:
            tensors |= {f"{module}.{end}": part for end, part in change(module, tensor).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    change_config(folder, dtype="bfloat16", quantization_config=settings)


def compressed(args, compressor, module, weight, generator):
    """compressed-tensors' own parts of a matrix, and its own reading of them."""
    rows, columns = weight.shape
    groups = {
        "tensor": (1, 1),
        "channel": (rows, 1),
        "group": (rows, columns // (args.group_size or 1)),
        "block": (rows // 32, columns // 16),
    }[args.strategy]
    top = 2 ** (args.num_bits - 1) - 1 if args.type == "int" else 448.0
    shape = groups if args.strategy != "tensor" else (1,)
    scale = (torch.rand(shape, generator=generator) + 0.5) * 0.4 / top
    state = {"weight": weight.bfloat16(), "weight_scale": scale.bfloat16()}
    if not args.symmetric:
        state["weight_zero_point"] = torch.randint(
            -2, 3, groups, generator=generator, dtype=torch.int8
        )
    if args.actorder:
        order = torch.randperm(columns, generator=generator)
        state["weight_g_idx"] = (order // args.group_size).to(torch.int32)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    parts = compressor.compress(state, scheme)
    return parts, compressor.decompress(dict(parts), scheme)["weight"]


@pytest.mark.parametrize("kind", SCHEMES)
def test_compressed_tensors(folder, kind, caplog):
    form, values = SCHEMES[kind]
    args = QuantizationArgs(**values)
    compressor = BaseCompressor.get_value_from_registry(form)
    generator = torch.Generator().manual_seed(0)
    expected = {}

    def change(module, weight):
        parts, expected[f"{module}.weight"] = compressed(
            args, compressor, module, weight, generator
        )
        return parts | {"input_scale": torch.ones(1)}

    settings = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": values}},
        "ignore": [],
    }
    quantise(folder, settings, change)
    caplog.set_level(logging.INFO)
    source = open_source(str(folder))
    assert "compressed-tensors-quantised: 15 matrices are dequantised to bfloat16" in caplog.text
    assert not hasattr(source.config, "quantization_config")
    for name, weight in expected.items():
        assert source.tensors[name].dtype == torch.bfloat16
        assert torch.equal(source.tensor(name), weight), name
        assert torch.equal(source.tensor(name, slice(5, 39)), weight[5:39])


@pytest.mark.parametrize("groups", [-1, "mixed"])
def test_columns_whose_order_was_never_set(folder, groups):
    """As compressed-tensors reads them: consecutive groups wherever a column has the group -1."""
    form, values = SCHEMES["int4 per group"]
    args, compressor = QuantizationArgs(**values), BaseCompressor.get_value_from_registry(form)
    generator = torch.Generator().manual_seed(0)
    expected = {}

    def change(module, weight):
        parts, expected[f"{module}.weight"] = compressed(
            args, compressor, module, weight, generator
        )
        order = torch.full((weight.shape[1],), -1, dtype=torch.int32)
        if groups == "mixed":
            order[::2] = 0
        return parts | {"weight_g_idx": order}

    settings = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"weights": values | {"actorder": "group"}}},
    }
    quantise(folder, settings, change)
    source = open_source(str(folder))
    for name, weight in expected.items():
        assert torch.equal(source.tensor(name), weight), name


def test_compressed_tensors_of_two_kinds(folder):
    kinds = {kind: SCHEMES[kind] for kind in ("int4 per group", "int8 per channel")}
    generator = torch.Generator().manual_seed(0)
    expected = {}

    def change(module, weight):
        form, values = kinds["int4 per group" if "mlp" in module else "int8 per channel"]
        compressor = BaseCompressor.get_value_from_registry(form)
        args = QuantizationArgs(**values)
        parts, expected[f"{module}.weight"] = compressed(
            args, compressor, module, weight, generator
        )
        return parts

    settings = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {
            kind: {"targets": ["Linear"], "format": form, "weights": values}
            for kind, (form, values) in kinds.items()
        },
    }
    quantise(folder, settings, change)
    source = open_source(str(folder))
    for name, weight in expected.items():
        assert torch.equal(source.tensor(name), weight), name


@pytest.mark.parametrize(
    ("method", "block", "end", "dtype"),
    [
        ("fp8", [32, 24], "weight_scale_inv", torch.float32),
        ("fp8", [128, 128], "weight_scale_inv", torch.bfloat16),
        ("fp8", None, "weight_scale", torch.float32),
        ("fbgemm_fp8", None, "weight_scale", torch.float32),
    ],
)
def test_fp8(folder, method, block, end, dtype):
    generator = torch.Generator().manual_seed(0)
    expected = {}

    def change(module, weight):
        rows, columns = weight.shape
        # Weights that fill fp8's range; the last block of a row or column may be cut.
        values = (weight * 100).to(torch.float8_e4m3fn)
        if block is not None:
            height, width = block
            grid = (-(-rows // height), -(-columns // width))
        else:
            height, width, grid = (1, columns, (rows, 1)) if "fb" in method else (rows, columns, ())
        scale = ((torch.rand(grid, generator=generator) + 0.5) / 100).to(dtype)
        wide = torch.empty(rows, columns)
        for row in range(0, rows, height):
            for column in range(0, columns, width):
                one = scale[row // height, column // width] if grid else scale
                wide[row : row + height, column : column + width] = one.float()
        expected[f"{module}.weight"] = (values.float() * wide).bfloat16()
        return {"weight": values, end: scale}

    settings = {"quant_method": method, "activation_scheme": "dynamic"}
    quantise(folder, settings | ({"weight_block_size": block} if block else {}), change)
    source = open_source(str(folder))
    for name, weight in expected.items():
        assert torch.equal(source.tensor(name), weight), name
        assert torch.equal(source.tensor(name, slice(30, 50)), weight[30:50])
    assert len(expected) == 15


def test_words_hold_signed_numbers_the_lowest_bits_first():
    # 0x...F0: the first number has the bits 0000, which stand for -8; the second 1111, for 7.
    words = torch.tensor([[0x000000F0], [-1]], dtype=torch.int32)
    assert unpack(words, 4).tolist() == [[-8, 7, -8, -8, -8, -8, -8, -8], [7] * 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ-quantised; convert from the unquantised"),
        ({"quant_method": "awq", "bits": 4}, "AWQ-quantised"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "BITSANDBYTES-quantised"),
        ({"quant_method": "modelopt"}, "MODELOPT-quantised"),
        ({"quant_method": "mxfp4"}, "MXFP4-quantised"),
        ({"quant_method": "compressed-tensors"}, "(it has no config_groups)"),
    ],
)
def test_other_methods_are_refused_by_name(folder, settings, message):
    change_config(folder, quantization_config=settings)
    with pytest.raises(SourceError) as error:
        open_source(str(folder))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "nvfp4-pack-quantized"}, "(format nvfp4-pack-quantized)"),
        ({"format": "marlin-24"}, "(format marlin-24)"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse, too"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transformed, too"),
        ({"quantization_status": "frozen"}, "quantization_status 'frozen'"),
    ],
)
def test_compressed_tensors_that_are_not_read(folder, changes, message):
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "strategy": "channel"}}},
    }
    change_config(folder, quantization_config=settings | changes)
    with pytest.raises(SourceError) as error:
        open_source(str(folder))
    assert message in str(error.value)


def test_plain_weights_that_the_config_calls_quantised(folder):
    weights = {"num_bits": 8, "strategy": "channel"}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "naive-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
    change_config(folder, quantization_config=settings)
    with pytest.raises(SourceError, match="none of its matrices is"):
        open_source(str(folder))


@pytest.mark.parametrize("damage", ["scale", "shape", "missing"])
def test_parts_that_do_not_fit(folder, damage):
    def change(module, weight):
        rows, columns = weight.shape
        parts = {
            "weight_packed": torch.zeros(rows, columns // 8, dtype=torch.int32),
            "weight_scale": torch.ones(rows, 3 if damage == "scale" else 4, dtype=torch.bfloat16),
            "weight_shape": torch.tensor([rows, columns * (9 if damage == "shape" else 1)]),
        }
        if damage == "missing":
            del parts["weight_shape"]
        return parts

    weights = {"num_bits": 4, "strategy": "group", "group_size": 16}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
    quantise(folder, settings, change)
    with pytest.raises(SourceError, match=r"compressed-tensors-quantised, and .*weight_"):
        open_source(str(folder))
