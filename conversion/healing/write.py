"""Writing a healed checkpoint: what was learned, the rest as it was."""

import importlib.metadata
import platform
import shutil
from collections import Counter
from pathlib import Path
from typing import Literal

from torch import Tensor

from conversion.checkpoint.card import model_card
from conversion.checkpoint.staging import staged_folder
from conversion.checkpoint.writer import CheckpointWriter
from conversion.healing.curve import PLOT, LossCurve, plot_curve
from conversion.healing.pair import Pair
from conversion.healing.recipe import HealingRecipe
from conversion.healing.text import Packed
from vllm_mha2mla.config import HealingInfo, Provenance, latent_widths
from vllm_mha2mla.version import __version__

PACKAGES = ("torch", "transformers", "accelerate")


def healed_provenance(
    pair: Pair,
    recipe: HealingRecipe,
    text: Packed,
    tokens: int,
    stored: bool,
    before: dict[str, float],
    after: dict[str, float],
    kept: Literal["start", "end"],
) -> Provenance:
    """The checkpoint's provenance with one more healing, of so many tokens."""
    done = HealingInfo(
        recipe=recipe.model_dump(),
        teacher=pair.source.name,
        teacher_fingerprint=pair.source.fingerprint(),
        files=text.files,
        fingerprint=text.fingerprint,
        tokens=tokens,
        stored_top_k=recipe.teacher_top_k if stored else None,
        versions={"vllm-mha2mla": __version__, "python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        before=before,
        after=after,
        kept=kept,
    )
    known = pair.provenance
    return known.model_copy(update={"healing": [*known.healing, done]})


def write_healed(
    pair: Pair,
    learned: dict[str, Tensor],
    provenance: Provenance,
    curve: LossCurve,
    out: Path,
    overwrite: bool,
) -> None:
    """Write the checkpoint, each tensor in its dtype before, and the loss curve beside it.

    Args:
        pair: the checkpoint as it was.
        learned: tensors that changed, by name.
        provenance: of the new checkpoint.
        curve: of the training.
        out: the folder to create.
        overwrite: whether it may exist.

    Raises:
        OutputError: it cannot be written.
    """
    before = pair.checkpoint
    config = pair.config
    embedding, head = pair.family.embedding, pair.family.head
    if config.tie_word_embeddings and embedding in learned:
        # Where it is stored once more, it would be the old one.
        learned = learned | {head: learned[embedding]}
    config.mha2mla = provenance.model_dump(mode="json")
    with staged_folder(out, overwrite, pair.source.name, str(pair.folder)) as folder:
        shards = Counter(info.shard for info in before.tensors.values())
        with CheckpointWriter(folder, shards) as writer:
            for name, info in before.tensors.items():
                if name in learned:
                    writer.write(name, learned[name].to(info.dtype), info.shard)
                else:
                    pieces = before.pieces(name)
                    writer.write_pieces(name, pieces, info.shape, info.dtype, info.shard)
            before.write_assets(folder)
            shutil.copyfile(curve.path, folder / curve.path.name)
            # Of a healing before, which assets carry over.
            (folder / PLOT).unlink(missing_ok=True)
            plot_curve(curve.path, folder / PLOT, f"healing of {pair.folder.name}")
            card = model_card(provenance, latent_widths(config), config.dtype)
            writer.finish(config, card)
