"""Task accuracy of a converted checkpoint beside its original's, through the harness."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from conversion.errors import UsageError
from conversion.evaluation.local_tasks import read_local_task
from conversion.evaluation.results import MetricFigures, TaskFigures
from conversion.runtime.extras import require
from conversion.runtime.progress import Progress

FILE_SUFFIXES = (".jsonl", ".json")


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Load tasks for :func:`run_tasks`.

    Args:
        names: paths of JSON-lines files, or names of harness tasks.

    Raises:
        MissingExtraError: the harness is not installed.
        UsageError, TextError: a task is unknown, given twice, or cannot be loaded.
    """
    require("lm_eval", "--tasks")
    from conversion.evaluation.harness import harness_tasks

    local = [read_local_task(Path(name)) for name in names if is_file(name)]
    others = [name for name in names if not is_file(name)]
    all_names = [task.name for task in local] + others
    for name in all_names:
        if all_names.count(name) > 1:
            raise UsageError(f"--tasks {name}: given twice; rename one or leave it out")
    return harness_tasks(local, others)


def is_file(name: str) -> bool:
    """True if ``name`` means a file, existing or not, rather than a task of the harness."""
    return Path(name).is_file() or Path(name).suffix in FILE_SUFFIXES or "/" in name


def run_tasks(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Any],
    limit: int | None,
    progress: Progress,
    description: str,
) -> dict[str, Any]:
    """Run tasks on one model; see ``harness.run_harness``, which this imports only when called."""
    from conversion.evaluation.harness import run_harness

    return run_harness(model, tokenizer, tasks, limit, progress, description)


def task_figures(original: dict[str, Any], converted: dict[str, Any]) -> list[TaskFigures]:
    """Put both models' results beside each other, in the order the tasks were given.

    Args:
        original: the harness's results, from :func:`run_tasks`.
        converted: the same of the converted model.
    """
    figures = []
    for task, before in original["results"].items():
        after = converted["results"][task]
        better = original["higher_is_better"].get(task, {})
        metrics = []
        for key in before:
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr"):
                continue
            error = f"{metric}_stderr,{filtered}"
            metrics.append(
                MetricFigures(
                    metric=metric if filtered == "none" else f"{metric} ({filtered})",
                    higher_is_better=better.get(metric) is not False,
                    original=float(before[key]),
                    original_stderr=_number(before.get(error)),
                    converted=float(after[key]),
                    converted_stderr=_number(after.get(error)),
                )
            )
        documents = int(original["n-samples"].get(task, {}).get("effective", 0))
        figures.append(TaskFigures(task=task, documents=documents, metrics=metrics))
    return figures


def _number(value: Any) -> float | None:
    # The harness says "N/A" where it has none.
    return float(value) if isinstance(value, int | float) else None
