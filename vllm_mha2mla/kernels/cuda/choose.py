"""The choice of a layer's attention on a GPU: by its widths, the GPU and vLLM's FlashAttention.

- ``flash``: FlashAttention with keys = values = the cached rows, up to 256 wide.
- ``flash_split``: FlashAttention 3 with ``q_v``: keys are the rotary columns, values the latent
  ones, and the queries have a part for each. It reads a row once.
- ``flash_whole``: the same with no keys: values are whole rows, so narrower latents fit too.
- ``triton``: our own kernel; any width, and every GPU that Triton knows. It reads a row once.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.errors import UnsupportedEngineError

Way = Literal["flash_whole", "flash_split", "flash", "triton"]
Option = Literal["auto", "triton", "flash", "vllm"]

OPTION = "mha2mla_attention"
"""Key of the model's config: ``--hf-overrides '{"mha2mla_attention": "triton"}'``."""

FASTEST: tuple[Way, ...] = ("flash_whole", "flash_split", "flash", "triton")
"""The fastest first: the first that a layer can take is taken, but for what ``MEASURED`` says."""

MEASURED: dict[LatentWidths, Way] = {
    LatentWidths(80, 40): "triton",
    LatentWidths(192, 64): "triton",
    LatentWidths(256, 64): "flash_split",
    LatentWidths(512, 64): "flash_split",
}
"""The fastest decode on Hopper by width, as measured on an H100.

Where keys = values, FlashAttention reads rows twice and our kernel once. ``flash_split`` and
``flash_whole`` have been measured at no other widths, and are taken there only if asked for.
"""

FLASH_WIDTH = 256
SPLIT_VALUES = range(256, 513, 8)
SPLIT_KEYS = range(8, 65, 8)


@dataclass(frozen=True)
class Offers:
    """The part of FlashAttention that a GPU and vLLM's build for it have.

    Attributes:
        flash: version of FlashAttention for rows of the layer's width; ``None`` for none.
        split: it takes ``q_v``, which only version 3 on Hopper does.
    """

    flash: int | None
    split: bool


@dataclass(frozen=True)
class Ways:
    """The attention of a layer's decodes, and of prefills that are not expanded."""

    decode: Way
    prefill: Way


def option_of(config: object) -> Option:
    """The option in a model's config.

    Raises:
        UnsupportedEngineError: there is no such way.
    """
    value: Any = getattr(config, OPTION, None) or "auto"
    if value not in get_args(Option):
        raise UnsupportedEngineError(
            f"{OPTION} {value!r}: choose one of {', '.join(get_args(Option))}"
        )
    option: Option = value
    return option


def choose(widths: LatentWidths, row: int, offers: Offers, option: Option) -> Ways:
    """The ways of one layer.

    Args:
        widths: of the layer.
        row: numbers of a cached row, padding included.
        offers: what there is; nothing of FlashAttention for 32-bit numbers.
        option: ``flash`` and ``triton`` narrow the choice; a layer that FlashAttention cannot take
            stays with Triton.
    """
    possible: set[Way] = {"triton"}
    if option != "triton":
        possible |= _flash_ways(widths, row, offers)
    if option == "flash" and len(possible) > 1:
        possible.remove("triton")
    measured = MEASURED.get(widths)
    if option == "auto":
        possible -= {"flash_whole", "flash_split"} - {measured}
    prefill = next(way for way in FASTEST if way in possible)
    if option == "auto" and offers.split and measured in possible:
        return Ways(measured, prefill)
    return Ways(prefill, prefill)


def _flash_ways(widths: LatentWidths, row: int, offers: Offers) -> set[Way]:
    """FlashAttention's ways that take a layer."""
    possible: set[Way] = set()
    if offers.flash is not None and row <= FLASH_WIDTH:
        possible.add("flash")
    if offers.split and row in SPLIT_VALUES:
        possible.add("flash_whole")
    apart = widths.kv_lora_rank in SPLIT_VALUES and widths.qk_rope_head_dim in SPLIT_KEYS
    if offers.split and apart:
        possible.add("flash_split")
    return possible
