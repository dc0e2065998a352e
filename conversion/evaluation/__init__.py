"""Measures a converted checkpoint beside its original: perplexity, tasks, long context.

Both models are given the same inputs, read once and before any weights (``inputs``). One model is
in memory at a time: the converted one is freed before the original is loaded, and of several
checkpoints with one original the original's figures are kept (``compare.Comparison``).
"""

from conversion.checkpoint.cache_size import CacheFigures, cache_figures
from conversion.evaluation.compare import Comparison, measure
from conversion.evaluation.inputs import Measurement
from conversion.evaluation.perplexity import perplexity
from conversion.evaluation.report import check_report_path, write_report
from conversion.evaluation.results import (
    Entry,
    PerplexityFigures,
    PositionFigures,
    Report,
    RetrievalFigures,
    TaskFigures,
)

__all__ = [
    "CacheFigures",
    "Comparison",
    "Entry",
    "Measurement",
    "PerplexityFigures",
    "PositionFigures",
    "Report",
    "RetrievalFigures",
    "TaskFigures",
    "cache_figures",
    "check_report_path",
    "measure",
    "perplexity",
    "write_report",
]
