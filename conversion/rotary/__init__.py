"""Which rotary components stay (partial RoPE): one file per strategy, one line here."""

from conversion.rotary.calibrated import calibrated
from conversion.rotary.high import high
from conversion.rotary.low import low
from conversion.rotary.mean_rotation import mean_rotation
from conversion.rotary.per_head import same_in_every_head
from conversion.rotary.rorope import folded_least, rorope, widest_fold
from conversion.rotary.selection import RotaryMethod, RotarySelection, RotaryStrategy
from conversion.rotary.two_norm import two_norm
from conversion.rotary.uniform import uniform

ROTARY: dict[str, RotaryMethod] = {
    "calibrated": RotaryMethod(calibrated),
    "2-norm": RotaryMethod(two_norm, same_in_every_head),
    "high": RotaryMethod(high, same_in_every_head),
    "low": RotaryMethod(low, same_in_every_head),
    "uniform": RotaryMethod(uniform, same_in_every_head),
    "mean-rotation": RotaryMethod(mean_rotation),
    "rorope": RotaryMethod(rorope, widest_fold, folded_least),
}

__all__ = ["ROTARY", "RotaryMethod", "RotarySelection", "RotaryStrategy"]
