"""``mha2mla inspect``: what a converted checkpoint is."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from conversion.checkpoint.inspection import Inspection, inspect
from conversion.commands.options import Checkpoint


def inspect_command(
    checkpoint: Checkpoint,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a converted checkpoint is and what it caches."""
    found = inspect(checkpoint)
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        Console().print(inspection_table(found))


def inspection_table(found: Inspection) -> Table:
    """What a checkpoint is, for a terminal."""
    table = Table(show_header=False, box=None)
    table.add_row("source", f"{found.source} ({found.source_fingerprint[:12]})")
    table.add_row("method", found.method)
    table.add_row("layers", str(found.layers))
    table.add_row("kv_lora_rank", _range(found.kv_lora_rank))
    table.add_row("qk_rope_head_dim", _range(found.qk_rope_head_dim))
    if found.q_lora_rank is not None:
        table.add_row("q_lora_rank", str(found.q_lora_rank))
    if found.healed_tokens:
        table.add_row("healed", f"on {found.healed_tokens:,} tokens")
    table.add_row(
        "cache",
        f"{found.cache_bytes_per_token:,} bytes per token in {found.dtype}, "
        f"{found.cache_fraction:.2%} of the original's {found.baseline_bytes_per_token:,}",
    )
    return table


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return (
        str(low) if low == high else f"{low} to {high}, {sum(values) / len(values):.1f} on average"
    )
