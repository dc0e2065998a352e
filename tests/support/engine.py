"""Running engines in processes of their own, and greedy decoding in transformers to compare."""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

DEMO = "demo:smollm2-135m"
# One token to many chunks; 128 is exactly a block.
PROMPT_LENGTHS = (1, 2, 7, 33, 128, 300, 701, 1500)
NEW_TOKENS = 64

RUNNER = Path(__file__).with_name("run_engine.py")
# Only what hangs takes longer: beside other jobs, a conversion took more than 500 s on AVX2 cores.
RUN_TIMEOUT = 1500
LOG_TAIL = 6000

# Log-probabilities of SmolLM2-135M differ by up to 4e-5 between transformers and vLLM, of the tiny
# models by 5e-6. A bound ten times that leaves room for other CPUs' orders of summation; a wrong
# scale, mask or slot is off by hundreds of times more.
FLOAT32_TOLERANCE = 4e-4

# Bounds of a text's log-probabilities in bfloat16 against float32. The relative error of their sum
# is 0.001 to 0.007 already for the original in vLLM, with vLLM's own attention: the dtype does that
# much by itself, and how much depends on the text. The root mean square per token is 0.05 to 0.06
# here; its bound keeps errors of both signs from passing as a good sum.
BFLOAT16_SUM_TOLERANCE = 0.01
BFLOAT16_TOKEN_TOLERANCE = 0.15

# The tests run several processes side by side, and share the machine's cores with whatever else
# runs on it: OpenMP threads that wait for each other on a busy core are slower than one.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENGINE_ENVIRONMENT = ONE_THREAD | {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # In this process, because two more per engine would double its start; test_server.py has the
    # usual arrangement.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def run_engines(*specifications: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of ``run_engine.py``, which says what a specification is."""
    results, _ = _run(specifications, {})
    for result in results:
        assert result["error"] is None, result["error"]
    return results


def run_gpu_backend(specification: dict[str, Any]) -> dict[str, Any]:
    """Result of ``run_gpu_backend.py``, which says how it differs."""
    # Unlike the other, this script imports what tests have.
    environment = {"PYTHONPATH": str(RUNNER.parents[2])}
    (result,), _ = _run([specification], environment, RUNNER.with_name("run_gpu_backend.py"))
    assert result["error"] is None, result["error"]
    return result


def run_logged(specification: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Run one engine; return its result, whether it started or not, and its log."""
    (result,), log = _run([specification], {})
    return result, log


def refusals(*specifications: dict[str, Any], **environment: str) -> list[str]:
    """Return why each engine did not start, or that it did."""
    results, _ = _run(specifications, environment)
    return [result["error"] or "the engine started" for result in results]


def _run(
    specifications: Sequence[dict[str, Any]], environment: dict[str, str], runner: Path = RUNNER
) -> tuple[list[dict[str, Any]], str]:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [sys.executable, str(runner), str(results)]
        log = run_checked(command, ENGINE_ENVIRONMENT | environment, json.dumps(specifications))
        return json.loads(results.read_text()), log


def run_checked(command: Sequence[str], environment: dict[str, str], text: str = "") -> str:
    """Run a command with the environment added to ours; return its log, and show it if it fails."""
    done = subprocess.run(
        command,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_TIMEOUT,
        env=os.environ | environment,
        check=False,
    )
    log: str = done.stdout
    assert done.returncode == 0, f"{command[0]}: exit code {done.returncode}\n{log[-LOG_TAIL:]}"
    return log


def greedy_sampling(tokens: int) -> dict[str, Any]:
    """Greedy decoding of exactly so many tokens, each with its log-probability."""
    return {"temperature": 0, "max_tokens": tokens, "ignore_eos": True, "logprobs": 0}


@dataclass(frozen=True)
class Greedy:
    """Greedy decoding of one prompt in transformers.

    Attributes:
        tokens: what was generated.
        logprobs: of each token.
        margins: by how much each token's log-probability beat the runner-up's.
    """

    tokens: list[int]
    logprobs: list[float]
    margins: list[float]


@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int], tokens: int) -> Greedy:
    """Decode one prompt, alone, with transformers' own cache."""
    chosen, logprobs, margins = [], [], []
    past, new = None, list(prompt)
    for _ in range(tokens):
        output = model(torch.tensor([new]), past_key_values=past, use_cache=True, logits_to_keep=1)
        past = output.past_key_values
        top = output.logits[0, -1].float().log_softmax(-1).topk(2)
        new = [int(top.indices[0])]
        chosen += new
        logprobs.append(float(top.values[0]))
        margins.append(float(top.values[0] - top.values[1]))
    return Greedy(chosen, logprobs, margins)


@torch.no_grad()
def text_logprobs(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probability of every token but the first  # [tokens - 1]"""
    ids = torch.tensor([list(tokens)])
    logprobs = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0]


def assert_same_greedy(outputs: list[dict[str, Any]], references: Sequence[Greedy]) -> None:
    """The engine generated the reference's tokens, at the reference's log-probabilities.

    A different token is forgiven only where the reference itself was within the float32 tolerance
    of choosing another one; what follows it is then another text and not compared.
    """
    assert len(outputs) == len(references)
    for index, (output, reference) in enumerate(zip(outputs, references, strict=True)):
        tokens, end = output["tokens"], len(reference.tokens)
        assert len(tokens) == end, f"prompt {index}: {len(tokens)} tokens instead of {end}"
        different = [a != b for a, b in zip(tokens, reference.tokens, strict=True)]
        if any(different):
            end = different.index(True)
            margin = reference.margins[end]
            assert margin < FLOAT32_TOLERANCE, (
                f"prompt {index}: token {end} is {tokens[end]} instead of "
                f"{reference.tokens[end]}, which led by {margin:.2g}"
            )
            warnings.warn(f"prompt {index}: near tie at token {end} of {len(tokens)}", stacklevel=2)
        ours, theirs = torch.tensor(output["logprobs"]), torch.tensor(reference.logprobs)
        difference = (ours - theirs)[:end].abs().max().item() if end else 0.0
        assert difference < FLOAT32_TOLERANCE, (
            f"prompt {index}: log-probabilities differ by up to {difference:.2g}"
        )


def assert_same_text_in_bfloat16(logprobs: Sequence[float], exact: torch.Tensor) -> None:
    """The engine gave a text's tokens (but the first) the float32 model's log-probabilities."""
    assert len(logprobs) == len(exact)
    ours = torch.tensor(logprobs)
    assert ours.sum().item() == pytest.approx(exact.sum().item(), rel=BFLOAT16_SUM_TOLERANCE)
    assert (ours - exact).square().mean().sqrt() < BFLOAT16_TOKEN_TOLERANCE
