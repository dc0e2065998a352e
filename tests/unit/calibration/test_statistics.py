"""Statistics of a layer against explicit sums over queries, keys and distances."""

import torch

from conversion.calibration.statistics import as_pairs


def test_statistics_are_what_their_names_say(measured):
    weights, statistics, inputs = measured
    heads, d, _ = weights.query.shape
    kv_heads = weights.key.shape[0]
    received_mean = torch.zeros(64, dtype=torch.float64)
    rho, gamma = 0, 0
    for x in inputs.double():
        tokens = len(x)
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
        total = torch.zeros(tokens, dtype=torch.float64)
        per_head = {"rho": [], "gamma": []}
        for h in range(heads):
            g = h // (heads // kv_heads)
            u = as_pairs(x @ weights.query[h].double().T)
            z = as_pairs(x @ weights.key[g].double().T)
            turn = torch.polar(
                torch.ones(tokens, tokens, d // 2, dtype=torch.float64),
                distance[..., None] * weights.inv_freq.double(),
            )
            scores = (u[:, None] * z.conj()[None] * turn).real.sum(-1) * weights.scale
            a = scores.masked_fill(distance < 0, float("-inf")).softmax(-1)
            total += a.sum(0)
            per_head["rho"].append((a[..., None] * turn).sum(1).mean(0))
            v = x @ weights.value[g].double().T @ weights.output[h].double().T
            spread = (v[None] - (a @ v)[:, None]).square().sum(-1)
            per_head["gamma"].append((a * spread).sum(1).mean())
        received_mean += total @ x / total.sum()
        rho, gamma = rho + torch.stack(per_head["rho"]), gamma + torch.stack(per_head["gamma"])
    # The product computes in float32.
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(statistics.input_mean, received_mean / 3, **close)
    tokens = inputs.double().flatten(0, 1)
    torch.testing.assert_close(statistics.token_moment, tokens.T @ tokens / len(tokens), **close)
    torch.testing.assert_close(statistics.rho, rho / 3, **close)
    torch.testing.assert_close(statistics.gamma, gamma / 3, **close)
