"""Measuring a converted checkpoint beside its original: perplexity, tasks, long context."""

from conversion.checkpoint.cache_size import CacheFigures, cache_figures
from conversion.evaluation.compare import Comparison, evaluate, measure
from conversion.evaluation.inputs import Measurement
from conversion.evaluation.perplexity import perplexity
from conversion.evaluation.report import check_report_path, write_report
from conversion.evaluation.results import (
    Entry,
    Evaluation,
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
    "Evaluation",
    "Measurement",
    "PerplexityFigures",
    "PositionFigures",
    "Report",
    "RetrievalFigures",
    "TaskFigures",
    "cache_figures",
    "check_report_path",
    "evaluate",
    "measure",
    "perplexity",
    "write_report",
]
