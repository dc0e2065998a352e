"""Which rotary components stay (partial RoPE): one file per strategy, one line here."""

from conversion.rotary.calibrated import calibrated
from conversion.rotary.selection import RotarySelection, RotaryStrategy
from conversion.rotary.two_norm import two_norm

ROTARY: dict[str, RotaryStrategy] = {"calibrated": calibrated, "2-norm": two_norm}

__all__ = ["ROTARY", "RotarySelection", "RotaryStrategy"]
