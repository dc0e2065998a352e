"""Requests for structured output, and the check of what came."""

import json
import random
import re
from typing import Any

from abuse.cases import CHAT, COMPLETIONS, Case, Constraint
from abuse.material import Material, log_uniform

PATTERNS = (
    r"[0-9]{3}-[0-9]{4}",
    r"(red|green|blue)( (red|green|blue)){0,5}",
    r"[A-Z][a-z]{1,12} [A-Z][a-z]{1,12}",
    r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]",
    r"[a-f0-9]{32}",
)
CHOICES = ("yes", "no", "maybe", "positive", "negative", "neutral", "Paris", "ein Wort", "日本")
TYPES: dict[str, tuple[type, Any]] = {
    "boolean": (bool, {"type": "boolean"}),
    "integer": (int, {"type": "integer", "minimum": 0, "maximum": 99999}),
    "string": (str, {"type": "string", "maxLength": 12}),
}
NAMES = ("name", "age", "city", "kind", "is_open", "x", "größe", "notes")
ANSWER_TOKENS = 200


def constrained(draw: random.Random, material: Material, number: int) -> Case:
    """Make a request whose answer has to be one of a few, match an expression, or be JSON."""
    prompt = material.window(draw, log_uniform(draw, material.longest - ANSWER_TOKENS))
    constraint, options = draw.choice([_choice, _regex, _json])(draw)
    options |= {
        "temperature": draw.choice([0, 0.8]),
        "seed": draw.randrange(1 << 31),
        "max_tokens": ANSWER_TOKENS,
        "stream": draw.random() < 0.5,
    }
    if draw.random() < 0.5:
        content = material.excerpt(draw, log_uniform(draw, material.longest // 4))
        path, options = CHAT, options | {"messages": [{"role": "user", "content": content}]}
    else:
        path, options = COMPLETIONS, options | {"prompt": prompt}
    return Case(number, "", path, options, constraint=constraint, scored=False)


def satisfies(text: str, constraint: Constraint) -> bool:
    """Tell if a whole answer is what was asked for; no code of a grammar's engine is used."""
    if constraint.kind == "choice":
        return text in constraint.value
    if constraint.kind == "regex":
        return re.fullmatch(constraint.value, text) is not None
    try:
        found = json.loads(text)
    except ValueError:
        return False
    properties = constraint.value
    return (
        isinstance(found, dict)
        and found.keys() == properties.keys()
        and all(_valid(found[name], allowed) for name, allowed in properties.items())
    )


def _valid(value: Any, allowed: Any) -> bool:
    if isinstance(allowed, list):
        return value in allowed
    kind, schema = TYPES[allowed]
    # An exact type, because True is an int too.
    if type(value) is not kind:
        return False
    if isinstance(value, str):
        return len(value) <= int(schema["maxLength"])
    return kind is bool or bool(schema["minimum"] <= value <= schema["maximum"])


def _choice(draw: random.Random) -> tuple[Constraint, dict[str, Any]]:
    words = draw.sample(CHOICES, draw.randrange(1, 6))
    return Constraint("choice", words), {"structured_outputs": {"choice": words}}


def _regex(draw: random.Random) -> tuple[Constraint, dict[str, Any]]:
    pattern = draw.choice(PATTERNS)
    return Constraint("regex", pattern), {"structured_outputs": {"regex": pattern}}


def _json(draw: random.Random) -> tuple[Constraint, dict[str, Any]]:
    properties: dict[str, Any] = {
        name: draw.choice([*TYPES, draw.sample(CHOICES, 2)])
        for name in draw.sample(NAMES, draw.randrange(1, 5))
    }
    schema = {
        "type": "object",
        "properties": {
            name: {"enum": allowed} if isinstance(allowed, list) else TYPES[allowed][1]
            for name, allowed in properties.items()
        },
        "required": list(properties),
        "additionalProperties": False,
    }
    if draw.random() < 0.5:
        # Without whitespace between tokens, of which a small model may write any number.
        options: dict[str, Any] = {
            "structured_outputs": {"json": schema, "disable_any_whitespace": True}
        }
    else:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        options = {"response_format": form}
    return Constraint("json", properties), options
