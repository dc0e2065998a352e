"""Run as a script: what a healing says it needs, and by how much it raised resident memory."""

import json
import sys
import tempfile
from pathlib import Path

from conversion.healing import Healing, HealingRecipe, heal, memory, pair
from conversion.progress import Progress
from tests.integration.test_conversion import run as convert
from tests.peak_memory import resident
from tests.tiny import TEXT, save_tiny


def run(folder, recipe, **shape):
    folder.mkdir()
    source = save_tiny(folder / "source", **shape)
    convert(source, folder / "converted", cache_fraction=0.5, split="fixed", refit=False)
    (folder / "text.txt").write_text(TEXT)
    said = []
    check = memory.check_memory
    pair.check_memory = lambda needed: (said.append(needed), check(needed))
    # The maximum begins anew: the conversion may have taken more.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    text = (folder / "text.txt",)
    asked = Healing(folder / "converted", folder / "healed", str(source), text)
    heal(asked, recipe, Progress(None))
    return said[0], resident("VmHWM") - before


def main():
    with tempfile.TemporaryDirectory() as scratch:
        # Code of libraries becomes resident when it first runs; that is no memory of a model.
        run(Path(scratch) / "tiny", HealingRecipe(tokens=128, window=64))
        recipe = HealingRecipe(
            tokens=1024, window=256, held_out_tokens=0, **json.loads(sys.argv[1])
        )
        shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
        said, taken = run(Path(scratch) / "wide", recipe, vocab_size=4096, **shape)
    sys.stdout.write(json.dumps({"said": said, "taken": taken}) + "\n")


if __name__ == "__main__":
    main()
