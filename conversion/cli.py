"""The ``mha2mla`` command."""

import logging
import sys
from typing import NoReturn

import transformers
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
from vllm_mha2mla.errors import MHA2MLAError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Convert MHA, GQA and MQA models to multi-head latent attention.",
)
err = Console(stderr=True)

USAGE_ERROR = 2
INTERRUPTED = 130


app.command("convert")(convert_command)
app.command("inspect")(inspect_command)
app.command("eval")(eval_command)
app.command("sweep")(sweep_command)
app.command("bench")(bench_command)
app.command("heal")(heal_command)
app.command("export")(export_command)
app.command("methods")(methods_command)


def main() -> None:
    """Run the command; our errors become one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("accelerate", "httpx", "transformers", "gguf", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    interruption.listen()
    try:
        app()
    except MHA2MLAError as error:
        if interruption.came:
            _end_interrupted()
        err.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        raise SystemExit(USAGE_ERROR) from None
    except SystemExit as stop:
        # What typer makes of a KeyboardInterrupt.
        if stop.code == INTERRUPTED:
            _end_interrupted()
        raise
    except Exception:
        if interruption.came:
            _end_interrupted()
        raise


def _end_interrupted() -> NoReturn:
    err.print("interrupted; nothing half-written was left behind")
    raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
