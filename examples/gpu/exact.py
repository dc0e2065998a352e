"""Exactness: vLLM's log-probabilities beside transformers' float32, for every width and feature."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu import models
from gpu.convert import full_width
from gpu.engine import IN_PROCESS, answers
from gpu.machine import Machine, attention
from gpu.processes import isolated
from gpu.scores import scores

# Of the error of transformers' own bfloat16, root mean square.
TOLERANCE = 1.2
# A token chosen by log-probabilities that are wrong by e may be 2 e worse than the best.
SHORTFALL = 2 * TOLERANCE
PROMPT_LENGTHS = (1, 2, 7, 33, 128, 300, 701, 1500)
NEW_TOKENS = 64

# One of every kind: dense FlashAttention, with latent values, our own kernel, padded, without RoPE.
MIXED = ((192, 64), (512, 64), (85, 38), (256, 64), (448, 64), (40, 0))
WIDTHS: dict[str, models.Widths] = {
    "layers": MIXED,
    "192+64": ((192, 64),),
    "512+64": ((512, 64),),
    "odd": ((85, 38),),
    "coded": ((192, 64), (512, 64), (40, 0), (296, 32)),
}
CONVERTED = "converted"
# Behind the @, how attention is computed; without it the plugin chooses.
NAMES = (*WIDTHS, "layers@triton", "layers@flash", "512+64@vllm", CONVERTED)

# Room for the longest prompt and its answer, and not for those of all the others together.
CROWDED = {
    "block_size": 16,
    "num_gpu_blocks_override": 99,
    "max_model_len": 1568,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 256,
}
DRAFTS = {
    "method": "ngram",
    "num_speculative_tokens": 4,
    "prompt_lookup_min": 2,
    "prompt_lookup_max": 4,
}


@dataclass(frozen=True)
class Feature:
    """Something that an engine does to a batch.

    Attributes:
        settings: arguments of ``LLM``.
        environment: variables of the engine.
        counter: that shows that it happened; ``None`` where none does.
        as_by_default: the engine starts with default settings, which takes longer.
    """

    settings: dict[str, Any]
    environment: dict[str, str]
    counter: str | None
    as_by_default: bool


FEATURES = {
    "chunks and preemption": Feature(CROWDED, {}, "preemptions", True),
    "n-gram drafts": Feature({"speculative_config": DRAFTS}, {}, "draft_tokens", False),
    "model runner V1": Feature({}, {"VLLM_USE_V2_MODEL_RUNNER": "0"}, None, False),
}


def exact(machine: Machine, names: Sequence[str]) -> dict[str, Any]:
    """Check models by name (``NAMES``): new prompts, the same from the prefix cache, one by one."""
    names = machine.possible(names)
    # Before any check needs them: several share their weights.
    for name in names:
        if name != CONVERTED:
            _random(machine, name)
    return machine.each(names, lambda name: _model(machine, name), machine.jobs)


def features(machine: Machine) -> dict[str, Any]:
    """Check what else an engine does to a batch, with another width in every layer."""
    folder = _random(machine, "layers")

    def check(name: str) -> dict[str, Any]:
        feature, log = FEATURES[name], f"feature-{name}"
        steps = [{"prompts": _prompts(machine), "tokens": NEW_TOKENS}] * 2
        start = {} if feature.as_by_default else machine.quick_start
        run = _answers(machine, log, folder, start | feature.settings, steps, feature.environment)
        verdict = _verdict(machine, log, folder, run)
        if feature.counter is not None:
            verdict[feature.counter] = sum(step[feature.counter] for step in run["steps"])
            verdict["ok"] = verdict["ok"] and verdict[feature.counter] > 0
        return verdict

    return machine.each(FEATURES, check, machine.jobs)


def _model(machine: Machine, name: str) -> dict[str, Any]:
    source = None
    if name == CONVERTED:
        source, folder = full_width(machine)
    else:
        folder = _random(machine, name)
    prompts = _prompts(machine)
    steps = [
        {"prompts": prompts, "tokens": NEW_TOKENS, "prompt_logprobs": True},
        {"prompts": prompts, "tokens": NEW_TOKENS},
        {"prompts": prompts, "tokens": NEW_TOKENS},
        {"prompts": prompts[3:6], "tokens": NEW_TOKENS, "alone": True},
    ]
    # Default settings at least once for every kernel; the others start sooner.
    start = {} if name == "layers" else machine.quick_start
    settings = start | attention(name)
    run = _answers(machine, name, folder, settings, steps, {})
    verdict = _verdict(machine, name, folder, run)
    verdict["cached_tokens"] = sum(a["cached"] for a in run["steps"][2]["answers"])
    verdict["ok"] = verdict["ok"] and verdict["cached_tokens"] > 0
    if source is not None:
        # The conversion's own rounding comes on top, so this has no bound.
        verdict["against the original"] = _verdict(machine, f"{name}-source", source, run)
    return verdict


def _random(machine: Machine, name: str) -> Path:
    folder = machine.folder / name.partition("@")[0]
    if not (folder / "model.safetensors").is_file():
        coded = folder.name == "coded"
        models.write_config(folder, machine.small, WIDTHS[folder.name], coded)
        isolated(machine.log(f"{folder.name}-weights"), 300, {}, models.write_weights, folder)
    return folder


def _prompts(machine: Machine) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(3, machine.small["vocab_size"], (length,), generator=drawn).tolist()
        for length in PROMPT_LENGTHS
    ]
    # A text that repeats itself gives an n-gram drafter something to find.
    return [*prompts, (prompts[3] * 6)[:180]]


def _answers(
    machine: Machine,
    name: str,
    folder: Path,
    settings: dict[str, Any],
    steps: list[dict[str, Any]],
    environment: dict[str, str],
) -> dict[str, Any]:
    usual = {
        "model": str(folder),
        "max_model_len": 4096,
        # Fewer graphs to capture.
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": machine.small_cache,
        "gpu_memory_utilization": 0.3,
    }
    begin = time.monotonic()
    run: dict[str, Any] = isolated(
        machine.log(name),
        machine.timeout,
        machine.environment | IN_PROCESS | environment,
        answers,
        usual | machine.engine_arguments | settings,
        steps,
    )
    machine.say(f"{name}: the engine answered after {time.monotonic() - begin:.0f} s")
    return run


def _verdict(machine: Machine, name: str, folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Compare all answers of a run with transformers' float32."""
    found = [answer for step in run["steps"] for answer in step["answers"]]
    sequences = [answer["prompt"] + answer["tokens"] for answer in found]
    distinct = [list(one) for one in dict.fromkeys(tuple(one) for one in sequences)]
    log = machine.log(f"{name}-scores")
    scored = isolated(log, machine.timeout, {}, scores, str(folder), machine.device, distinct)
    ours, theirs, shortfalls = [], [], []
    for answer, sequence in zip(found, sequences, strict=True):
        place = distinct.index(sequence)
        exact, best, rounded = (scored[key][place] for key in ("exact", "best", "bfloat16"))
        answered = len(answer["tokens"])
        given = answer["prompt_logprobs"] + answer["logprobs"]
        scored_places = slice(len(exact) - len(given), None)
        ours += _differences(given, exact[scored_places])
        theirs += _differences(rounded[scored_places], exact[scored_places])
        pairs = zip(best[-answered:], exact[-answered:], strict=True)
        shortfalls += [high - low for high, low in pairs]
    # An answer that is not a number fails every comparison below.
    ratio = _rms(ours) / max(_rms(theirs), 1e-9)
    worst = max(map(abs, theirs))
    return {
        "ok": ratio <= TOLERANCE and max(shortfalls) <= SHORTFALL * worst,
        "error": _rms(ours),
        "transformers_bfloat16_error": _rms(theirs),
        "ratio": ratio,
        "worst": max(map(abs, ours)),
        "transformers_bfloat16_worst": worst,
        "greedy_agreement": sum(one == 0 for one in shortfalls) / len(shortfalls),
        "greedy_shortfall": max(shortfalls),
        "start_seconds": run["start_seconds"],
    }


def _differences(found: Sequence[float], exact: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(found, exact, strict=True)]


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
