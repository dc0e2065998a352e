"""Partial RoPE, which components stay rotary: one file per strategy, one line here."""

from typing import TYPE_CHECKING

from conversion.runtime.registry import Registry

if TYPE_CHECKING:
    from conversion.rotary.selection import RotaryMethod

ROTARY: "Registry[RotaryMethod]" = Registry(
    __name__,
    {
        "calibrated": "calibrated",
        "2-norm": "two_norm",
        "high": "high",
        "low": "low",
        "uniform": "uniform",
        "mean-rotation": "mean_rotation",
        "rorope": "rorope",
    },
)
