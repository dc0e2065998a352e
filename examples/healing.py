"""From a model to a converted and healed checkpoint, measured, in minutes on two cores.

    python examples/healing.py [--out FOLDER]

Needs no text and no hub: the demo's model, calibrated and healed on the language reference that
every Python carries, and measured on topics of it that neither saw. It prints the commands it runs;
run again after an interruption, it goes on.
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
    """Run ``mha2mla``, saying so."""
    words = [str(argument) for argument in arguments]
    print(f"$ mha2mla {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "conversion.cli", *words], check=True)


if __name__ == "__main__":
    main()
