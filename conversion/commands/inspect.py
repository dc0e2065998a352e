"""``mha2mla inspect``: how a converted checkpoint was made and what it caches."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conversion.commands.options import Checkpoint
from conversion.runtime.numbers import span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conversion.checkpoint.inspection import Inspection, RowBits


def inspect_command(
    checkpoint: Checkpoint,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how a converted checkpoint was made and what it caches."""
    from conversion.checkpoint.inspection import inspect

    result = inspect(checkpoint)
    if json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        Console().print(inspection_table(result))
        if result.row_bits is not None:
            Console().print(bits_table(result.row_bits))


def bits_table(layers: "Sequence[RowBits]") -> Table:
    """The table of every layer's coded rows: columns by their bits, and bytes."""
    table = Table("layer", "bytes", "latent columns by bits", "rotary columns by bits", box=None)
    for index, layer in enumerate(layers):
        if not layer.bytes:
            continue
        table.add_row(str(index), str(layer.bytes), _by_bits(layer.latent), _by_bits(layer.rotary))
    return table


def inspection_table(result: "Inspection") -> Table:
    """The table of a checkpoint's origin, method, widths and cache."""
    table = Table(show_header=False, box=None)
    table.add_row("source", f"{escape(result.source)} ({result.source_fingerprint[:12]})")
    table.add_row("method", escape(result.method))
    table.add_row("layers", _layers(result))
    table.add_row("kv_lora_rank", _widths(result, result.kv_lora_rank))
    table.add_row("qk_rope_head_dim", _widths(result, result.qk_rope_head_dim))
    if result.row_bits is not None:
        table.add_row("columns by bits", _columns_by_bits(result.row_bits))
    if result.q_lora_rank is not None:
        table.add_row("q_lora_rank", str(result.q_lora_rank))
    if result.healed_tokens:
        table.add_row("healed", f"on {result.healed_tokens:,} tokens")
    table.add_row(
        "cache",
        f"{result.cache_bytes_per_token:,} bytes per token "
        + ("in coded rows, " if result.row_bits else f"in {result.dtype}, ")
        + f"{result.cache_fraction:.2%} of the original's {result.baseline_bytes_per_token:,}",
    )
    on_gpus = result.gpu_cache_bytes_per_token
    if on_gpus != result.cache_bytes_per_token:
        more = on_gpus / result.cache_bytes_per_token - 1
        table.add_row(
            "cache on GPUs",
            f"{on_gpus:,} bytes per token: rows are padded, which costs {more:.2%}; "
            "--target cuda chooses widths without padding",
        )
    return table


def _layers(result: "Inspection") -> str:
    kept = len(result.kept_layers)
    return str(result.layers) + (
        f", of which {kept} keep their attention over a window" if kept else ""
    )


def _widths(result: "Inspection", of_layers: list[int]) -> str:
    values = [value for n, value in enumerate(of_layers) if n not in result.kept_layers]
    mean = f", {sum(values) / len(values):.1f} on average"
    return span(values) + (mean if len(set(values)) > 1 else "")


def _columns_by_bits(layers: "Sequence[RowBits]") -> str:
    total: Counter[int] = Counter()
    for layer in layers:
        total.update(layer.latent)
        total.update(layer.rotary)
    columns = sum(total.values())
    mean = sum(bits * count for bits, count in total.items()) / columns
    return f"{_by_bits(total)}, {mean:.2f} bits on average"


def _by_bits(columns: "Mapping[int, int]") -> str:
    return ", ".join(f"{columns[bits]:,} of {bits}" for bits in sorted(columns, reverse=True))
