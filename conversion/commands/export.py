"""``mha2mla export``: a source as a plain Hugging Face folder."""

from rich.console import Console

from conversion.commands.options import Dtype, Output, Overwrite, Source


def export_command(
    source: Source, output: Output, dtype: Dtype = None, overwrite: Overwrite = False
) -> None:
    """Write SOURCE unconverted as a model folder, for engines that cannot read its format."""
    from conversion.checkpoint.export import export
    from conversion.runtime.dtypes import dtype_named
    from conversion.runtime.progress import Progress
    from conversion.source import open_source

    original, progress = open_source(source), Progress(Console(stderr=True))
    export(original, output, dtype_named(dtype) if dtype else None, overwrite, progress)
