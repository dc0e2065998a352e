"""Measures a converted checkpoint beside its original: perplexity, tasks, long context.

All models are given the same inputs, read once and before any weights (``inputs``). The original
can be measured in vLLM's own quantised caches too (``quantised_cache``). One model is in memory at
a time, and of several checkpoints with one original the original's figures are kept
(``compare.Comparer``).
"""

from conversion.checkpoint.cache_size import CacheFigures, cache_figures
from conversion.evaluation.compare import Comparer, measure
from conversion.evaluation.inputs import Measurement
from conversion.evaluation.perplexity import perplexity
from conversion.evaluation.report import check_report_path, write_report
from conversion.evaluation.results import (
    ChatFigures,
    Comparison,
    Entry,
    PerplexityFigures,
    PositionFigures,
    Report,
    RetrievalFigures,
    TaskFigures,
)

__all__ = [
    "CacheFigures",
    "ChatFigures",
    "Comparer",
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
