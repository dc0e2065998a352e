"""A decoder layer around its attention: its input, and the rest given its output.

Families differ in norms, residual factors and parallel branches. The layer's own code knows them:
another attention stands in the layer's place for one call, and sees or gives what is wanted.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from conversion.families.family import Family


class _Reached(Exception):  # noqa: N818 - control flow, not an error
    def __init__(self, hidden_states: Tensor) -> None:
        super().__init__()
        self.hidden_states = hidden_states


class _Stop(nn.Module):
    def forward(self, hidden_states: Tensor, **_: Any) -> None:
        raise _Reached(hidden_states)


class _Given(nn.Module):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return self.output, None


@contextmanager
def swapped_attention(family: Family, layer: nn.Module, attention: nn.Module) -> Iterator[None]:
    """The layer with this attention; it has its own again afterwards."""
    own = family.attention(layer)
    family.set_attention(layer, attention)
    try:
        yield
    finally:
        family.set_attention(layer, own)


def attention_input(
    family: Family, layer: nn.Module, run: Callable[[Any, Tensor], Tensor], x: Tensor
) -> Tensor:
    """The hidden states that a layer's attention reads.

    Args:
        family: the layer's.
        layer: its MLP is not needed.
        run: moves hidden states past a layer.
        x: before the layer  # [..., hidden]
    """
    try:
        with swapped_attention(family, layer, _Stop()):
            run(layer, x)
    except _Reached as reached:
        return reached.hidden_states
    raise AssertionError(f"{type(layer).__name__} does not call its attention")


def past_attention(
    family: Family,
    layer: nn.Module,
    run: Callable[[Any, Tensor], Tensor],
    x: Tensor,
    attended: Tensor,
) -> Tensor:
    """A layer's output, given its attention's.

    Args:
        family: the layer's.
        layer: its attention is not called.
        run: moves hidden states past a layer.
        x: before the layer  # [..., hidden]
        attended: the output of an attention  # [..., hidden]
    """
    with swapped_attention(family, layer, _Given(attended)):
        return run(layer, x)
