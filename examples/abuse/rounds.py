"""The story of a run: measure the noise, then storms and quiet in turn, then the last questions."""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from abuse.answers import faults
from abuse.cases import COMPLETIONS, Case, Outcome
from abuse.client import Client, UnansweredError
from abuse.ledger import Ledger
from abuse.material import Material
from abuse.noise import Noise, measure
from abuse.plan import Plan
from abuse.run import Options, Run
from abuse.scores import Claim, Tolerance, claims, compare, score
from abuse.storm import Weather, storm
from abuse.watch import Server, settled, state

# Characters a request to the tokenizer, well below any limit of a body.
PIECE = 4000
MOST_PIECES = 12
SENTINELS_A_ROUND = 3


async def abuse(server: Server, text: str, options: Options, say: Callable[[str], None]) -> Run:
    """Abuse a server.

    Args:
        server: a server that nobody else uses.
        text: the text that prompts are cut out of.
        options: how long and how hard.
        say: shows a line of progress.
    """
    run, client = Run(options.noise_limit), Client(server.url)
    try:
        await _Story(server, client, options, say, run).tell(text)
    except UnansweredError as error:
        run.ledger.died = str(error)
    finally:
        await client.close()
    run.log = server.log.read_text("utf-8", "replace")
    return run


@dataclass(frozen=True)
class _Story:
    """The steps of a run, and all who take part in them; what they find stands in the run."""

    server: Server
    client: Client
    options: Options
    say: Callable[[str], None]
    run: Run

    async def tell(self, text: str) -> None:
        client, options, run = self.client, self.options, self.run
        material = await _material(client, text)
        run.before = await state(client)
        # One block is vLLM's own, and is never given to a request.
        capacity = (run.before.blocks - 1) * run.before.block_size
        most = min(material.longest, capacity)
        await _fill(client, material, most)
        noise = run.noise = await measure(client, material, capacity, options.seed)
        self.say(
            f"noise of the quiet server {noise.largest:.2g} over {noise.tokens:,} tokens, "
            f"root mean square of a request {noise.rms:.2g} at most"
        )
        plan, numbers = Plan(options.seed, material, options.kinds), itertools.count()
        for number in itertools.count(1):
            await self._round(plan, numbers, noise, material.longest, number)
            if run.seconds >= options.minutes * 60 or self._left() <= 0:
                break
        await _fill(client, material, most)
        run.full = most
        run.after = await settled(client, options.patience)

    def _left(self) -> float:
        """The requests that may still be made."""
        most = self.options.requests
        return math.inf if most is None else most - self.run.ledger.requests.total()

    async def _round(
        self, plan: Plan, numbers: Iterator[int], noise: Noise, longest: int, number: int
    ) -> None:
        client, options, run = self.client, self.options, self.run
        ledger, begin = run.ledger, time.monotonic()
        weather = Weather(
            seconds=min(options.round_seconds, options.minutes * 60 - run.seconds),
            requests=self._left(),
            clients=options.clients,
            pause=options.pause,
        )
        done = await storm(client, plan, numbers, weather)
        run.seconds += time.monotonic() - begin
        self.server.check()
        now = await settled(client, options.patience)
        if not now.quiet:
            ledger.held.append(
                f"round {number}: {now.running:.0f} running, {now.waiting:.0f} waiting, "
                f"{now.cache_usage:.1%} of the cache in use"
            )
        for case, outcome in done:
            await _judge(client, case, outcome, longest, noise.tolerance, ledger)
        await _sentinels(client, noise, longest, number, ledger)
        ledger.memory.append(self.server.memory())
        self.say(
            f"round {number}, {run.seconds / 60:.1f} minutes: {len(done)} requests, "
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
