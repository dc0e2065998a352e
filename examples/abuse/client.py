"""One request over HTTP, up to its end or to the moment when its client leaves."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from abuse.cases import CHAT, Case, Choice, Outcome

# Longer than the longest answer waits behind a full queue; a request that hangs takes for ever.
PATIENCE_SECONDS = 900.0
OK = 200
DATA, DONE = "data: ", "[DONE]"


class UnansweredError(Exception):
    """The server did not answer a request that any server answers."""


class Client:
    """Sends requests to one server.

    Args:
        url: the server's root, without a slash at the end.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        # As many connections as there are requests, and none kept: the server sees each client go.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            url, connector=connector, timeout=aiohttp.ClientTimeout(total=None)
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> str:
        """Return the answer to a GET, or to a POST of a body.

        Raises:
            UnansweredError: there is none.
        """
        method = "GET" if body is None else "POST"
        try:
            async with (
                asyncio.timeout(PATIENCE_SECONDS),
                self._session.request(method, path, json=body) as response,
            ):
                text = await response.text()
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise UnansweredError(f"{path}: {type(error).__name__}: {error}") from error
        if response.status != OK:
            raise UnansweredError(f"{path}: {response.status}: {text[:500]}")
        return text

    async def send(self, case: Case) -> Outcome:
        """Send a case and wait for its answer, or leave as it says."""
        outcome, begin = Outcome(), time.monotonic()
        seconds = case.leaving.seconds if case.leaving else None
        try:
            if case.leaving and case.leaving.halfway:
                await _leave_halfway(self._url, case)
                outcome.left = True
            else:
                async with asyncio.timeout(PATIENCE_SECONDS if seconds is None else seconds):
                    await _exchange(self._session, case, outcome)
        except TimeoutError:
            outcome.left = seconds is not None
            if not outcome.left:
                outcome.error = f"no whole answer within {PATIENCE_SECONDS:.0f} s"
        except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
            # A server that answers nonsense is a finding like another.
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.seconds = time.monotonic() - begin
        return outcome


async def _exchange(session: aiohttp.ClientSession, case: Case, outcome: Outcome) -> None:
    headers = {"Content-Type": "application/json"}
    async with session.post(case.path, data=case.encoded(), headers=headers) as response:
        outcome.status = response.status
        if response.status != OK:
            outcome.error = (await response.text())[:2000]
        elif case.streamed:
            await _follow(response, case, outcome)
        else:
            take(json.loads(await response.read()), case.path == CHAT, outcome)


async def _follow(response: aiohttp.ClientResponse, case: Case, outcome: Outcome) -> None:
    chunks, done = 0, False
    async for chunk in _events(response):
        if chunk == DONE:
            done = True
            continue
        take(json.loads(chunk), case.path == CHAT, outcome)
        chunks += 1
        if case.leaving and case.leaving.chunks == chunks:
            outcome.left = True
            response.close()
            return
    if not done:
        outcome.error = outcome.error or f"the stream ended after {chunks} chunks without {DONE}"


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in response.content:
        text = line.decode().rstrip("\n")
        if text.startswith(DATA):
            yield text.removeprefix(DATA)


def take(answer: dict[str, Any], chat: bool, outcome: Outcome) -> None:
    """Add a whole answer, or a chunk of a streamed one, to what has come.

    Args:
        answer: the JSON that the server sent.
        chat: it comes from the chat's path, where some fields have other places.
        outcome: what is added to.
    """
    if "error" in answer:
        outcome.error = json.dumps(answer["error"])[:2000]
        return
    outcome.prompt = outcome.prompt or answer.get("prompt_token_ids") or []
    for part in answer["choices"]:
        choice = outcome.choices.setdefault(part["index"], Choice())
        outcome.prompt = outcome.prompt or part.get("prompt_token_ids") or []
        message = part.get("message") or part.get("delta") or {}
        choice.text += (message.get("content") if chat else part["text"]) or ""
        choice.tokens += part.get("token_ids") or []
        choice.logprobs += _logprobs(part.get("logprobs"), chat)
        choice.finish = part.get("finish_reason") or choice.finish
        # With each choice where it is a completion, once where it is a chat.
        scores = part.get("prompt_logprobs") or answer.get("prompt_logprobs")
        if scores:
            outcome.prompt_logprobs = chosen(outcome.prompt, scores)


def chosen(tokens: list[int], scores: list[dict[str, Any] | None]) -> list[float | None]:
    """The log-probability of each token of a prompt; the first has none."""
    return [
        float(entry[str(token)]["logprob"]) if entry else None
        for token, entry in zip(tokens, scores, strict=True)
    ]


def _logprobs(found: dict[str, Any] | None, chat: bool) -> list[float | None]:
    if not found:
        return []
    if chat:
        return [entry["logprob"] for entry in found["content"] or []]
    return list(found["token_logprobs"])


async def _leave_halfway(root: str, case: Case) -> None:
    """Announce a request, send half of it and close the connection."""
    url = urlsplit(root)
    _, writer = await asyncio.open_connection(url.hostname, url.port)
    body = case.encoded()
    head = f"POST {case.path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
