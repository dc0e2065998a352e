"""vLLM's worker on CPUs, where a seeded request may have its prompt read in several steps.

After a step that reads a part of a prompt, vLLM 0.32 drops the token that it sampled and turns the
request's generator back. A generator on a CPU cannot be turned back ("CPU Generator does not use
offset"), and the error ends the engine.
"""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class LatentCPUWorker(CPUWorker):
    """A worker that does not touch a request's generator for a token that is dropped."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample as vLLM does, with other randomness for tokens that are dropped."""
        runner = self.model_runner
        dropped = runner.discard_request_mask.np[: runner.input_batch.num_reqs]
        generators = runner.input_batch.generators
        aside = {i: generators.pop(i) for i in list(generators) if i < len(dropped) and dropped[i]}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(aside)
