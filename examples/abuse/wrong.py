"""Requests that are wrong, and have to be refused with a 4xx in a moment."""

import dataclasses
import json
import random
from typing import Any

from abuse.cases import CHAT, COMPLETIONS, Case
from abuse.material import Material

HUGE = 10**30


def wrong(draw: random.Random, material: Material, number: int) -> Case:
    """Make a wrong request: too long, no JSON, a wrong type or a number out of its range."""
    family = draw.choice([_too_long, _no_json, _field, _field, _chat_field, _odd])
    return dataclasses.replace(family(draw, material, number), scored=False)


def _too_long(draw: random.Random, material: Material, number: int) -> Case:
    longest = material.longest
    body: dict[str, Any] = draw.choice(
        [
            {"prompt": material.window(draw, longest + 1)},
            {"prompt": material.window(draw, longest)},
            {"prompt": material.window(draw, 10 * longest), "stream": True},
            {"prompt": "word " * (4 * longest)},
            {"prompt": material.window(draw, 3), "max_tokens": longest + 1},
        ]
    )
    return Case(number, "", COMPLETIONS, body, refused=True)


def _no_json(draw: random.Random, material: Material, number: int) -> Case:
    whole = json.dumps({"prompt": material.excerpt(draw, 50), "max_tokens": 1}).encode()
    body = draw.choice(
        [
            b"",
            b"hello",
            b"null",
            b"[1, 2]",
            b"\xff\xfe" + whole,
            whole[: draw.randrange(1, len(whole))],
            whole + b"}",
            b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            bytes(draw.randrange(256) for _ in range(200)),
        ]
    )
    return Case(number, "", draw.choice([COMPLETIONS, CHAT]), body, refused=True)


FIELDS: tuple[dict[str, Any], ...] = (
    {"model": "another"},
    {"prompt": ""},
    {"prompt": []},
    {"prompt": {"a": 1}},
    {"prompt": True},
    {"prompt": [-1]},
    {"prompt": [1 << 40]},
    {"prompt": [1.5]},
    {"prompt": [[1]] * 2000},
    {"prompt_embeds": "AAAA", "prompt": None},
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"max_tokens": 2.5},
    {"max_tokens": HUGE},
    {"max_tokens": 3, "min_tokens": 10},
    {"min_tokens": -1},
    {"temperature": "hot"},
    {"temperature": -1},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": [1]},
    {"top_p": 0},
    {"top_p": 2},
    {"top_p": float("nan")},
    {"top_k": -5},
    {"min_p": 3},
    {"n": 0},
    {"n": -1},
    {"n": 100_000},
    {"n": 2, "temperature": 0},
    {"seed": HUGE},
    {"logprobs": 1000},
    {"logprobs": -7},
    {"logprobs": "5"},
    {"prompt_logprobs": -7},
    {"prompt_logprobs": 1, "stream": True},
    {"presence_penalty": 50},
    {"frequency_penalty": float("nan")},
    {"repetition_penalty": 0},
    {"repetition_penalty": float("nan")},
    {"stop": ""},
    {"stop": ["a"] * 1000},
    {"stop_token_ids": ["a"]},
    {"stop_token_ids": [1 << 40]},
    {"bad_words": [""]},
    {"allowed_token_ids": []},
    {"allowed_token_ids": [1 << 40]},
    {"logit_bias": {"x": 1}},
    {"logit_bias": {"999999999": 1}},
    {"logit_bias": [1]},
    {"stream_options": {"include_usage": True}},
    {"truncate_prompt_tokens": -5},
    {"cache_salt": ""},
    {"structured_outputs": {"regex": "([a-z"}},
    {"structured_outputs": {"json": {"type": "nonsense"}}},
    {"structured_outputs": {"json": "{no json"}},
    {"structured_outputs": {"choice": []}},
    {"structured_outputs": {"choice": ["a"], "regex": "a"}},
    {"structured_outputs": {"grammar": "root ::= nothing"}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "nonsense"}},
)

CHAT_FIELDS: tuple[dict[str, Any], ...] = (
    {"messages": None},
    {"messages": []},
    {"messages": "hello"},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"content": "no role"}]},
    {"messages": [5]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}
        ]
    },
    {"tools": [{"type": "function"}]},
    {"tool_choice": "required"},
    {"top_logprobs": 5},
    {"logprobs": True, "top_logprobs": 1000},
    {"response_format": {"type": "json_schema"}},
    {"chat_template": "{{ messages.__class__ }}"},
    {"max_tokens": HUGE},
    {"temperature": float("nan")},
    {"n": 0},
)

ODDITIES: tuple[dict[str, Any], ...] = (
    {"unknown": {"field": [1, 2]}},
    {"prompt": "a\0b"},
    {"prompt": "\ud800 half a letter"},
    {"prompt": "\u202e\U0001f469\u200d\U0001f469\u200d\U0001f467" * 20},
    {"logit_bias": {"5": float("nan")}},
    {"logit_bias": {"5": 1e300}},
    {"max_tokens": "3"},
    {"use_beam_search": True, "n": 2},
    {"priority": 5},
    {"truncate_prompt_tokens": 1},
    {"suffix": "end"},
)


def _field(draw: random.Random, material: Material, number: int) -> Case:
    body = {"prompt": material.window(draw, 4), "max_tokens": 4} | draw.choice(FIELDS)
    return Case(number, "", COMPLETIONS, body, refused=True)


def _chat_field(draw: random.Random, material: Material, number: int) -> Case:
    message = {"role": "user", "content": material.excerpt(draw, 20)}
    body = {"messages": [message], "max_tokens": 4} | draw.choice(CHAT_FIELDS)
    return Case(number, "", CHAT, body, refused=True)


def _odd(draw: random.Random, material: Material, number: int) -> Case:
    """A request that a server may answer or refuse, as long as it lives on."""
    body = {"prompt": material.window(draw, 4), "max_tokens": 4} | draw.choice(ODDITIES)
    return Case(number, "", COMPLETIONS, body, refused=None)
