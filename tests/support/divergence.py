"""The divergence of one model's predictions from another's, over the whole vocabulary at once."""

import torch


def divergence(original, model, ids):
    """Mean over tokens of KL(original || model), nats, in float64."""
    with torch.no_grad():
        p, q = (one(ids).logits.double().log_softmax(-1) for one in (original, model))
    return float((p.exp() * (p - q)).sum(-1).mean())
