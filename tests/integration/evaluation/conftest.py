"""An original, its conversion and texts; `mha2mla eval` in this process."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from conversion.evaluation import Comparison
from conversion.pipeline import Options, convert
from conversion.recipes.recipe import Recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from tests.support.tiny import TEXT, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An original, its conversion at a third of the cache, and texts."""
    folder = tmp_path_factory.mktemp("evaluation")
    source = save_tiny(folder / "source", max_position_embeddings=1024)
    (folder / "text.txt").write_text(TEXT)
    recipe = Recipe(
        calibration=[str(folder / "text.txt")],
        calibration_tokens=512,
        window=128,
        cache_fraction=0.34,
        rotary="high",
    )
    options = Options(dtype=torch.float32)
    convert(open_source(str(source)), folder / "out", recipe, options, Progress())
    return folder


@pytest.fixture(scope="module")
def models(folder):
    load = {"original": LlamaForCausalLM, "converted": AutoModelForCausalLM}
    where = {"original": folder / "source", "converted": folder / "out"}
    return {
        name: load[name].from_pretrained(where[name], dtype=torch.float32).eval() for name in load
    }


@pytest.fixture
def evaluate(folder, mha2mla):
    """The command on the fixture's models: exit code, standard output, standard error."""

    def run(*arguments):
        return mha2mla("eval", folder / "out", "--baseline", folder / "source", *arguments)

    return run


@pytest.fixture
def figures(evaluate, tmp_path):
    def run(*arguments):
        code, _, error = evaluate("--json", tmp_path / "figures.json", *arguments)
        assert code == 0, error
        return Comparison.model_validate_json((tmp_path / "figures.json").read_text())

    return run
