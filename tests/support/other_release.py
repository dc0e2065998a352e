"""A converted and an original model, configured by a vLLM that says it is of another release.

    python other_release.py VERSION CONVERTED ORIGINAL

Writes a line of JSON for each model: the error, or null. A process of its own, because a vLLM that
has registered is not asked again.
"""

import json
import sys
from typing import Any

import vllm
from vllm.engine.arg_utils import EngineArgs


def error_of(model: str, **options: Any) -> str | None:
    try:
        EngineArgs(model=model, dtype="float32", max_model_len=64, **options).create_engine_config()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    vllm.__version__ = sys.argv[1]
    for path in sys.argv[2:]:
        sys.stdout.write(json.dumps(error_of(path, kv_cache_memory_bytes=1 << 24)) + "\n")
