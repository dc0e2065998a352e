"""The EleutherAI harness around models and documents that are already here.

Imports ``lm_eval``: itself imported only where tasks are asked for.
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

from conversion.errors import EvaluationError, first_line
from conversion.evaluation.local_tasks import LocalTask
from conversion.runtime.progress import Progress

logger = logging.getLogger(__name__)

BATCH = 4
# Of the standard errors without a closed form, such as perplexity's; the harness itself draws
# 100,000, which takes longer than the model on a small task.
BOOTSTRAP = 1000

# Flat tasks and groups by name, as the harness's evaluate() takes them.
TaskDict = dict[str, Any]


class DocumentsTask(ConfigurableTask):  # type: ignore[misc]
    """A harness task over documents in memory.

    Args:
        task: the config, and the documents of its test split.
    """

    def __init__(self, task: LocalTask) -> None:
        self._documents = task.documents
        super().__init__(config=dict(task.config))

    def download(self, *_: Any, **__: Any) -> None:
        """Take the documents from memory where other tasks ask the hub."""
        self.dataset = {"test": Dataset.from_list(self._documents)}


class _ProgressHook:
    """Stands in for the harness's cache of answers, which is told about every one."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self._advance = advance

    def add_partial(self, *_: Any) -> None:
        self._advance()


class ReportingModel(HFLM):  # type: ignore[misc]
    """A loaded transformers model as the harness's, telling our progress about its answers.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer; given a padding token if it has none.
        progress: told about every answer.
        description: what to call the work.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, progress: Progress, description: str
    ) -> None:
        known = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=BATCH,
            # Conditions empty contexts; the harness stumbles over a tokenizer with neither.
            prefix_token_id=next((token for token in known if token is not None), 0),
        )
        self._progress = progress
        self._description = description

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations in nats, and whether each is the greedy one."""
        with self._reporting(len(requests)):
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts generated up to each request's stops."""
        with self._reporting(len(requests)):
            answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        return answers

    @contextlib.contextmanager
    def _reporting(self, requests: int) -> Iterator[None]:
        with self._progress.task(self._description, requests) as advance:
            self.set_cache_hook(_ProgressHook(advance))
            yield


def harness_tasks(local: list[LocalTask], names: list[str]) -> TaskDict:
    """Local files and the harness's own tasks, loaded.

    Args:
        local: tasks from files.
        names: tasks, groups or tags of the harness.

    Raises:
        EvaluationError: the harness has no such task, or its data cannot be had.
    """
    made: list[Any] = [DocumentsTask(task) for task in local]
    # Without names there is nothing to look up, and the index of all tasks takes 10 s to build.
    manager = TaskManager(include_defaults=bool(names))
    for name in names:
        if name not in manager.task_index:
            raise EvaluationError(
                f"--tasks {name}: no such file, and the harness has no task of that name; "
                "see them all with: lm-eval ls tasks"
            )
        try:
            made += manager.load([name])["tasks"].values()
        # Whatever a hub, a data set's reader or a proxy may raise.
        except Exception as error:
            reason = first_line(error)
            raise EvaluationError(
                f"--tasks {name}: its data cannot be loaded ({reason}); it needs a reachable "
                "hub, a local .jsonl file does not"
            ) from error
    tasks = {str(task.task_name): task for task in made}
    for task in tasks.values():
        _defaults(task)
    return {"tasks": tasks}


def _defaults(task: Task) -> None:
    """What the harness's own entry point sets before it evaluates."""
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
    """The harness's results of one model: ``results``, ``n-samples``, ``higher_is_better``.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer; given a padding token if it has none.
        tasks: as :func:`harness_tasks` gives them; can be run again.
        limit: documents per task at most; ``None`` for all.
        progress: told about every answer.
        description: what to call the work.
    """
    wrapped = ReportingModel(model, tokenizer, progress, description)
    # The bootstrap prints, and forks a process per core with the model in it.
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            results: dict[str, Any] = evaluate(
                wrapped, tasks, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False
            )
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
        logger.debug("%s", said.getvalue())
    return results
