"""Start-up and generation speed of a model in vLLM on a CPU, eager and compiled, in turn."""

import argparse
import json
import statistics
import subprocess
import sys
import time

REQUESTS, PROMPT, OUTPUT, ROUNDS = 4, 128, 128, 3
NONE, COMPILED = 0, 3  # vLLM's CompilationMode


def measure(model: str, mode: int) -> None:
    """Start one engine and print its figures as one line of JSON."""
    from vllm import LLM, SamplingParams

    start = time.monotonic()
    llm = LLM(
        model,
        dtype="bfloat16",
        kv_cache_memory_bytes=1 << 28,
        max_model_len=2048,
        compilation_config={"mode": mode},
    )
    ready = time.monotonic() - start
    prompts = [
        {"prompt_token_ids": [(i * 37 + j * 11) % 10000 + 100 for j in range(PROMPT)]}
        for i in range(REQUESTS)
    ]

    def run(tokens: int) -> float:
        llm.reset_prefix_cache()
        begin = time.monotonic()
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
        return REQUESTS * tokens / (time.monotonic() - begin)

    run(8)  # the first steps allocate
    rates = [run(OUTPUT) for _ in range(ROUNDS)]
    print(json.dumps({"start": ready, "rate": statistics.median(rates)}))


def main() -> None:
    """Measure both modes, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model folder, converted or not")
    parser.add_argument("--mode", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode is not None:
        measure(arguments.model, arguments.mode)
        return
    for name, mode in (("eager", NONE), ("compiled", COMPILED)):
        command = [sys.executable, __file__, arguments.model, "--mode", str(mode)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        # The engine's own log lines share the output.
        found = next(json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{")
        print(f"{name}: start {found['start']:.0f} s, {found['rate']:.1f} output tokens/s")


if __name__ == "__main__":
    main()
