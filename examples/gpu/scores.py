"""Log-probabilities of the same tokens by transformers: in float32, and its own bfloat16 error."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import vllm_mha2mla  # noqa: F401  (teaches transformers the converted architecture)


@torch.no_grad()
def scores(folder: str, device: str, sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Score every token but the first of every sequence.

    Args:
        folder: of the model.
        device: where transformers computes.
        sequences: token ids.

    Returns:
        per sequence and token the log-probability in float32 (``exact``) and in bfloat16, and the
        float32 log-probability of the token that was the best there.
    """
    # Otherwise the reference's own products would have 10 bits.
    torch.backends.cuda.matmul.allow_tf32 = False
    exact, best = _scored(folder, device, torch.float32, sequences)
    rounded, _ = _scored(folder, device, torch.bfloat16, sequences)
    return {"exact": exact, "best": best, "bfloat16": rounded}


def _scored(
    folder: str, device: str, dtype: torch.dtype, sequences: Sequence[Sequence[int]]
) -> tuple[list[list[float]], list[list[float]]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    chosen, best = [], []
    for sequence in sequences:
        ids = torch.tensor([sequence], device=device)  # [1, tokens]
        logits: Tensor = model(ids, use_cache=False).logits
        logprobs = logits[0, :-1].float().log_softmax(-1)  # [tokens - 1, vocabulary]
        chosen.append(logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist())
        best.append(logprobs.max(-1).values.tolist())
    return chosen, best
