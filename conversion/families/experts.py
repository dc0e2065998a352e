"""Experts of a mixture: a checkpoint stores each one's matrices, a module holds all in one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

Part = tuple[str, tuple[int, ...], tuple[slice | int, ...]]
"""A stored tensor's name and shape, and its place in the module's tensor."""


@dataclass(frozen=True)
class ExpertNames:
    """The names of a mixture's tensors.

    Attributes:
        module: the mixture, in a layer of transformers' model.
        stored: the same in checkpoints.
        parts: tensor of the module's experts -> stored matrices whose rows it holds, in this order.
    """

    module: str
    stored: str
    parts: Mapping[str, tuple[str, ...]]

    def stored_parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        """The stored tensors of which a tensor of the model consists.

        Args:
            name: of the model's tensor.
            shape: its shape; of experts  # [experts, rows of all parts, columns]
        """
        found = re.search(rf"\.{re.escape(self.module)}\.(.*)", name)
        if found is None:
            return [(name, shape, ())]
        prefix, rest = f"{name[: found.start()]}.{self.stored}", found.group(1)
        tensor = rest.removeprefix("experts.")
        if tensor == rest or tensor not in self.parts:
            return [(f"{prefix}.{rest}", shape, ())]
        parts = self.parts[tensor]
        rows = shape[1] // len(parts)
        return [
            (
                f"{prefix}.experts.{expert}.{part}.weight",
                (rows, *shape[2:]),
                (expert, slice(at * rows, (at + 1) * rows)),
            )
            for expert in range(shape[0])
            for at, part in enumerate(parts)
        ]


GATED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""The matrices of gated experts, by the names that most families store them under."""
