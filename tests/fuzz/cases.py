"""A case: an undamaged checkpoint, what is done to it, and who reads it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import torch

from tests.fuzz import (
    mutate_bytes,
    mutate_config,
    mutate_folder,
    mutate_gguf,
    mutate_recipe,
    mutate_safetensors,
    read_converted,
    read_gguf,
    read_recipe,
    read_source,
    sandbox,
)
from tests.fuzz.bases import BASES

# Kind -> share of the cases.
KINDS = {"source": 50, "gguf": 22, "converted": 25, "recipe": 3}
Damage = Callable[[Random, Path], str]
OF_FOLDERS: tuple[Damage, ...] = (
    *(mutate_config.damage, mutate_config.damage, mutate_safetensors.damage_header),
    *(mutate_safetensors.damage_index, mutate_bytes.damage, mutate_folder.damage),
)
DAMAGES: dict[str, tuple[Damage, ...]] = {
    "source": OF_FOLDERS,
    "converted": OF_FOLDERS,
    "gguf": (mutate_gguf.damage,),
    "recipe": (mutate_bytes.damage, mutate_recipe.damage),
}
READERS = {
    "source": read_source.check,
    "gguf": read_gguf.check,
    "converted": read_converted.check,
    "recipe": read_recipe.check,
}


@dataclass(frozen=True)
class Case:
    """A case's number; all chance comes from it and the seed."""

    seed: int
    number: int
    only: str | None = None

    @cached_property
    def kind(self) -> str:
        """The kind of checkpoint."""
        if self.only is not None:
            return self.only
        return Random(f"kind {self.seed} {self.number}").choices(list(KINDS), KINDS.values())[0]

    def random(self, of: str) -> Random:
        """The case's chance for one purpose."""
        return Random(f"{of} {self.seed} {self.number}")


@dataclass(frozen=True)
class Failure:
    """A case that was neither refused in one line nor read exactly."""

    case: Case
    damage: str
    detail: str

    def line(self) -> str:
        """What was done, what came of it, and how to see it again."""
        only = f" --kind {self.case.only}" if self.case.only else ""
        again = f"python -m tests.fuzz --seed {self.case.seed}{only} --only {self.case.number}"
        return f"WRONG {self.case.kind}: {self.damage}\n  {self.detail[:600]}\n  {again}"


def write_bases(folder: Path, kind: str | None) -> None:
    """Write the undamaged checkpoints, each into a folder of its kind and name."""
    torch.set_num_threads(1)
    for one, bases in BASES.items():
        for name, write in bases.items():
            if kind in (None, one):
                (folder / one / name).mkdir(parents=True)
                write(folder / one / name)


def _damaged(damage: Damage, rng: Random, folder: Path) -> str:
    try:
        return damage(rng, folder)
    except Exception:
        return "too damaged already for more"


def run_case(case: Case, work: Path) -> tuple[Case, str, sandbox.Outcome]:
    """Damage a checkpoint and read it; returns what was done and what came of it."""
    folder = work / f"case-{os.getpid()}"
    rng = case.random("damage")
    name = rng.choice(sorted(BASES[case.kind]))
    shutil.copytree(work / "bases" / case.kind / name, folder)
    try:
        mutate_folder.plant(folder)
        damages = [rng.choice(DAMAGES[case.kind]) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        # What is no file any more cannot be damaged further.
        damages.sort(key=lambda damage: damage is mutate_folder.damage)
        if damages.count(mutate_folder.damage) > 1:
            damages = damages[: 1 - damages.count(mutate_folder.damage)]
        done = "; ".join(_damaged(damage, rng, folder / "model") for damage in damages)
        read = READERS[case.kind]
        outcome = sandbox.run(folder, lambda at, watch: read(at, watch, case.random("reading")))
    finally:
        shutil.rmtree(folder)
    return case, f"{name}: {done}", outcome
