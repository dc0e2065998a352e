"""What a sweep keeps in its folder: checkpoints, and statistics that its recipes share."""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from conversion.calibration.store import StatisticsStore
from conversion.loading import converted_config
from conversion.pipeline import Options, calibration_text
from conversion.recipe import Recipe
from conversion.source import SourceCheckpoint
from conversion.sweep_results import recipe_key
from vllm_mha2mla.config import read_provenance
from vllm_mha2mla.errors import MHA2MLAError
from vllm_mha2mla.version import __version__


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep; nothing that others have put there is deleted.

    Attributes:
        path: of the folder.
        keep: whether converted checkpoints stay.
    """

    path: Path
    keep: bool

    def checkpoint(self, name: str) -> Path:
        """Where the checkpoint of a recipe goes."""
        return self.path / "checkpoints" / name

    def has_checkpoint(self, name: str) -> bool:
        """Whether a recipe has one."""
        return (self.checkpoint(name) / "config.json").is_file()

    def has_made(
        self, name: str, source: SourceCheckpoint, recipe: Recipe, options: Options
    ) -> bool:
        """Whether a kept checkpoint is what converting with this recipe would make again."""
        if not (self.keep and self.has_checkpoint(name)):
            return False
        try:
            config = converted_config(self.checkpoint(name))
            found = read_provenance(config)
            made_by = recipe_key(Recipe(**found.recipe))
        except (MHA2MLAError, ValidationError):
            return False
        return (
            made_by == recipe_key(recipe)
            and found.source.fingerprint == source.fingerprint()
            and found.calibration == calibration_text(source, recipe).info
            and config.dtype == (options.dtype or source.dtype)
            and found.versions.get("vllm-mha2mla") == __version__
            and not found.healing
        )

    def drop_checkpoint(self, name: str) -> None:
        """Delete the one that was just measured, unless they are kept."""
        if not self.keep:
            shutil.rmtree(self.checkpoint(name), ignore_errors=True)

    def statistics(self, fingerprint: str, repeats: float) -> StatisticsStore:
        """Of one calibration; recipes differ in it, and so did an interrupted sweep."""
        return StatisticsStore(self._statistics / f"{fingerprint[:16]}-{repeats:g}")

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
