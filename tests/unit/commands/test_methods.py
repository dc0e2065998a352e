import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conversion.cli import app
from conversion.latent import LATENT
from conversion.recipes.methods import METHODS
from conversion.rotary import ROTARY

ROOT = Path(__file__).parents[3]


def test_every_method_and_strategy_is_listed_with_its_reference():
    result = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    for name, method in METHODS.items():
        assert [name, method.rotary, method.latent] in lines
    for name, entry in [*ROTARY.items(), *LATENT.items()]:
        assert [name, *entry.reference.split()] in [
            line[: 1 + len(entry.reference.split())] for line in lines
        ]


@pytest.mark.parametrize(
    ("method", "function"),
    [(m, m.choose) for m in ROTARY.values()] + [(m, m.factorise) for m in LATENT.values()],
)
def test_a_reference_is_the_paper_of_the_docstring_or_a_document(method, function):
    paper = re.fullmatch(r"arXiv:\d{4}\.\d{5}", method.reference)
    if paper:
        assert method.reference in function.__doc__
    else:
        assert (ROOT / method.reference.removeprefix("ours: ")).is_file()
