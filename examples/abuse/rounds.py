"""The story of a run: measure the noise, then storms and quiet in turn, then the last questions."""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from abuse.answers import faults
from abuse.cases import COMPLETIONS, Case, Outcome
from abuse.client import Client, UnansweredError
from abuse.ledger import Ledger
from abuse.material import Material
from abuse.noise import FLOAT32_FLOOR, Noise, measure
from abuse.plan import Plan
from abuse.scores import Claim, Tolerance, claims, compare, score
from abuse.storm import Weather, storm
from abuse.watch import SETTLE_SECONDS, Server, State, settled, state

# Characters a request to the tokenizer, well below any limit of a body.
PIECE = 4000
MOST_PIECES = 12
SENTINELS_A_ROUND = 3


@dataclass(frozen=True)
class Options:
    """The settings of a run.

    Attributes:
        seed: of all requests.
        minutes: of storms; the quiet between them comes on top.
        clients: requests at once.
        round_seconds: length of a storm.
        noise_limit: the most that the quiet server may differ from itself.
        requests: the run is over after so many, however few minutes it took; None for any number.
        kinds: kinds of requests; all if empty.
        pause: scale of the pauses between bursts, in seconds.
        patience: seconds for the server to notice, after a storm, that its clients have gone.
    """

    seed: int
    minutes: float
    clients: int
    round_seconds: float
    noise_limit: float = FLOAT32_FLOOR
    requests: int | None = None
    kinds: tuple[str, ...] = ()
    pause: float = 1.0
    patience: float = SETTLE_SECONDS


@dataclass(frozen=True)
class Run:
    """A run that is over.

    Attributes:
        ledger: what it found.
        noise: of the quiet server; None if it ended before.
        before, after: the server's counters; None if it ended before.
        full: tokens of the request that filled the whole cache at the end.
        log: all that the server wrote.
        seconds: of storms alone.
        noise_limit: the most that the noise may be.
    """

    ledger: Ledger
    noise: Noise | None
    before: State | None
    after: State | None
    full: int | None
    log: str
    seconds: float
    noise_limit: float


async def run(server: Server, text: str, options: Options, say: Callable[[str], None]) -> Run:
    """Abuse a server.

    Args:
        server: a server that nobody else uses.
        text: the text that prompts are cut out of.
        options: how long and how hard.
        say: shows a line of progress.
    """
    ledger, story = Ledger(), _Story(server, options, say)
    client = Client(server.url)
    try:
        await story.tell(client, text, ledger)
    except UnansweredError as error:
        ledger.died = str(error)
    finally:
        await client.close()
    log = server.log.read_text("utf-8", "replace")
    return Run(
        ledger=ledger,
        noise=story.noise,
        before=story.before,
        after=story.after,
        full=story.full,
        log=log,
        seconds=story.seconds,
        noise_limit=options.noise_limit,
    )


class _Story:
    def __init__(self, server: Server, options: Options, say: Callable[[str], None]) -> None:
        self._server, self._options, self._say = server, options, say
        self.noise: Noise | None = None
        self.before: State | None = None
        self.after: State | None = None
        self.full: int | None = None
        self.seconds = 0.0

    async def tell(self, client: Client, text: str, ledger: Ledger) -> None:
        options = self._options
        material = await _material(client, text)
        before = self.before = await state(client)
        # One block is vLLM's own, and is never given to a request.
        capacity = (before.blocks - 1) * before.block_size
        most = min(material.longest, capacity)
        await _fill(client, material, most)
        noise = self.noise = await measure(client, material, capacity, options.seed)
        self._say(
            f"noise of the quiet server {noise.largest:.2g} over {noise.tokens:,} tokens, "
            f"root mean square of a request {noise.rms:.2g} at most"
        )
        plan, numbers = Plan(options.seed, material, options.kinds), itertools.count()
        for number in itertools.count(1):
            await self._round(client, plan, numbers, material, ledger, number)
            if self.seconds >= options.minutes * 60 or self._left(ledger) <= 0:
                break
        await _fill(client, material, most)
        self.full = most
        self.after = await settled(client, options.patience)

    def _left(self, ledger: Ledger) -> float:
        most = self._options.requests
        return math.inf if most is None else most - ledger.requests.total()

    async def _round(
        self,
        client: Client,
        plan: Plan,
        numbers: "itertools.count[int]",
        material: Material,
        ledger: Ledger,
        number: int,
    ) -> None:
        assert self.noise is not None
        options, begin = self._options, time.monotonic()
        weather = Weather(
            seconds=min(options.round_seconds, options.minutes * 60 - self.seconds),
            requests=self._left(ledger),
            clients=options.clients,
            pause=options.pause,
        )
        done = await storm(client, plan, numbers, weather)
        self.seconds += time.monotonic() - begin
        self._server.check()
        now = await settled(client, options.patience)
        if not now.quiet:
            ledger.held.append(
                f"round {number}: {now.running:.0f} running, {now.waiting:.0f} waiting, "
                f"{now.cache_usage:.1%} of the cache in use"
            )
        for case, outcome in done:
            await _judge(client, case, outcome, material.longest, self.noise.tolerance, ledger)
        await _sentinels(client, self.noise, material.longest, number, ledger)
        ledger.memory.append(self._server.memory())
        self._say(
            f"round {number}, {self.seconds / 60:.1f} minutes: {len(done)} requests, "
            f"{sum(outcome.left for _, outcome in done)} cancelled; so far "
            f"{now.preemptions:.0f} preemptions, {ledger.tokens:,} tokens compared, largest "
            f"difference {ledger.largest:.2g}, {len(ledger.findings)} findings; "
            f"{ledger.memory[-1] / 2**20:.0f} MiB"
        )


async def _judge(
    client: Client,
    case: Case,
    outcome: Outcome,
    longest: int,
    tolerance: Tolerance,
    ledger: Ledger,
) -> None:
    ledger.count(case, outcome)
    for fault in faults(case, outcome):
        ledger.fault(case, outcome, fault)
    for claim in claims(case, outcome):
        quiet = await score(client, claim.tokens, longest)
        difference = compare(claim, quiet)
        ledger.measure(difference)
        if not difference.within(tolerance):
            again = await client.send(dataclasses.replace(case, leaving=None))
            ledger.difference(case, claim, quiet, difference, again)


async def _sentinels(
    client: Client, noise: Noise, longest: int, number: int, ledger: Ledger
) -> None:
    """Score texts again that the fresh server scored, some other ones in each round."""
    for step in range(SENTINELS_A_ROUND):
        place = (number * SENTINELS_A_ROUND + step) % len(noise.sentinels)
        claim, before = noise.sentinels[place]
        now = await score(client, claim.tokens, longest)
        moved = compare(Claim(claim.tokens, 1, before.logprobs, len(claim.tokens)), now)
        ledger.drift = max(ledger.drift, moved.largest)


async def _fill(client: Client, material: Material, tokens: int) -> None:
    """Make a request that needs every block of the cache.

    Raises:
        UnansweredError: it is not answered, for want of a block for instance.
    """
    prompt = (list(material.text) * (1 + tokens // len(material.text)))[: tokens - 1]
    await client.ask(COMPLETIONS, {"prompt": prompt, "max_tokens": 1, "temperature": 0})


async def _material(client: Client, text: str) -> Material:
    (model,) = json.loads(await client.ask("/v1/models"))["data"]
    tokens: list[int] = []
    for begin in range(0, min(len(text), PIECE * MOST_PIECES), PIECE):
        body = {"prompt": text[begin : begin + PIECE], "add_special_tokens": False}
        tokens += json.loads(await client.ask("/tokenize", body))["tokens"]
    return Material(tokens, text, model["max_model_len"])
