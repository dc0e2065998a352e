"""Hostile values in recipes."""

import json
from pathlib import Path
from random import Random

import yaml

from tests.fuzz.hostile import nested, value

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + at)}: &{chr(98 + at)} [{', '.join(['*' + chr(97 + at)] * 9)}]\n" for at in range(9)
)
TEXTS = (
    *("!!python/object/apply:os.mkdir ['outside/yaml-was-run']", "[]", "3", "", "a: b: c", "&a *a"),
    *(nested(100_000), ALIASES, "method: calibrated\nmethod: care", "? [a]\n: b", "1: 2", "\x00"),
)


def damage(rng: Random, folder: Path) -> str:
    """Change keys of ``recipe.yaml``, or replace it."""
    path = folder / "recipe.yaml"
    if rng.random() < 0.3:
        text = rng.choice(TEXTS)
        path.write_text(text)
        return f"recipe.yaml: {text[:40]!r}"
    try:
        values = yaml.safe_load(path.read_text("utf-8", "replace"))
        assert isinstance(values, dict)
    except (yaml.YAMLError, AssertionError, RecursionError):
        return "recipe.yaml: left as it is"
    keys = (*values, "kv_lora_rank", "rope_dim", "bits", "target", "refit", "ridge", "unknown")
    key = rng.choice(sorted(map(str, keys)))
    values[key] = value(rng, values.get(key))
    # JSON is YAML.
    path.write_text(json.dumps(values), "utf-8")
    return f"recipe.yaml: {key} = {str(values[key])[:60]!r}"
