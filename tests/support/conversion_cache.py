"""Conversions of the real model, kept from one run of the tests to the next.

They take minutes and depend on nothing but the code and its dependencies, so a folder that Git
ignores keeps those of the present code.
"""

import fcntl
import hashlib
import shutil
import sys
from functools import cache
from pathlib import Path

from tests.support.engine import DEMO, ONE_THREAD, run_checked

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / "conversions"
CODE = ("conversion", "vllm_mha2mla", "requirements", "tests/support/conversion_cache.py")
# A window, fewer than by default: conversions need not be good here, only repeatable.
TOKENS = "1024"


def converted(name: str, cache_fraction: str) -> Path:
    """Return a float32 checkpoint of the demo model, made by the command line unless it is kept."""
    out = FOLDER / _code() / name
    command = [
        str(Path(sys.executable).with_name("mha2mla")),
        *("convert", DEMO, str(out), "--cache-fraction", cache_fraction, "--bits", "16"),
        *("--calibration-tokens", TOKENS, "--held-out-tokens", TOKENS, "--dtype", "float32"),
    ]
    with out.with_suffix(".lock").open("w") as lock:
        # Another run of the tests may be converting it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The command's folder appears when it is whole.
        if not out.exists():
            run_checked(command, ONE_THREAD)
    return out


@cache
def _code() -> str:
    """Return a hash of what a conversion depends on, and drop conversions by other code."""
    digest = hashlib.sha256()
    for root in CODE:
        path = ROOT / root
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    key = digest.hexdigest()[:16]
    if FOLDER.exists():
        for other in FOLDER.iterdir():
            if other.name != key:
                shutil.rmtree(other, ignore_errors=True)
    (FOLDER / key).mkdir(parents=True, exist_ok=True)
    return key
