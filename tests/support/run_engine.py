"""Run vLLM engines one after another: a JSON specification on stdin, JSON results to a file.

A process of its own, because an engine leaves global state behind and must know nothing of the
tests: the plugin is found through its entry point, as a user's engine finds it.

    [{"llm": {LLM arguments},
      "steps": [{"prompts": [[token ids]], "alone": bool, "reset": bool, "sampling": {...},
                 "adapter": folder of a LoRA adapter,
                 "weights": folder of a checkpoint that is served from this step on,
                 "only": ends of the names of those weights that are taken from it, as trainers do,
                 "by": then, "load_weights" or "copy"}]}]
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest

# vLLM's counters, and their names in a step's result.
COUNTERS = {
    "vllm:num_preemptions": "preemptions",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
}


def run(specification: dict[str, Any]) -> dict[str, Any]:
    try:
        llm = LLM(disable_log_stats=False, **specification["llm"])
        steps = [run_step(llm, step) for step in specification.get("steps", [])]
    except Exception as error:
        # The error that users of the Python API see; the test says if it was to be expected.
        return {"error": f"{type(error).__name__}: {error}"}
    cache = llm.llm_engine.vllm_config.cache_config
    result = {
        "error": None,
        "cache_tokens": cache.num_gpu_blocks * cache.block_size,
        "cache_tokens_reported": cache.kv_cache_size_tokens,
        "block_size": cache.block_size,
        "steps": steps,
    }
    llm.llm_engine.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()
    gc.collect()
    return result


def run_step(llm: LLM, step: dict[str, Any]) -> dict[str, Any]:
    if "only" in step:
        weights = load_file(Path(step["weights"]) / "model.safetensors")
        names = tuple(step["only"])
        exchange(llm, step["by"], [pair for pair in weights.items() if pair[0].endswith(names)])
    elif "weights" in step:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": step["weights"]})
    if ("weights" in step or step.get("reset")) and not llm.reset_prefix_cache():
        raise RuntimeError("prefix cache not reset: blocks are still in use")
    before = {name: counted(llm, name) for name in COUNTERS}
    params = SamplingParams(**step["sampling"])
    prompts = [{"prompt_token_ids": ids} for ids in step["prompts"]]
    batches = [[prompt] for prompt in prompts] if step.get("alone") else [prompts]
    adapter = LoRARequest("adapter", 1, step["adapter"]) if "adapter" in step else None
    outputs = [
        request
        for batch in batches
        for request in llm.generate(batch, params, use_tqdm=False, lora_request=adapter)
    ]
    return {
        "outputs": [as_json(request) for request in outputs],
        **{COUNTERS[name]: counted(llm, name) - before[name] for name in COUNTERS},
    }


def exchange(llm: LLM, by: str, weights: list[tuple[str, Any]]) -> None:
    if by == "load_weights":
        llm.collective_rpc(lambda worker: worker.model_runner.model.load_weights(weights))
    else:
        formed = {"weights_iterator": weights, "is_checkpoint_format": False}
        llm.collective_rpc("reload_weights", kwargs=formed)


def counted(llm: LLM, name: str) -> int:
    return sum(m.value for m in llm.get_metrics() if m.name == name)


def as_json(request: Any) -> dict[str, Any]:
    completion = request.outputs[0]
    return {
        "tokens": list(completion.token_ids),
        "logprobs": chosen(completion.token_ids, completion.logprobs),
        "prompt_logprobs": chosen(request.prompt_token_ids, request.prompt_logprobs),
        "cached": request.num_cached_tokens,
    }


def chosen(tokens: Any, logprobs: Any) -> list[float | None]:
    """Log-probability of each token; a prompt's first has none."""
    if logprobs is None:
        return []
    pairs = zip(tokens, logprobs, strict=True)
    return [entry and float(entry[token].logprob) for token, entry in pairs]


if __name__ == "__main__":
    results = [run(specification) for specification in json.load(sys.stdin)]
    Path(sys.argv[1]).write_text(json.dumps(results))
