"""The command in the test's own process."""

import sys
from typing import NamedTuple

import pytest
from rich.console import Console

from conversion import cli


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def mha2mla(monkeypatch, capsys):
    """The command in this process: importing torch again for every case takes most of a minute."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mha2mla", *map(str, arguments)])
        monkeypatch.setattr(cli, "err", Console(stderr=True, width=400))
        monkeypatch.setenv("COLUMNS", "400")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return Result(stop.value.code, captured.out, captured.err)

    return run
