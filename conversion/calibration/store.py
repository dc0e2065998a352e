"""Statistics of layers, kept for further conversions of the same model on the same text.

Beside them, for the length of one conversion, the metrics of their rows (``coding``).
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from conversion.calibration.rotated_keys import RotatedKeys
from conversion.calibration.statistics import LayerStatistics
from conversion.errors import OutputError, StatisticsError, first_line
from conversion.runtime.device import place_to_keep

ORIGIN = "origin.txt"
CPU = torch.device("cpu")


class StatisticsStore:
    """Layer statistics by layer index.

    They belong to one source and one calibration text; :meth:`claim` holds a store to them.

    Args:
        folder: one file per layer goes there, so that they need no memory and outlive the
            process; created when needed. ``None`` keeps them in memory.
        device: a GPU that computes with them, to keep there what fits; nothing else is then left of
            that at the end.
    """

    def __init__(self, folder: Path | None = None, device: torch.device = CPU) -> None:
        self.folder = folder
        self._device = device
        self._layers: dict[int, LayerStatistics] = {}
        self._metrics: dict[tuple[int, int], Tensor] = {}
        self._origin: str | None = None

    def claim(self, origin: str) -> None:
        """Say what the statistics are of, one line of text; the first to say so decides.

        Raises:
            StatisticsError: the store holds statistics of something else.
            OutputError: the folder cannot be written.
        """
        if self._origin is None:
            self._origin = self._stored_origin() or origin
            if self.folder is not None:
                with self._writing(self.folder / ORIGIN) as partial:
                    partial.write_text(self._origin, "utf-8")
        if self._origin != origin:
            where = f"{self.folder}: these" if self.folder else "the stored"
            raise StatisticsError(
                f"{where} statistics are of another model or calibration text; use an empty store"
            )

    def __contains__(self, index: int) -> bool:
        if index in self._layers:
            return True
        return self.folder is not None and self._path(index).is_file()

    def get(self, index: int) -> LayerStatistics | None:
        """A layer's statistics, or ``None`` if there are none yet.

        Raises:
            StatisticsError: its file is damaged.
        """
        if index in self._layers or index not in self:
            return self._layers.get(index)
        path = self._path(index)
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
            rotated = values.pop("rotated")
            return LayerStatistics(**values, rotated=rotated and RotatedKeys(**rotated))
        except (
            OSError,
            RuntimeError,
            TypeError,
            KeyError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            reason = first_line(error)
            raise StatisticsError(
                f"{path}: not the statistics of a layer ({reason}); delete the file"
            ) from error

    def put(self, index: int, statistics: LayerStatistics) -> None:
        """Keep a layer's statistics.

        Raises:
            OutputError: the folder cannot be written.
        """
        place = place_to_keep(statistics.nbytes, self._device)
        statistics = statistics.to(place)
        if self.folder is None or place.type != "cpu":
            self._layers[index] = statistics
            return
        values = vars(statistics) | {"rotated": statistics.rotated and vars(statistics.rotated)}
        with self._writing(self._path(index)) as partial:
            torch.save(values, partial)

    def put_metric(self, index: int, rope: int, metric: Tensor) -> None:
        """Keep the metric of a layer's rows with so many rotary columns; the last one counts.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.folder is None:
            self._metrics[index, rope] = metric
            return
        with self._writing(self._metric_path(index, rope)) as partial:
            torch.save(metric.cpu(), partial)

    def metric(self, index: int, rope: int) -> Tensor:
        """The metric that was kept, on the device."""
        if self.folder is None:
            return self._metrics[index, rope].to(self._device)
        kept: Tensor = torch.load(self._metric_path(index, rope), weights_only=True)
        return kept.to(self._device)

    def clear(self) -> None:
        """Forget everything; files of a folder are removed, the folder is not."""
        self._layers.clear()
        self._metrics.clear()
        self._origin = None
        if self.folder is not None:
            layers = (*self.folder.glob("layer-*.pt"), *self.folder.glob("layer-*.partial"))
            for path in (self.folder / ORIGIN, *layers):
                path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[Path]:
        """A temporary name that becomes ``path`` when the block ends well."""
        partial = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield partial
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        # torch.save makes a RuntimeError of a full disk.
        except (OSError, RuntimeError) as error:
            raise OutputError(f"{path}: cannot be written ({error})") from error

    def _path(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"layer-{index:04}.pt"

    def _metric_path(self, index: int, rope: int) -> Path:
        assert self.folder is not None
        return self.folder / f"layer-{index:04}-rows-{rope}.pt"

    def _stored_origin(self) -> str | None:
        if self.folder is None or not (self.folder / ORIGIN).is_file():
            return None
        return (self.folder / ORIGIN).read_text("utf-8").strip()
