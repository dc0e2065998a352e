"""The end of a program that serves models: one line and an exit code, whatever went wrong."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from conversion.errors import ServerError
from conversion.runtime.interruption import interruption
from vllm_mha2mla.errors import MHA2MLAError

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130


@contextmanager
def one_line() -> Iterator[None]:
    """Show log lines, and end the program with one line for errors of ours and for Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    interruption.listen()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ServerError as error:
        print(error.tail, file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except MHA2MLAError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
