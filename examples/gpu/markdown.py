"""The tables of ``docs/gpu.md``, made of reports."""

from collections.abc import Iterator, Sequence
from typing import Any

from gpu.kernels import failed
from gpu.machine import GIB
from gpu.speed import ORIGINAL

RATES = {
    "prompt_rate": "prompt tokens/s",
    "whole_rate": "output tokens/s, new prompts, reading them included",
    "output_rate": "output tokens/s, prompts seen before",
}


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge reports of one machine whose parts were run by themselves; later ones win.

    Those of ``benchmarks/gpu_kernels.py`` by itself, which have ``rows``, may be among them.
    """
    whole: dict[str, Any] = {}
    for report in reports:
        if "rows" in report:
            checked = report | {"ok": not any(map(failed, report["rows"]))}
            report = {"kernels": {"kernels": checked}}
        for part, found in report.items():
            whole[part] = whole.get(part, {}) | found
    return whole


def markdown(report: dict[str, Any]) -> str:
    """Lay a report out as rows of Markdown tables."""
    parts = (_machine(report), _exact(report), _kernels(report), _engines(report))
    return "\n".join(line for part in parts for line in part)


def _machine(report: dict[str, Any]) -> Iterator[str]:
    found = report.get("versions")
    if found is None:
        return
    checks = [one for part in ("exact", "features") for one in report.get(part, {}).values()]
    good = sum(one["ok"] for one in checks)
    flash = ", ".join(map(str, found.get("flash_attention", [])))
    names = ("vllm", "torch", "triton", "transformers", "driver")
    cells = [found.get("gpu", "none"), *(str(found.get(name)) for name in names), flash]
    yield _row(*cells, found["mha2mla"], f"{good} of {len(checks)}")


def _exact(report: dict[str, Any]) -> Iterator[str]:
    checks = report.get("exact", {}) | report.get("features", {})
    for name, one in checks.items():
        if "ratio" in one:
            errors = (f"{one[key]:.4f}" for key in ("error", "transformers_bfloat16_error"))
            yield _row(name, *errors, f"{one['ratio']:.2f}", f"{one['greedy_agreement']:.1%}")
        else:
            yield _row(name, "failed", "", "", "")


def _kernels(report: dict[str, Any]) -> Iterator[str]:
    for row in report.get("kernels", {}).get("kernels", {}).get("rows", []):
        if failed(row) or "load" not in row:
            continue
        label = (str(row[key]) for key in ("what", "model", "load", "kernel"))
        share = f"{row['of_copy']:.0%}" if "of_copy" in row else ""
        beside = f"{row['times_original']:.2f}" if "times_original" in row else ""
        yield _row(*label, f"{row['us']:.0f}", share, beside)


def _engines(report: dict[str, Any]) -> Iterator[str]:
    run = report.get("engine") or report.get("memory") or {}
    engines = {name: one for name, one in run.get("engines", {}).items() if "failed" not in one}
    original = engines.get(ORIGINAL)
    if original is None:
        return
    cache = run["cache_bytes"] / GIB
    yield _row("", *engines)
    yield _row("---", *("---" for _ in engines))
    tokens = (_beside(one, original, "cache_tokens") for one in engines.values())
    yield _row(f"tokens in {cache:g} GiB", *tokens)
    for load, before in original["loads"].items():
        for key, text in RATES.items():
            if key in before:
                found = (one["loads"].get(load, {}) for one in engines.values())
                yield _row(f"{load}: {text}", *(_beside(one, before, key) for one in found))


def _beside(one: dict[str, Any], original: dict[str, Any], key: str) -> str:
    if key not in one:
        return "failed"
    ratio = "" if one is original else f" ({one[key] / original[key]:.2f}x)"
    return f"{one[key]:,.0f}{ratio}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
