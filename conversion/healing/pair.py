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
from conversion.errors import RecipeError, SourceError
from conversion.families import Family, family_of
from conversion.healing.launch import is_sharded, local_world_size, world_size
from conversion.healing.memory_estimate import (
    check_memory,
    healing_bytes,
    host_bytes,
    prediction_bytes,
)
from conversion.healing.models import choose_trainable, round_frozen, set_attention, share_frozen
from conversion.healing.recipe import HealingRecipe
from conversion.healing.sharding import shard
from conversion.runtime.precision import bfloat16_is_fast
from conversion.source import open_source
from conversion.source.folder import FolderCheckpoint
from vllm_mha2mla.config import Provenance, read_provenance

logger = logging.getLogger(__name__)


class Pair:
    """The converted checkpoint and its original, read but not loaded.

    Args:
        folder: folder of the converted checkpoint.
        teacher: the original, as the converter takes it.
        recipe: window, losses and trained parameters.
        device: type of the device to train on, ``cpu`` or ``cuda``.

    Raises:
        CheckpointError, SourceError: one of them cannot be read.
        SourceError: they do not fit each other.
        RecipeError: they do not fit the recipe.
    """

    def __init__(self, folder: Path, teacher: str, recipe: HealingRecipe, device: str) -> None:
        self.folder = folder
        self.config = read_converted_config(folder)
        self.checkpoint = FolderCheckpoint(folder)
        self.source = open_source(teacher)
        self._recipe = recipe
        self._device, self._rounded = device, bfloat16_is_fast(device)
        self._check()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer."""
        return self.checkpoint.tokenizer()

    @property
    def provenance(self) -> Provenance:
        """The checkpoint's record of how it was made."""
        return read_provenance(self.config)

    @property
    def family(self) -> Family:
        """The checkpoint's family."""
        return family_of(self.config)

    def _check(self) -> None:
        original, converted = self.source.config, self.config
        same_tokens = self.source.tokenizer().get_vocab() == self.tokenizer.get_vocab()
        if original.vocab_size != converted.vocab_size or not same_tokens:
            raise SourceError(
                f"{self.source.name}: its vocabulary is not the checkpoint's; give the model "
                f"it was made from, {self.provenance.source.name}"
            )
        shape = ("hidden_size", "num_hidden_layers")
        if self._recipe.hidden_weight and any(
            getattr(original, key) != getattr(converted, key) for key in shape
        ):
            raise SourceError(
                f"{self.source.name}: its hidden states have another shape than the checkpoint's; "
                "leave hidden_weight at 0"
            )
        limit = min(original.max_position_embeddings, converted.max_position_embeddings)
        if self._recipe.window > limit:
            raise RecipeError(f"window {self._recipe.window}: the models take {limit} tokens")

    def check_memory(self, stored_teacher: bool) -> None:
        """Log how much memory the healing takes, and refuse to start with less.

        Args:
            stored_teacher: the teacher runs only before the training, to store its predictions.

        Raises:
            TrainingError: too little memory is free.
        """
        with torch.device("meta"):
            student = self.family.converted_causal_lm(self.config)
            original = self.source.family.causal_lm(self.source.config).requires_grad_(False)
        teacher = original if self._recipe.needs_teacher and not stored_teacher else None
        shards = world_size() if is_sharded() else 1
        needed = healing_bytes(student, teacher, self._recipe, self._rounded, shards)
        if stored_teacher:
            needed = max(needed, prediction_bytes(original, self._recipe.window, shards))
        # On a CPU all processes share its memory.
        needed *= local_world_size() if self._device == "cpu" else 1
        logger.info("about %.1f GiB of memory are needed", needed / 2**30)
        host = 0
        if self._device != "cpu":
            loaded = original if teacher is not None or stored_teacher else None
            host = local_world_size() * host_bytes(student, loaded, shards)
        check_memory(needed, self._device, host)

    def autocast(self) -> AbstractContextManager[None]:
        """Make a context in which products run in bfloat16, if they do so in training."""
        return torch.autocast(self._device, torch.bfloat16, enabled=self._rounded)

    def load_teacher(self, device: torch.device) -> Any:
        """Load the original, frozen; where models are sharded, this process's part of it."""
        if is_sharded():
            with torch.device("meta"):
                teacher = self.source.family.causal_lm(self.source.config)
        else:
            teacher = source_model(self.source, torch.float32)
        teacher.eval().requires_grad_(False)
        set_attention(teacher, device.type)
        if self._rounded:
            round_frozen(teacher)
        if is_sharded():
            rotary = self.source.family.rotary_embedding(self.source.config)
            return shard(teacher, self.source, rotary, device)
        return teacher.to(device)

    def load_student(self, device: torch.device, teacher: Any | None) -> Any:
        """Load the converted model, ready to learn; or this process's part of it.

        Args:
            device: the device to train on.
            teacher: the loaded original, to share frozen weights with unless models are sharded.
        """
        if is_sharded():
            with torch.device("meta"):
                # A copy: Trainer changes the model's config, and self.config is written.
                student = self.family.converted_causal_lm(copy.deepcopy(self.config))
        else:
            student, _ = load_converted(self.folder, torch.float32)
            # transformers saves no training checkpoint with generation options that it calls
            # invalid. The output gets the original file, whatever is in it.
            student.generation_config = GenerationConfig()
        set_attention(student, device.type)
        choose_trainable(student, self._recipe.train == "all")
        if is_sharded():
            if self._rounded:
                round_frozen(student)
            rotary = self.family.rotary_embedding(self.config)
            return shard(student, self.checkpoint, rotary, device)
        student.to(device)
        if self._rounded:
            round_frozen(student)
        if teacher is not None:
            share_frozen(student, teacher)
        return student
