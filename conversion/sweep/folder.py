"""What a sweep keeps in its folder: checkpoints, and statistics that its recipes share."""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from conversion.calibration.store import StatisticsStore
from conversion.checkpoint.loading import read_converted_config
from conversion.pipeline import calibration_text
from conversion.recipes.recipe import Recipe
from conversion.source import SourceCheckpoint
from conversion.source.folder import FolderCheckpoint
from conversion.sweep.results import Subject, recipe_key
from vllm_mha2mla.config import read_provenance
from vllm_mha2mla.errors import MHA2MLAError


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep; nothing that others have put there is deleted.

    Attributes:
        path: of the folder.
        keep: whether converted checkpoints stay.
    """

    path: Path
    keep: bool

    def kept(self, name: str) -> Path:
        """Where the checkpoint of a recipe stays, if it does."""
        return self.path / "checkpoints" / name

    @contextlib.contextmanager
    def converted_to(self, name: str) -> Iterator[Path]:
        """Where to convert to: deleted when the block ends, unless checkpoints are kept."""
        if self.keep:
            yield self.kept(name)
            return
        passing = self.path / ".measuring"
        try:
            yield passing / name
        finally:
            shutil.rmtree(passing, ignore_errors=True)

    def has_made(
        self, name: str, recipe: Recipe, subject: Subject, source: SourceCheckpoint
    ) -> bool:
        """Whether a kept checkpoint is what converting with this recipe would make again."""
        try:
            config = read_converted_config(self.kept(name))
            # Headers of the weights: a shard may be missing, or cut.
            FolderCheckpoint(self.kept(name))
            found = read_provenance(config)
            made_by = recipe_key(Recipe(**found.recipe))
        except (MHA2MLAError, ValidationError):
            return False
        calibration = subject.calibration
        if recipe.repeats:
            calibration = calibration_text(source, recipe).info
        return (
            made_by == recipe_key(recipe)
            and found.source.fingerprint == subject.source_fingerprint
            and found.calibration == calibration
            and str(config.dtype).removeprefix("torch.") == subject.dtype
            and found.versions.get("vllm-mha2mla") == subject.version
            and not found.healing
        )

    def statistics(self, subject: Subject, recipe: Recipe) -> StatisticsStore:
        """Of one calibration: recipes differ in it, and so did an interrupted sweep."""
        what = (
            subject.version,
            subject.source_fingerprint,
            subject.calibration.fingerprint,
            recipe.calibration_tokens,
            recipe.repeats,
        )
        name = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
        return StatisticsStore(self._statistics / name)

    def clear_statistics(self) -> None:
        """Those of this sweep and of interrupted ones."""
        stores = [store for store in self._statistics.glob("*") if store.is_dir()]
        for store in stores:
            StatisticsStore(store).clear()
        for emptied in (*stores, self._statistics):
            with contextlib.suppress(OSError):
                emptied.rmdir()

    @property
    def _statistics(self) -> Path:
        return self.path / "statistics"
