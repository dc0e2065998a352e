"""The ``mha2mla`` command: its subcommands, and how they end.

Nothing that imports torch or transformers is imported here: ``--help`` would take seconds.
"""

import importlib.metadata
import logging
import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from conversion.commands.bench import bench_command
from conversion.commands.convert import convert_command
from conversion.commands.eval import eval_command
from conversion.commands.export import export_command
from conversion.commands.heal import heal_command
from conversion.commands.inspect import inspect_command
from conversion.commands.methods import methods_command
from conversion.commands.sweep import sweep_command
from conversion.runtime.interruption import interruption

USAGE_ERROR = 2
INTERRUPTED = 130
# Libraries that log what a user of the command has no use for; transformers also draws progress
# bars. It reads its variables when it is first imported.
NOISY = ("accelerate", "httpx", "transformers", "gguf", "matplotlib")
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
err = Console(stderr=True)

app.command("convert")(convert_command)
app.command("inspect")(inspect_command)
app.command("eval")(eval_command)
app.command("sweep")(sweep_command)
app.command("bench")(bench_command)
app.command("heal")(heal_command)
app.command("export")(export_command)
app.command("methods")(methods_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mha2mla {importlib.metadata.version('vllm-mha2mla')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Convert MHA, GQA and MQA models to multi-head latent attention."""


def main() -> None:
    """Run the command; our errors become one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in NOISY:
        logging.getLogger(library).setLevel(logging.ERROR)
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    interruption.listen()
    try:
        app()
    except SystemExit as stop:
        # typer turns a KeyboardInterrupt into this.
        if stop.code == INTERRUPTED:
            _end_interrupted()
        raise
    except Exception as error:
        if interruption.came:
            _end_interrupted()
        # Whatever raised one of ours has imported torch already.
        from vllm_mha2mla.errors import MHA2MLAError

        if not isinstance(error, MHA2MLAError):
            raise
        err.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        raise SystemExit(USAGE_ERROR) from None


def _end_interrupted() -> NoReturn:
    err.print("interrupted; nothing half-written was left behind")
    raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
