"""A request, and the answer that is right."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True)
class Leaving:
    """The moment at which the client closes its connection, whichever comes first.

    Attributes:
        seconds: after the request was sent.
        chunks: of a streamed answer.
        halfway: while it is still sending the request.
    """

    seconds: float | None = None
    chunks: int | None = None
    halfway: bool = False


@dataclass(frozen=True)
class Constraint:
    """A condition on the text of an answer that was not cut short.

    Attributes:
        kind: ``choice``, ``regex`` or ``json``.
        value: the list of choices, the expression, or the properties by name: each a list of the
            values it may have, or the name of its type.
    """

    kind: Literal["choice", "regex", "json"]
    value: Any


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        number: its place in the plan; plan and number make the same request again.
        kind: the plan's name for such requests.
        path: the path it is posted to.
        body: what is sent as JSON, or the very bytes.
        refused: the server has to refuse it, with a 4xx; None where it may do either.
        leaving: when the client leaves before the answer is complete.
        constraint: a condition on the text.
        only: the tokens that may be generated, where the request allows some alone.
        scored: its log-probabilities are those of the model, untouched by a grammar.
    """

    number: int
    kind: str
    path: str
    body: dict[str, Any] | bytes
    refused: bool | None = False
    leaving: Leaving | None = None
    constraint: Constraint | None = None
    only: frozenset[int] | None = None
    scored: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """The fields of the request; none where it is no JSON object."""
        return self.body if isinstance(self.body, dict) else {}

    @property
    def streamed(self) -> bool:
        """Tell if the answer comes in chunks."""
        return bool(self.options.get("stream"))

    @property
    def greedy(self) -> bool:
        """Tell if every token has to be the model's first choice."""
        moved = ("logit_bias", "allowed_token_ids", "repetition_penalty", "presence_penalty")
        return (
            self.scored
            and self.options.get("temperature") == 0
            and not self.options.get("min_tokens")
            and not any(name in self.options for name in moved)
        )

    def encoded(self) -> bytes:
        """The bytes to send."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Choice:
    """One of the ``n`` answers to a request.

    Attributes:
        text, tokens: what was generated.
        logprobs: log-probability of each token.
        finish: ``stop`` or ``length``; None while it is not complete.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    finish: str | None = None


@dataclass
class Outcome:
    """The answer to a request, as far as it came.

    Attributes:
        status: HTTP status; 0 where the client left, or lost the connection, before one came.
        prompt: the prompt's tokens.
        prompt_logprobs: of each token of the prompt, where they were asked for; the first has none.
        choices: the answers by index.
        error: why there is none: the server's words, or the client's.
        left: the client closed the connection, as the case says.
        seconds: from the first byte sent to the last received.
    """

    status: int = 0
    prompt: list[int] = field(default_factory=list)
    prompt_logprobs: list[float | None] = field(default_factory=list)
    choices: dict[int, Choice] = field(default_factory=dict)
    error: str | None = None
    left: bool = False
    seconds: float = 0.0
