"""The figures of a sweep, in a file that grows with every recipe."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from conversion.errors import OutputError
from conversion.evaluation import Entry
from conversion.recipes.recipe import Recipe
from vllm_mha2mla.config import CalibrationInfo


class Subject(BaseModel):
    """The conditions that all figures of a sweep share; under others they are not comparable.

    Attributes:
        version: version of this package.
        source_fingerprint: fingerprint of the original.
        calibration: the text that statistics are measured on.
        held_out_fingerprint: fingerprint of the part of it that widths are chosen on.
        text_fingerprint: fingerprint of the tokens that perplexity is measured on.
        text_window: tokens per window of these.
        dtype: dtype of the written weights; ``None`` in results of releases that chose none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    source_fingerprint: str
    calibration: CalibrationInfo
    held_out_fingerprint: str
    text_fingerprint: str
    text_window: int
    dtype: str | None


class Finished(BaseModel):
    """A recipe that was converted and measured.

    Attributes:
        name: name of the recipe in this sweep.
        recipe: the recipe's :func:`recipe_key`.
        kv_lora_rank: latent numbers per token, layer by layer.
        qk_rope_head_dim: rotary numbers per token, layer by layer.
        bits: bits of a cached number, on average over columns and layers; ``None`` if not coded.
        figures: figures of the conversion itself, such as the candidates of the split.
        entry: figures of converted and original on the evaluation text.
    """

    name: str
    recipe: dict[str, Any]
    kv_lora_rank: list[int]
    qk_rope_head_dim: list[int]
    bits: float | None = None
    figures: dict[str, float] = {}
    entry: Entry


class Failed(BaseModel):
    """A recipe that failed, with the reason in one line."""

    name: str
    error: str


class SweepResults(BaseModel):
    """All results of a sweep so far, and of the original in quantised caches."""

    source: str
    subject: Subject
    finished: list[Finished] = []
    failed: list[Failed] = []
    rivals: list[Entry] = []

    def has(self, name: str, recipe: Recipe) -> bool:
        """True if this recipe was measured under this name."""
        key = recipe_key(recipe)
        return any(result.name == name and result.recipe == key for result in self.finished)

    def has_rivals(self, kv_cache_dtypes: Sequence[str]) -> bool:
        """True if the original was measured in just these quantised caches."""
        return [rival.kv_cache_dtype for rival in self.rivals] == list(kv_cache_dtypes)

    def drop(self, name: str) -> None:
        """Remove the result of a name that another recipe has now."""
        self.finished = [result for result in self.finished if result.name != name]

    def select(self, names: Sequence[str]) -> "SweepResults":
        """Return a copy with the results of these recipes only, in this order."""
        chosen = sorted(
            (result for result in self.finished if result.name in names),
            key=lambda result: names.index(result.name),
        )
        return self.model_copy(update={"finished": chosen})

    @classmethod
    def read(cls, path: Path) -> "SweepResults | None":
        """Read the results that a sweep left in a file; ``None`` if there is no such file.

        Raises:
            OutputError: the file holds something else.
        """
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (ValidationError, UnicodeDecodeError, OSError) as error:
            raise OutputError(
                f"{path}: not the results of a sweep; move it away or choose another file"
            ) from error

    def write(self, path: Path) -> None:
        """Replace the file atomically.

        Raises:
            OutputError: it cannot be written.
        """
        partial = path.with_name(f".{path.name}.partial")
        try:
            # Not pydantic's JSON: it writes infinite figures as null, which cannot be read back.
            partial.write_text(json.dumps(self.model_dump(), indent=2) + "\n", "utf-8")
            partial.replace(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


# Settings that matter only to recipes that refit, and only to recipes that refine.
REFIT_KEYS = {"ridge", "weigh_tokens", "refit_sinks"}
REFINE_KEYS = {"refine_lr", "refine_window"}


def recipe_key(recipe: Recipe) -> dict[str, Any]:
    """Select the settings that decide a recipe's result, as the identity of its row.

    File names of texts are left out: their content is in :class:`Subject`. Settings of steps that
    the recipe does not take are left out too, so that a new such setting of a release does not
    invalidate the rows of recipes without that step.
    """
    unused = {"calibration"}
    if not recipe.refits:
        unused |= REFIT_KEYS
    if not recipe.refine_steps:
        unused |= REFINE_KEYS
    if not recipe.repeats:
        unused.add("repeats")
    return recipe.model_dump(mode="json", exclude=unused, exclude_none=True)
