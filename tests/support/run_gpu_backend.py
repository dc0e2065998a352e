"""``run_engine.py`` with the backend for GPUs, on a machine without one.

Triton's interpreter runs the kernels and a dense formulation takes FlashAttention's place, both in
float32, so that results are exact. Layers that cache ``OWN_KERNEL`` numbers a token get our kernel,
and every prefill is expanded.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.support.triton_interpreter import interpret_triton

OWN_KERNEL = 16


class Expansions:
    """Counts the calls for expanded keys and values."""

    count = 0


def pretend() -> None:
    from tests.support import dense_flash
    from vllm_mha2mla.attention import layer
    from vllm_mha2mla.kernels.cuda import expanded, flash
    from vllm_mha2mla.kernels.cuda.choose import Offers

    layer.ON_CPU = False
    dense_flash.DTYPES.append(torch.float32)
    flash.varlen_attention = lambda: dense_flash.flash_attn_varlen_func
    flash.scheduler = lambda: lambda **_: None
    flash.offers = lambda row, dtype: Offers(None if row == OWN_KERNEL else 3, split=True)
    flash.expanded_version = lambda key, value, dtype: 3
    expanded.expansion_is_cheaper = lambda *_: True
    attend = flash.attend_expanded

    def counted(*arguments: Any) -> None:
        Expansions.count += 1
        attend(*arguments)

    flash.attend_expanded = counted


def main() -> None:
    # Before anything else imports Triton.
    interpret_triton()
    pretend()
    from tests.support import run_engine

    results = [run_engine.run(specification) for specification in json.load(sys.stdin)]
    found = [result | {"expansions": Expansions.count} for result in results]
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
