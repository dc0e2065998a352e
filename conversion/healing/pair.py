"""The converted checkpoint and its teacher: checked against each other, loaded together."""

import copy
import logging
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from conversion.checkpoint.loading import load_converted, read_converted_config, source_model
from conversion.errors import HealingError
from conversion.families import Family, family_of
from conversion.healing.launch import processes, processes_here, sharded
from conversion.healing.memory_estimate import asking_bytes, check_memory, healing_bytes
from conversion.healing.models import choose_trainable, round_frozen, set_attention, share_frozen
from conversion.healing.recipe import HealingRecipe
from conversion.healing.sharding import shard
from conversion.healing.trainer_arguments import rounds_products
from conversion.source import open_source
from conversion.source.folder import FolderCheckpoint
from vllm_mha2mla.config import Provenance, read_provenance

logger = logging.getLogger(__name__)


class Pair:
    """Student and teacher.

    Args:
        folder: of the converted checkpoint.
        teacher: the original, as the converter takes it.
        recipe: how they are used.

    Raises:
        CheckpointError, SourceError: one of them cannot be read.
        HealingError: they do not belong together.
    """

    def __init__(self, folder: Path, teacher: str, recipe: HealingRecipe) -> None:
        self.folder = folder
        self.config = read_converted_config(folder)
        self.checkpoint = FolderCheckpoint(folder)
        self.source = open_source(teacher)
        self._recipe = recipe
        self._check()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer."""
        return self.checkpoint.tokenizer()

    @property
    def provenance(self) -> Provenance:
        """How the checkpoint came to be."""
        return read_provenance(self.config)

    @property
    def family(self) -> Family:
        """The checkpoint's family."""
        return family_of(self.config)

    def _check(self) -> None:
        theirs, ours = self.source.config, self.config
        same_tokens = self.source.tokenizer().get_vocab() == self.tokenizer.get_vocab()
        if theirs.vocab_size != ours.vocab_size or not same_tokens:
            raise HealingError(
                f"{self.source.name}: its vocabulary is not the checkpoint's; give the model "
                f"it was made from, {self.provenance.source.name}"
            )
        shape = ("hidden_size", "num_hidden_layers")
        if self._recipe.hidden_weight and any(
            getattr(theirs, k) != getattr(ours, k) for k in shape
        ):
            raise HealingError(
                f"{self.source.name}: its hidden states have another shape than the checkpoint's; "
                "leave hidden_weight at 0"
            )
        limit = min(theirs.max_position_embeddings, ours.max_position_embeddings)
        if self._recipe.window > limit:
            raise HealingError(f"window {self._recipe.window}: the models take {limit} tokens")

    def check_memory(self, stored_teacher: bool) -> None:
        """Say how much memory it takes.

        Args:
            stored_teacher: whether the teacher is only asked before the training.

        Raises:
            HealingError: more than there is.
        """
        with torch.device("meta"):
            student = self.family.converted_causal_lm(self.config)
            original = self.source.family.causal_lm(self.source.config).requires_grad_(False)
        teacher = original if self._recipe.needs_teacher and not stored_teacher else None
        shards = processes() if sharded() else 1
        needed = healing_bytes(student, teacher, self._recipe, rounds_products(), shards)
        if stored_teacher:
            needed = max(needed, asking_bytes(original, self._recipe.window, shards))
        # On a CPU all share its memory.
        needed *= 1 if torch.cuda.is_available() else processes_here()
        logger.info("about %.1f GiB of memory are needed", needed / 2**30)
        check_memory(needed)

    def products(self) -> AbstractContextManager[None]:
        """Products in bfloat16 where they are in training."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.autocast(device, torch.bfloat16, enabled=rounds_products())

    def load_teacher(self, device: torch.device) -> Any:
        """The original on the device, or this device's part of it, where models are sharded."""
        if sharded():
            with torch.device("meta"):
                teacher = self.source.family.causal_lm(self.source.config)
        else:
            teacher = source_model(self.source, torch.float32)
        teacher.eval().requires_grad_(False)
        set_attention(teacher, device.type)
        if rounds_products():
            round_frozen(teacher)
        if sharded():
            rotary = self.source.family.rotary_embedding(self.source.config)
            return shard(teacher, self.source, rotary, device)
        return teacher.to(device)

    def load_student(self, device: torch.device, teacher: Any | None) -> Any:
        """The converted model, ready to learn, or this device's part of it.

        Args:
            device: where it trains.
            teacher: shares what does not learn, unless models are sharded.
        """
        if sharded():
            with torch.device("meta"):
                # A copy: Trainer changes a model's, and this one is written.
                student = self.family.converted_causal_lm(copy.deepcopy(self.config))
        else:
            student, _ = load_converted(self.folder, torch.float32)
            # Its file is carried over as it is; of one that transformers calls invalid no state
            # could be saved.
            student.generation_config = GenerationConfig()
        set_attention(student, device.type)
        choose_trainable(student, self._recipe.train == "all")
        if sharded():
            if rounds_products():
                round_frozen(student)
            rotary = self.family.rotary_embedding(self.config)
            return shard(student, self.checkpoint, rotary, device)
        student.to(device)
        if rounds_products():
            round_frozen(student)
        if teacher is not None:
            share_frozen(student, teacher)
        return student
