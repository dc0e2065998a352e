#!/usr/bin/env bash
# Compare the conversion methods at the same cache bytes, before any training.
#
#   examples/benchmarks/compare_methods.sh CALIBRATION_TEXT HELD_OUT_TEXT [OUT [OPTION...]]
#
# METHODS and FRACTIONS, environment variables, select some of them, in the order in which they run.
# Options go to `mha2mla sweep`. Checkpoints stay in OUT/checkpoints, where refine_checkpoint.py
# can start from them. The same command continues an interrupted comparison.
set -euo pipefail
calibration=${1:?a text to calibrate on, .txt or .jsonl}
text=${2:?another text, to measure on}
out=${3:-comparison}

recipes=()
for method in ${METHODS:-calibrated mha2mla transmla care}; do
    for fraction in ${FRACTIONS:-0.5 0.375 0.3125 0.25 0.125}; do
        recipes+=("$method@$fraction")
    done
done
mkdir -p "$out"
exec mha2mla sweep demo:smollm2-135m "${recipes[@]}" --out "$out" --keep \
    --calibration "$calibration" --refit-tokens 102400 \
    --text "$text" --windows 8 --report "$out/report.html" "${@:4}"
