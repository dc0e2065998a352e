"""Convert a model, heal it, and measure it before and after.

    python examples/healing.py [--out FOLDER]

Needs no text and no hub: it takes the demo's model, calibrates and heals it on the language
reference that every Python carries, and measures it on topics of that text that neither step saw.
It prints the commands it runs. The same command continues an interrupted run.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from conversion.text.documents import builtin_text

MODEL = "demo:smollm2-135m"


def main() -> None:
    """Convert, heal, measure before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("healing"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    text = out / "held-out.txt"
    text.write_text(builtin_text("held-out"), "utf-8")
    converted, healed = out / "converted", out / "healed"
    started = time.monotonic()
    if not converted.exists():
        run("convert", MODEL, converted, "--recipe", "third", "--calibration-tokens", 8192)
    if not healed.exists():
        run("heal", converted, healed, "--teacher", MODEL, "--tokens", 100_000)
    for checkpoint in (converted, healed):
        run("eval", checkpoint, "--baseline", MODEL, "--text", text, "--windows", 4)
    print(f"{time.monotonic() - started:.0f} s")


def run(*arguments: object) -> None:
    """Print a command line of ``mha2mla`` and run it."""
    words = [str(argument) for argument in arguments]
    print(f"$ mha2mla {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "conversion.cli", *words], check=True)


if __name__ == "__main__":
    main()
