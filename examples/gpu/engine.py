"""One vLLM engine: its answers with their log-probabilities, or the speed of its loads."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams
from vllm.model_executor.models.registry import ModelRegistry
from vllm.plugins import load_general_plugins
from vllm.v1.engine.core import EngineCore

ARCHITECTURES = ("LlamaForCausalLM", "LlamaMLAForCausalLM")
SETTINGS = {"skip_tokenizer_init": True, "seed": 0, "disable_log_stats": False}
# For answers, the engine lives in the process that asks it: one start less.
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
COUNTERS = {
    "preemptions": "vllm:num_preemptions",
    "draft_tokens": "vllm:spec_decode_num_draft_tokens",
    "accepted_tokens": "vllm:spec_decode_num_accepted_tokens",
}


def answers(settings: dict[str, Any], steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Start an engine and ask it everything.

    Args:
        settings: arguments of ``LLM``.
        steps: ``prompts`` (token ids), ``tokens`` to generate greedily, ``alone`` to ask one prompt
            after the other, ``prompt_logprobs`` to score the prompts too.

    Returns:
        the engine's start and cache, and for every step its answers and counters.
    """
    llm, result = _start(settings)
    result["steps"] = [_step(llm, **step) for step in steps]
    llm.llm_engine.engine_core.shutdown()
    return result


def throughput(
    settings: dict[str, Any], loads: Sequence[dict[str, int]], vocabulary: int, kept: Path
) -> dict[str, Any]:
    """Start an engine and put loads on it, one after the other.

    Args:
        settings: arguments of ``LLM``, with ``kv_cache_memory_bytes``.
        loads: ``requests`` of ``input`` tokens that are answered with ``output`` tokens, in
            ``cache_bytes`` of the cache, or all of it where that is 0.
        vocabulary: number of tokens to draw prompts from.
        kept: file for the figures so far, in case that a later load never ends.

    Returns:
        the engine's start and cache, and the figures of every load; :func:`_load` says which.
    """
    llm, result = _start(settings)
    result["loads"] = []
    kept.write_text(json.dumps(result), "utf-8")
    for seed, load in enumerate(loads):
        try:
            figures = _load(llm, vocabulary, settings["kv_cache_memory_bytes"], seed, **load)
        except Exception as error:
            # The figures before it are still good.
            figures = {"failed": f"{type(error).__name__}: {error}"}
        print(f"LOAD {load}: {figures}", flush=True)
        result["loads"].append(figures)
        kept.write_text(json.dumps(result), "utf-8")
    # Waits for the engine's process, so that the next finds the GPU empty.
    llm.llm_engine.engine_core.shutdown()
    return result


def inspect_models() -> None:
    """Let vLLM inspect both architectures at once.

    It does so in a process each, once per machine, and that took half a minute on a fresh one.
    """
    load_general_plugins()
    known = [ModelRegistry.models[name] for name in ARCHITECTURES]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda model: model.inspect_model_cls(), known))


def _start(settings: dict[str, Any]) -> tuple[LLM, dict[str, Any]]:
    begin = time.monotonic()
    llm = LLM(**SETTINGS | settings)
    cache = llm.llm_engine.vllm_config.cache_config
    return llm, {
        "start_seconds": round(time.monotonic() - begin, 1),
        "cache_tokens": cache.kv_cache_size_tokens,
        "cache_blocks": cache.num_gpu_blocks,
        "block_size": cache.block_size,
    }


def _step(
    llm: LLM,
    prompts: list[list[int]],
    tokens: int,
    alone: bool = False,
    prompt_logprobs: bool = False,
) -> dict[str, Any]:
    before = _counters(llm)
    sampling = _greedy(tokens, logprobs=0, prompt_logprobs=0 if prompt_logprobs else None)
    batches = [[prompt] for prompt in prompts] if alone else [prompts]
    requests = [request for batch in batches for request in _generate(llm, batch, sampling)]
    return {
        "answers": [
            {
                "prompt": list(request.prompt_token_ids),
                "tokens": list(request.outputs[0].token_ids),
                "logprobs": _chosen(request.outputs[0].token_ids, request.outputs[0].logprobs),
                # A prompt's first token has no log-probability.
                "prompt_logprobs": _chosen(
                    request.prompt_token_ids[1:], (request.prompt_logprobs or [])[1:]
                ),
                "cached": request.num_cached_tokens,
            }
            for request in requests
        ],
        **{name: value - before[name] for name, value in _counters(llm).items()},
    }


def _load(
    llm: LLM,
    vocabulary: int,
    total_bytes: int,
    seed: int,
    requests: int,
    input: int,
    output: int,
    cache_bytes: int,
) -> dict[str, Any]:
    """Time a load.

    Returns:
        ``prompt_rate``: prompt tokens per second, of new prompts answered with one token, and
        ``output_rate``: output tokens per second, of the same prompts again, which come out of the
        prefix cache as far as that holds them; or, where the cache is bounded,
        ``whole_rate``: output tokens per second of new prompts, reading them included.
    """
    drawn = torch.Generator().manual_seed(seed)

    def draw(number: int) -> list[list[int]]:
        shape = (number, input)
        return torch.randint(3, vocabulary, shape, generator=drawn).tolist()  # type: ignore[no-any-return]

    def seconds(prompts: list[list[int]], tokens: int) -> float:
        begin = time.perf_counter()
        _generate(llm, prompts, _greedy(tokens))
        return time.perf_counter() - begin

    if cache_bytes:
        blocks = llm.llm_engine.vllm_config.cache_config.num_gpu_blocks * cache_bytes // total_bytes
        llm.llm_engine.engine_core.call_utility("keep_blocks", blocks)
    if cache_bytes:
        whole = seconds(draw(requests), output)
        return {"whole_rate": requests * output / whole, "whole_seconds": whole}
    # The first steps of a shape compile and choose kernels.
    seconds(draw(1), min(output, 8))
    prompts = draw(requests)
    first, again = seconds(prompts, 1), seconds(prompts, output)
    return {
        "prompt_rate": requests * input / first,
        "prompt_seconds": first,
        "output_rate": requests * output / again,
        "output_seconds": again,
    }


def _keep_blocks(core: EngineCore, number: int) -> None:
    """Leave an idle engine so many blocks of its cache: as if its cache were smaller.

    Another engine with a smaller cache would do the same and take a start more.
    """
    pool = core.scheduler.kv_cache_manager.block_pool
    pool.get_new_blocks(max(0, pool.get_num_free_blocks() - number))


# Here, because the engine's own process has it only if it is there after the imports.
EngineCore.keep_blocks = _keep_blocks  # type: ignore[attr-defined]


def _generate(llm: LLM, prompts: list[list[int]], sampling: SamplingParams) -> Any:
    return llm.generate([{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False)


def _greedy(tokens: int, **changes: Any) -> SamplingParams:
    return SamplingParams(
        temperature=0,
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
        **changes,
    )


def _chosen(tokens: Sequence[int], logprobs: Any) -> list[float]:
    """List the log-probability of each token."""
    if not logprobs:
        return []
    return [float(entry[token].logprob) for token, entry in zip(tokens, logprobs, strict=True)]


def _counters(llm: LLM) -> dict[str, int]:
    found = dict.fromkeys(COUNTERS, 0)
    for metric in llm.get_metrics():
        for name, label in COUNTERS.items():
            if metric.name == label:
                found[name] += metric.value
    return found
