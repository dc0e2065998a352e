"""The short table that a run ends with."""

from collections.abc import Iterator
from typing import Any

from gpu.kernels import failed
from gpu.machine import GIB
from gpu.speed import ORIGINAL

LOADS_SHOWN = ("8192 x 16", "8192 x 64", "16384 x 1")


def table(report: dict[str, Any]) -> str:
    """Lay the figures of a report out in lines."""
    parts = (_exact(report), _kernels(report), _engines(report), _conversions(report))
    return "\n".join(line for part in parts for line in part)


def failures(report: dict[str, Any]) -> list[str]:
    """List the checks of a report that failed, by part and name."""
    found = []
    for part, checks in report.items():
        for name, figures in checks.get("engines", checks).items():
            if isinstance(figures, dict) and figures.get("ok") is False:
                found.append(f"{part}/{name}")
    return found


def _exact(report: dict[str, Any]) -> Iterator[str]:
    for part in ("exact", "features"):
        for name, one in report.get(part, {}).items():
            yield f"{part:9} {name:24} {'ok' if one['ok'] else 'FAILED':6} " + (
                one.get("failed")
                or f"error {one['error']:.3f}, transformers' bfloat16 "
                f"{one['transformers_bfloat16_error']:.3f}, ratio {one['ratio']:.2f}; "
                f"greedy tokens that are the best {one['greedy_agreement']:.1%}"
            )


def _kernels(report: dict[str, Any]) -> Iterator[str]:
    for row in report.get("kernels", {}).get("kernels", {}).get("rows", []):
        label = " ".join(str(row.get(key, "")) for key in ("what", "model", "load", "kernel"))
        if failed(row):
            yield f"{label} {row.get('shape', '')}: FAILED {row['error']}"
        elif row.get("load") in LOADS_SHOWN:
            shares = (("of_copy", "of the copy bandwidth"), ("times_original", "times as fast"))
            shown = (f", {row[key]:.2f} {text}" for key, text in shares if key in row)
            yield f"{label}: {row['us']:.0f} us{''.join(shown)}"


def _engines(report: dict[str, Any]) -> Iterator[str]:
    run = report.get("engine") or report.get("memory")
    if not run or "engines" not in run:
        return
    yield f"{run['shape']}, {run['cache_bytes'] / GIB:g} GiB of cache, beside the original's"
    original = run["engines"].get(ORIGINAL, {})
    for name, one in run["engines"].items():
        if "failed" in one:
            yield f"{name:12} FAILED {one['failed']}"
            continue
        yield f"{name:12} {_beside(one, original, 'cache_tokens')} tokens of cache"
        for load, figures in one["loads"].items():
            before = original.get("loads", {}).get(load, {})
            if "failed" in figures:
                yield f"{'':12} {load}: FAILED {figures['failed']}"
                continue
            rates = ("prompt_rate", "whole_rate", "output_rate")
            shown = (f"{key} {_beside(figures, before, key)}" for key in rates if key in figures)
            yield f"{'':12} {load}: {', '.join(shown)}"


def _beside(one: dict[str, Any], original: dict[str, Any], key: str) -> str:
    ratio = f" ({one[key] / original[key]:.2f}x)" if original.get(key) else ""
    return f"{one[key]:,.0f}{ratio}"


def _conversions(report: dict[str, Any]) -> Iterator[str]:
    for name, one in report.get("convert", {}).items():
        peak = one.get("peak_gpu_bytes", 0) / GIB
        yield f"{name}: " + (
            one.get("failed") or f"converted in {one['seconds']:.1f} s, at most {peak:.1f} GiB"
        )
