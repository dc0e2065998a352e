"""``mha2mla export``: a source as a plain Hugging Face folder."""

from rich.console import Console

from conversion.checkpoint.dtypes import dtype_named
from conversion.checkpoint.export import export
from conversion.commands.options import Dtype, Output, Overwrite, Source
from conversion.runtime.progress import Progress
from conversion.source import open_source


def export_command(
    source: Source, output: Output, dtype: Dtype = None, overwrite: Overwrite = False
) -> None:
    """Write SOURCE unconverted as a model folder, for engines that cannot read its format."""
    original, progress = open_source(source), Progress(Console(stderr=True))
    export(original, output, dtype_named(dtype), overwrite, progress)
