"""Writing a healed checkpoint: the trained tensors new, all others as they were."""

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
from conversion.healing.text import HealingText
from conversion.runtime.versions import versions
from vllm_mha2mla.config import HealingInfo, Provenance


def healed_provenance(
    pair: Pair,
    recipe: HealingRecipe,
    text: HealingText,
    tokens: int,
    rates: dict[int, float],
    stored: bool,
    before: dict[str, float],
    after: dict[str, float],
    kept: Literal["start", "end"],
) -> Provenance:
    """Add a healing to the checkpoint's provenance.

    Args:
        pair: the checkpoint and its teacher.
        recipe: the healing's recipe.
        text: the text it trained on.
        tokens: number of tokens it trained on, repeats included.
        rates: peak learning rates, by the step from which on each held.
        stored: the teacher's predictions were stored.
        before: figures on held-out text before the training.
        after: the same after it.
        kept: the weights that are written.
    """
    healing = HealingInfo(
        recipe=recipe.model_dump(),
        teacher=pair.source.name,
        teacher_fingerprint=pair.source.fingerprint(),
        files=text.files,
        fingerprint=text.fingerprint,
        tokens=tokens,
        rates={} if rates == {0: recipe.lr} else rates,
        stored_top_k=recipe.teacher_top_k if stored else None,
        versions=versions("torch", "transformers", "accelerate"),
        before=before,
        after=after,
        kept=kept,
    )
    provenance = pair.provenance
    return provenance.model_copy(update={"healing": [*provenance.healing, healing]})


def write_healed(
    pair: Pair,
    trained: dict[str, Tensor],
    provenance: Provenance,
    curve: LossCurve,
    out: Path,
    overwrite: bool,
) -> None:
    """Write the checkpoint, every tensor in the dtype it had, and the loss curve beside it.

    Args:
        pair: the checkpoint before the training.
        trained: tensors to replace, by name; empty: write the weights as they were.
        provenance: the new checkpoint's.
        curve: the training's loss curve.
        out: the folder to create.
        overwrite: replace an existing folder.

    Raises:
        OutputError: it cannot be written.
    """
    before = pair.checkpoint
    config = pair.config
    embedding, head = pair.family.embedding, pair.family.head
    if config.tie_word_embeddings and embedding in trained:
        # A checkpoint may store the tied head too: it must not stay the old embedding.
        trained = trained | {head: trained[embedding]}
    config.mha2mla = provenance.model_dump(mode="json")
    with staged_folder(out, overwrite, pair.source.name, str(pair.folder)) as folder:
        shards = Counter(info.shard for info in before.tensors.values())
        with CheckpointWriter(folder, shards) as writer:
            for name, info in before.tensors.items():
                if name in trained:
                    writer.write(name, trained[name].to(info.dtype), info.shard)
                else:
                    pieces = before.pieces(name)
                    writer.write_pieces(name, pieces, info.shape, info.dtype, info.shard)
            before.write_assets(folder)
            shutil.copyfile(curve.path, folder / curve.path.name)
            # An earlier healing's plot is among the assets.
            (folder / PLOT).unlink(missing_ok=True)
            plot_curve(curve.path, folder / PLOT, f"healing of {pair.folder.name}")
            card = model_card(provenance, config)
            writer.finish(config, card)
