"""The statistics of a source's layers: measured once, then read from a store."""

from itertools import islice
from typing import Any

import torch

from conversion.calibration.activations import Activations
from conversion.calibration.statistics import LayerStatistics, layer_statistics
from conversion.calibration.store import StatisticsStore
from conversion.errors import StatisticsError
from conversion.layers.original import SourceLayers


class Measurements:
    """The statistics of one source's layers.

    Args:
        layers: the source's.
        windows: on how many windows attention is measured, the first of a stream.
        store: statistics measured before, and where new ones go.

    Attributes:
        layers: the source's.
        store: the statistics.
    """

    def __init__(self, layers: SourceLayers, windows: int, store: StatisticsStore) -> None:
        self.store = store
        self.layers = layers
        self._windows = windows
        self._loaded: tuple[int, LayerStatistics] | None = None

    @property
    def complete(self) -> bool:
        """Tell if the store has the statistics of every layer that is converted."""
        return all(index in self.store for index in self.layers.converted)

    @torch.no_grad()
    def measure(self, layer: Any, index: int, hidden: Activations) -> None:
        """Put a layer's statistics in the store, unless they are there or the layer is kept.

        Args:
            layer: as ``layers`` loads it.
            index: which layer it is.
            hidden: the original's calibration text before the layer.
        """
        if index in self.store or index in self.layers.kept:
            return
        layers, windows = self.layers, islice(hidden, self._windows)
        normed = (layers.normed(layer, x[None].to(layers.device)) for x in windows)
        inputs = (layers.inputs(layer, x)[0] for x in normed)
        weights = layers.attention_weights(layer)
        self.store.put(index, layer_statistics(weights, inputs))

    def load(self, index: int) -> LayerStatistics:
        """A layer's statistics from the store, on the device.

        Raises:
            StatisticsError: they were never measured, or their file is damaged.
        """
        if self._loaded is not None and self._loaded[0] == index:
            return self._loaded[1]
        statistics = self.store.get(index)
        if statistics is None:
            raise StatisticsError(f"layer {index} was not measured; use an empty store")
        statistics = statistics.to(self.layers.device)
        if self.layers.device.type != "cpu":
            # All candidates of a layer read them. Memory has them, or a file's pages, anyway.
            self._loaded = index, statistics
        return statistics
