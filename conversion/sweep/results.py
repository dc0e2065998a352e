"""The figures of a sweep, as a file that grows with every recipe."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from conversion.errors import EvaluationError, OutputError
from conversion.evaluation import Entry
from conversion.recipes.recipe import Recipe
from vllm_mha2mla.config import CalibrationInfo


class Subject(BaseModel):
    """What all figures of a sweep share; those of another subject are not comparable.

    Attributes:
        version: of this package.
        source_fingerprint: the original's.
        calibration: the text the statistics came from.
        held_out_fingerprint: of the part of it that splits are chosen on.
        text_fingerprint: of the tokens perplexity is measured on.
        text_window: how many of them make a window.
        dtype: of the written weights; ``None`` in results of releases that did not choose one.
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
        name: of the recipe in this sweep.
        recipe: as :func:`recipe_key` gives it.
        kv_lora_rank: latent numbers per token, layer by layer.
        qk_rope_head_dim: rotary numbers per token, layer by layer.
        figures: what the conversion measured, such as the candidates of the split.
        entry: converted and original on the held-out text.
    """

    name: str
    recipe: dict[str, Any]
    kv_lora_rank: list[int]
    qk_rope_head_dim: list[int]
    figures: dict[str, float] = {}
    entry: Entry


class Failed(BaseModel):
    """A recipe that failed, and why, in one line."""

    name: str
    error: str


class SweepResults(BaseModel):
    """Everything a sweep has measured so far."""

    source: str
    subject: Subject
    finished: list[Finished] = []
    failed: list[Failed] = []

    def has(self, name: str, recipe: Recipe) -> bool:
        """Whether this recipe was measured, under this name."""
        key = recipe_key(recipe)
        return any(one.name == name and one.recipe == key for one in self.finished)

    def drop(self, name: str) -> None:
        """Forget the result of a name: another recipe has it now."""
        self.finished = [one for one in self.finished if one.name != name]

    def of(self, names: Sequence[str]) -> "SweepResults":
        """The results of these recipes only, in this order."""
        chosen = sorted(
            (one for one in self.finished if one.name in names),
            key=lambda one: names.index(one.name),
        )
        return self.model_copy(update={"finished": chosen})

    @classmethod
    def read(cls, path: Path) -> "SweepResults | None":
        """What a sweep left in a file; ``None`` if there is no such file.

        Raises:
            EvaluationError: the file holds something else.
        """
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (ValidationError, UnicodeDecodeError, OSError) as error:
            raise EvaluationError(
                f"{path}: not the results of a sweep; move it away or choose another file"
            ) from error

    def write(self, path: Path) -> None:
        """Replace the file, all at once.

        Raises:
            OutputError: it cannot be written.
        """
        partial = path.with_name(f".{path.name}.partial")
        try:
            # Not pydantic's JSON: figures of a model that overflows would be null, and unreadable.
            partial.write_text(json.dumps(self.model_dump(), indent=2) + "\n", "utf-8")
            partial.replace(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


# What has a say only where something is refitted, or only where something is refined.
OF_REFITS = {"ridge", "weigh_tokens", "refit_sinks"}
OF_REFINEMENTS = {"refine_lr", "refine_window"}


def recipe_key(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides its result.

    The names of its texts do not: their content is in :class:`Subject`. Nor do settings of what it
    does not do, or a new one would make every row that was measured before it another recipe's.
    """
    unused = {"calibration"}
    if not recipe.refits:
        unused |= OF_REFITS
    if not recipe.refine_steps:
        unused |= OF_REFINEMENTS
    if not recipe.repeats:
        unused.add("repeats")
    return recipe.model_dump(mode="json", exclude=unused, exclude_none=True)
