"""Runs the EleutherAI harness on models and documents in memory.

Imports ``lm_eval``, so it is itself imported only for a measurement with tasks.
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase

from conversion.errors import TextError, UsageError, first_line
from conversion.evaluation.local_tasks import LocalTask
from conversion.runtime.progress import Progress

logger = logging.getLogger(__name__)

BATCH = 4
# Samples for standard errors without a closed form, such as perplexity's. The harness's own
# default of 100,000 takes longer than the model on a small task.
BOOTSTRAP_SAMPLES = 1000

# Flat tasks and groups by name, as the harness's evaluate() takes them.
TaskDict = dict[str, Any]


class DocumentsTask(ConfigurableTask):  # type: ignore[misc]
    """A harness task over documents in memory.

    Args:
        task: its config, and the documents of its test split.
    """

    def __init__(self, task: LocalTask) -> None:
        self._documents = task.documents
        super().__init__(config=dict(task.config))

    def download(self, *_: Any, **__: Any) -> None:
        """Take the documents from memory where other tasks ask the hub."""
        self.dataset = {"test": Dataset.from_list(self._documents)}


class _ProgressHook:
    """Advances our progress from the harness's answer cache, which sees every answer."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self._advance = advance

    def add_partial(self, *_: Any) -> None:
        self._advance()


class ReportingModel(HFLM):  # type: ignore[misc]
    """A harness model over a loaded transformers model that reports to our progress.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer; given a padding token if it has none.
        progress: shows one step per answer.
        description: label of the work.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, progress: Progress, description: str
    ) -> None:
        known = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=BATCH,
            # The token before an empty context; the harness fails for a tokenizer with neither.
            prefix_token_id=next((token for token in known if token is not None), 0),
        )
        self._progress = progress
        self._description = description

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score continuations: log-likelihood in nats, and True if greedy decoding gives it."""
        with self._reporting(len(requests)):
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate a text for each request, up to one of its stop strings."""
        with self._reporting(len(requests)):
            answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        return answers

    @contextlib.contextmanager
    def _reporting(self, requests: int) -> Iterator[None]:
        with self._progress.task(self._description, requests) as advance:
            self.set_cache_hook(_ProgressHook(advance))
            yield


def harness_tasks(local: list[LocalTask], names: list[str]) -> TaskDict:
    """Load tasks from local files and from the harness.

    Args:
        local: tasks from files.
        names: tasks, groups or tags of the harness.

    Raises:
        UsageError: the harness has no such task.
        TextError: its data cannot be loaded.
    """
    loaded: list[Any] = [DocumentsTask(task) for task in local]
    # Without names there is nothing to look up, and the index of all tasks takes 10 s to build.
    manager = TaskManager(include_defaults=bool(names))
    for name in names:
        if name not in manager.task_index:
            raise UsageError(
                f"--tasks {name}: no such file, and the harness has no task of that name; "
                "see them all with: lm-eval ls tasks"
            )
        try:
            loaded += manager.load([name])["tasks"].values()
        # A hub, a dataset reader or a proxy may raise anything.
        except Exception as error:
            reason = first_line(error)
            raise TextError(
                f"--tasks {name}: its data cannot be loaded ({reason}); it needs a reachable "
                "hub, a local .jsonl file does not"
            ) from error
    tasks = {str(task.task_name): task for task in loaded}
    for task in tasks.values():
        _set_defaults(task)
    return {"tasks": tasks}


def _set_defaults(task: Task) -> None:
    """Set what the harness's own entry point sets before it evaluates."""
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def run_harness(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: TaskDict,
    limit: int | None,
    progress: Progress,
    description: str,
) -> dict[str, Any]:
    """Run the harness on one model.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer; given a padding token if it has none.
        tasks: tasks of :func:`harness_tasks`; they can be run again.
        limit: largest number of documents per task; ``None``: all.
        progress: shows one step per answer.
        description: label of the work.

    Returns:
        the harness's results; ``results``, ``n-samples`` and ``higher_is_better`` are used.
    """
    wrapped = ReportingModel(model, tokenizer, progress, description)
    # Unless told otherwise, the bootstrap forks one process per core with the model in it.
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            results: dict[str, Any] = evaluate(
                wrapped, tasks, limit=limit, bootstrap_iters=BOOTSTRAP_SAMPLES, log_samples=False
            )
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
        logger.debug("%s", output.getvalue())
    return results
