"""The table that inspect prints."""

from rich.console import Console

from conversion.checkpoint.inspection import Inspection
from conversion.commands.inspect import inspection_table


def printed(**changes):
    values = {
        "source": "llama", "source_fingerprint": "0" * 64, "model_type": "llama_mla",
        "method": "calibrated", "dtype": "bfloat16", "layers": 2, "kv_lora_rank": [57, 60],
        "qk_rope_head_dim": [40, 40], "q_lora_rank": None, "cache_bytes_per_token": 394,
        "gpu_cache_bytes_per_token": 416, "baseline_bytes_per_token": 1536,
        "cache_fraction": 394 / 1536, "recipe": {}, "versions": {}, "figures": {},
        "healed_tokens": 0,
    }  # fmt: skip
    console = Console(width=200)
    with console.capture() as capture:
        console.print(inspection_table(Inspection(**values | changes)))
    return capture.get()


def test_says_what_padding_costs_on_gpus():
    assert "416 bytes per token: rows are padded, which costs 5.58%" in printed()


def test_says_nothing_where_nothing_is_padded():
    assert "GPU" not in printed(gpu_cache_bytes_per_token=394)
