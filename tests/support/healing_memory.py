"""Run as a script: the memory a healing says it needs, and by how much it raised resident memory.

In several processes each says what the machine needs, and what that process took.
"""

import json
import sys
from pathlib import Path

from conversion.healing import memory_estimate as memory
from conversion.healing import pair
from conversion.healing.launch import is_sharded
from conversion.healing.recipe import HealingRecipe
from conversion.healing.run import Healing, heal
from conversion.runtime import memory as freed
from conversion.runtime.progress import Progress
from tests.support.convert import convert_tiny
from tests.support.peak_memory import resident
from tests.support.sharded import allow_cpus
from tests.support.tiny import TEXT, save_tiny

WIDE = {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 4096}
SHAPES = {
    "tiny": {},
    "wide": WIDE | {"num_hidden_layers": 8},
    "deep": WIDE | {"num_hidden_layers": 20},
}


def make(folder):
    """The models that :func:`main` heals."""
    for name, shape in SHAPES.items():
        models = folder / name
        source = save_tiny(models / "source", **shape)
        convert_tiny(source, models / "converted", cache_fraction=0.5, split="fixed", refit=False)
        (models / "text.txt").write_text(TEXT)


def run(folder, recipe, out, cache_teacher=None):
    said = []
    check = memory.check_memory
    pair.check_memory = lambda needed, *rest: (said.append(needed), check(needed, *rest))
    # The maximum begins anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    text = (folder / "text.txt",)
    asked = Healing(
        folder / "converted", out, str(folder / "source"), text, cache_teacher=cache_teacher
    )
    heal(asked, recipe, Progress(None))
    return said[0], resident("VmHWM") - before


def main(folder, out, options):
    """Heal one of the models.

    Args:
        folder: of the models.
        out: for what comes out.
        options: ``model``, ``stored`` (the teacher's predictions), and the recipe's.
    """
    model, stored = options.pop("model"), options.pop("stored", False)
    if is_sharded():
        allow_cpus()
    # Small, as these models' layers are beside real ones.
    freed.THRESHOLD_BYTES = 1 << 18
    # Code of libraries becomes resident when it first runs; that is no memory of a model.
    run(folder / "tiny", HealingRecipe(tokens=128, window=64), out / "tiny")
    recipe = HealingRecipe(**{"tokens": 1024, "window": 256, "held_out_tokens": 0} | options)
    cache = out / "predictions" if stored else None
    said, taken = run(folder / model, recipe, out / model, cache)
    sys.stdout.write(json.dumps({"said": said, "taken": taken}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
