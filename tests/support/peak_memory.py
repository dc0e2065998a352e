"""Run as a script: one conversion, and by how much it raised the resident memory of its process."""

import json
import re
import sys
import tempfile
from pathlib import Path

from conversion import pipeline
from conversion.layers.original import SourceLayers
from conversion.recipes.recipe import Recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from tests.support.tiny import save_tiny


def resident(field):
    """``VmRSS`` or ``VmHWM`` of this process, in bytes.

    Not getrusage: its maximum begins with the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def keep_all_layers():
    load, kept = SourceLayers.load, []

    def load_and_keep(layers, index):
        kept.append(load(layers, index))
        return kept[-1]

    SourceLayers.load = load_and_keep


def main():
    source, out, recipe, offload, keep = json.loads(sys.argv[1])
    recipe = Recipe(**recipe)
    # Code of libraries becomes resident when it first runs; that is no memory of a model.
    with tempfile.TemporaryDirectory() as folder:
        convert(save_tiny(Path(folder) / "tiny"), Path(folder) / "out", recipe, None)
    before = resident("VmRSS")
    if keep:
        keep_all_layers()
    convert(source, out, recipe, offload)
    sys.stdout.write(str(resident("VmHWM") - before))


def convert(source, out, recipe, offload):
    options = pipeline.Options(offload=offload and Path(offload))
    pipeline.convert(open_source(str(source)), Path(out), recipe, options, Progress())


if __name__ == "__main__":
    main()
