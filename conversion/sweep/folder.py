"""The folder of a sweep: checkpoints, and statistics that its recipes share."""

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
    """The folder of a sweep. Files that others have put there are never deleted.

    Attributes:
        path: path of the folder.
        keep: keep converted checkpoints.
    """

    path: Path
    keep: bool

    def kept(self, name: str) -> Path:
        """The folder of a recipe's checkpoint, where checkpoints are kept."""
        return self.path / "checkpoints" / name

    @contextlib.contextmanager
    def converted_to(self, name: str) -> Iterator[Path]:
        """Give a folder to convert to, deleted after the block unless checkpoints are kept."""
        if self.keep:
            yield self.kept(name)
            return
        temporary = self.path / ".measuring"
        try:
            yield temporary / name
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def has_made(
        self, name: str, recipe: Recipe, subject: Subject, source: SourceCheckpoint
    ) -> bool:
        """True if a kept checkpoint is the one that this recipe would make again."""
        try:
            config = read_converted_config(self.kept(name))
            # Reads the headers of the weights: a shard may be missing or cut short.
            FolderCheckpoint(self.kept(name))
            provenance = read_provenance(config)
            made_by = recipe_key(Recipe(**provenance.recipe))
        except (MHA2MLAError, ValidationError):
            return False
        calibration = subject.calibration
        if recipe.repeats:
            calibration = calibration_text(source, recipe).info
        return (
            made_by == recipe_key(recipe)
            and provenance.source.fingerprint == subject.source_fingerprint
            and provenance.calibration == calibration
            and str(config.dtype).removeprefix("torch.") == subject.dtype
            and provenance.versions.get("vllm-mha2mla") == subject.version
            and not provenance.healing
        )

    def statistics(self, subject: Subject, recipe: Recipe) -> StatisticsStore:
        """The store of statistics of one calibration; recipes, and sweeps, may differ in it."""
        identity = (
            subject.version,
            subject.source_fingerprint,
            subject.calibration.fingerprint,
            recipe.calibration_tokens,
            recipe.repeats,
        )
        name = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        return StatisticsStore(self._statistics / name)

    def clear_statistics(self) -> None:
        """Delete the statistics of this sweep and of interrupted ones."""
        stores = [store for store in self._statistics.glob("*") if store.is_dir()]
        for store in stores:
            StatisticsStore(store).clear()
        for emptied in (*stores, self._statistics):
            with contextlib.suppress(OSError):
                emptied.rmdir()

    @property
    def _statistics(self) -> Path:
        return self.path / "statistics"
