"""The conversion as a story: text, statistics, widths, layers, checkpoint.

``run.convert`` tells it. ``text`` has the calibration text, ``layers`` converts all layers,
``write`` and ``provenance`` have what is written, ``stages`` tells how long each part takes.
"""

from conversion.pipeline.provenance import HELD_OUT_DIVERGENCE
from conversion.pipeline.run import Options, convert
from conversion.pipeline.stages import stage_shares
from conversion.pipeline.text import calibration_text

__all__ = ["HELD_OUT_DIVERGENCE", "Options", "calibration_text", "convert", "stage_shares"]
