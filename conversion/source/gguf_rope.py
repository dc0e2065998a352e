"""RoPE as a GGUF file means it, in transformers' terms.

llama.cpp divides frequencies by a factor (linear), interpolates them by wavelength (YaRN), or
divides each by a factor of its own, from the tensor ``rope_freqs.weight``. Llama 3's scaling comes
as such factors only, so its parameters are found from them.
"""

import math
from typing import Any

import torch
from torch import Tensor

# The file holds float32 factors, computed in any order.
TOLERANCE = 1e-4
# Of Llama 3.1 to 3.3; other triples give the same factors.
LLAMA3 = {"low": 1.0, "high": 4.0, "context": 8192}


def rope_parameters(metadata: dict[str, Any], freqs: Tensor | None) -> dict[str, Any]:
    """``rope_parameters`` of a config, from the metadata that begin with ``rope.``.

    Args:
        metadata: without the architecture's name; every key of RoPE that is used is taken out.
        freqs: ``rope_freqs.weight``, which divides the frequencies  # [rotary / 2]

    Raises:
        ValueError: transformers has nothing that computes the same; says why.
    """
    theta = float(metadata.pop("rope.freq_base", 10000.0))
    given = metadata.pop("rope.scaling.type", None)
    factor = float(metadata.pop("rope.scaling.factor", 0.0))
    factor = factor or float(metadata.pop("rope.scale_linear", 0.0)) or 1.0
    metadata.pop("rope.scaling.finetuned", None)
    attention = float(metadata.pop("rope.scaling.attn_factor", 1.0))
    # A factor without a type is linear.
    kind = given or ("linear" if factor != 1.0 else "none")
    if kind == "yarn":
        scaling = _yarn(metadata, factor, attention)
    elif kind not in ("none", "linear"):
        raise ValueError(f"rope.scaling.type {kind!r} is not read")
    elif attention != 1.0:
        raise ValueError(f"rope.scaling.attn_factor {attention} is not read without yarn")
    elif kind == "linear" and factor != 1.0:
        scaling = {"rope_type": "linear", "factor": factor}
    else:
        scaling = {"rope_type": "default"}
    if kind == "none" or scaling["rope_type"] != "yarn":
        metadata.pop("rope.scaling.original_context_length", None)
    if freqs is not None and not torch.all(freqs == 1.0):
        if scaling["rope_type"] != "default":
            raise ValueError(f"rope_freqs.weight beside rope.scaling.type {kind!r} is not read")
        scaling = _llama3(freqs.double(), theta)
    return {"rope_theta": theta, **scaling}


def _yarn(metadata: dict[str, Any], factor: float, attention: float) -> dict[str, Any]:
    context = metadata.pop("rope.scaling.original_context_length", metadata["context_length"])
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(context),
    }
    for key in ("beta_fast", "beta_slow"):
        if f"rope.scaling.yarn_{key}" in metadata:
            scaling[key] = float(metadata.pop(f"rope.scaling.yarn_{key}"))
    extrapolation = float(metadata.pop("rope.scaling.yarn_ext_factor", 1.0))
    if extrapolation >= 0 and extrapolation != 1.0:
        raise ValueError(f"rope.scaling.yarn_ext_factor {extrapolation} is not read")
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    whole = float(metadata.pop("rope.scaling.yarn_attn_factor", usual))
    # Converters write transformers' whole factor here; releases of llama.cpp ignore it, or
    # multiply by it. Where it is the usual one, it changes nothing.
    if not math.isclose(whole, usual, rel_tol=1e-5):
        raise ValueError(f"rope.scaling.yarn_attn_factor {whole} is not read (usual: {usual:.6g})")
    if attention != 1.0:
        scaling["attention_factor"] = attention * usual
    return scaling


def _llama3(freqs: Tensor, theta: float) -> dict[str, Any]:
    """Llama 3's scaling that divides the frequencies by these factors  # [rotary / 2]

    With ``t = context / wavelength`` the inverse of a factor rises from ``1 / factor`` at
    ``t <= low`` to 1 at ``t >= high``, linearly between them (arXiv:2407.21783 and transformers'
    ``_compute_llama3_parameters``). Two factors between fix the line.
    """
    pairs = len(freqs)
    turns = theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs) / (2 * math.pi)
    factor = float(freqs.max())
    candidates = [LLAMA3]
    between = ((freqs > 1 + TOLERANCE) & (freqs < factor * (1 - TOLERANCE))).nonzero().flatten()
    if len(between) > 1:
        first, last = int(between[0]), int(between[-1])
        # [2] each: the part of the way from 1 / factor to 1, against turns per token.
        rise = (1 / freqs[[first, last]] - 1 / factor) / (1 - 1 / factor)
        slope = float((rise[0] - rise[1]) / (turns[first] - turns[last]))
        offset = float(rise[0] - slope * turns[first])
        if slope > 0 and offset < 0:
            # rise = (context * turns - low) / (high - low), with low = 1.
            high = 1 - 1 / offset
            context = round(slope * (high - 1))
            candidates.append({"low": 1.0, "high": high, "context": context})
    for found in candidates:
        if torch.allclose(_llama3_factors(turns, factor, found), freqs, rtol=TOLERANCE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": found["low"],
                "high_freq_factor": found["high"],
                "original_max_position_embeddings": int(found["context"]),
            }
    raise ValueError("rope_freqs.weight is not Llama 3's scaling, the only one of its kind read")


def _llama3_factors(turns: Tensor, factor: float, found: dict[str, Any]) -> Tensor:
    """The factors that divide the frequencies  # [rotary / 2]"""
    rise = (found["context"] * turns - found["low"]) / (found["high"] - found["low"])
    factors: Tensor = 1 / (1 / factor + (1 - 1 / factor) * rise.clamp(0, 1))
    return factors
