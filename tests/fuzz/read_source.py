"""Source folders: the product's reading beside transformers' own."""

from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from conversion.checkpoint.loading import source_model
from conversion.pipeline import Options, convert
from conversion.recipes.recipe import Recipe
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint, open_source
from tests.fuzz.sandbox import Watch
from tests.support.tiny import TEXT
from vllm_mha2mla.errors import MHA2MLAError

IDS = torch.tensor([[71, 3, 3, 250, 12, 99, 0, 31]])
# One conversion of so many that are accepted.
CONVERTED = 40


def check(case: Path, watch: Watch, rng: Random) -> str:
    """The verdict on a folder: refused in one line, or the same logits as transformers."""
    folder = case / "model"
    try:
        source = open_source(str(folder))
        tokenizer = source.tokenizer()
        for name in source.tensors:
            for _ in source.pieces(name):
                pass
        (case / "out" / "assets").mkdir()
        source.write_assets(case / "out" / "assets")
        model = source_model(source, torch.float32)
    except Exception as error:
        return refusal(error)
    watch.on = False
    logits = _logits(model, IDS)
    try:
        expected, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        return f"wrong accepted what transformers refuses: {type(error).__name__}: {error}"
    if info["missing_keys"] or info["mismatched_keys"]:
        return f"wrong accepted what transformers lacks: {info}"
    theirs = _logits(expected.eval(), IDS)
    if not same(logits, theirs):
        return f"wrong logits differ by {(logits - theirs).abs().max()}"
    copied = AutoTokenizer.from_pretrained(case / "out" / "assets", config=expected.config)
    if copied.get_vocab() != tokenizer.get_vocab():
        return "wrong another vocabulary"
    watch.on = True
    if rng.randrange(CONVERTED) == 0 and float(theirs.abs().max()) < 1e3:
        return _convert(case, source, expected)
    return "right the same logits as transformers"


def _convert(case: Path, source: SourceCheckpoint, original: torch.nn.Module) -> str:
    """Convert the whole model at full width, and compare again."""
    out = case / "out" / "converted"
    text = str(case / "text.txt")
    recipe = Recipe(
        calibration=[text],
        calibration_tokens=1024,
        window=128,
        cache_fraction=1,
        bits="16",
        refit=False,
    )
    try:
        convert(source, out, recipe, Options(dtype=torch.float32), Progress())
    except Exception as error:
        return refusal(error)
    converted = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    # A calibrated model is the original where its text has been.
    ids = source.tokenizer()(TEXT[:128], return_tensors="pt").input_ids
    logits, expected = _logits(converted.eval(), ids), _logits(original, ids)
    # Products of float32 in another order.
    if not torch.allclose(logits, expected, atol=1e-3 * float(expected.abs().max())):
        return f"wrong converted: logits differ by {(logits - expected).abs().max()}"
    return "right converted, the same logits"


def refusal(error: BaseException) -> str:
    """The verdict on an error: one line of ours, or wrong."""
    text = str(error)
    if not isinstance(error, MHA2MLAError):
        return f"wrong a traceback: {type(error).__name__}: {text[:300]}"
    if not text.isprintable() or len(text) > 2000:
        return f"wrong not one line that can be read: {text[:300]!r}"
    return f"refused {text[:300]}"


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Tell whether logits agree; damaged weights may make them NaN or infinite in both."""
    scale = theirs[theirs.isfinite()].abs().max() if theirs.isfinite().any() else 1.0
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(scale), equal_nan=True)


def _logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids % model.config.vocab_size).logits.float()
