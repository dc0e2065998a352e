"""Many clients at once, in bursts, with pauses between them."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass

from abuse.cases import Case, Outcome
from abuse.client import Client
from abuse.plan import Plan


@dataclass(frozen=True)
class Weather:
    """The strength of a storm.

    Attributes:
        seconds: no request begins after them.
        requests: no burst begins after so many.
        clients: most requests at once.
        pause: scale of the pauses between bursts, in seconds.
    """

    seconds: float
    requests: float
    clients: int
    pause: float


async def storm(
    client: Client, plan: Plan, numbers: Iterator[int], weather: Weather
) -> list[tuple[Case, Outcome]]:
    """Send requests of the plan for some time, then wait for the last answers.

    Args:
        client: of the server.
        plan: makes the requests.
        numbers: of the requests to make; taken from as needed.
        weather: how long and how hard.
    """
    loop, places = asyncio.get_running_loop(), asyncio.Semaphore(weather.clients)
    done: list[tuple[Case, Outcome]] = []
    deadline, begun = loop.time() + weather.seconds, 0

    async def one(case: Case) -> None:
        try:
            done.append((case, await client.send(case)))
        finally:
            places.release()

    async with asyncio.TaskGroup() as clients:
        while loop.time() < deadline and begun < weather.requests:
            first = next(numbers)
            draw = random.Random(f"{plan.seed}/burst/{first}")
            # The same request several times at once, now and then.
            burst = [plan.case(first)] * draw.choice([1, 1, 1, 1, 1, 3])
            others = draw.choice([0, 0, 2, 5, weather.clients])
            burst += [plan.case(next(numbers)) for _ in range(others)]
            for case in burst:
                await places.acquire()
                clients.create_task(one(case))
            begun += len(burst)
            pause = weather.pause * draw.choice([0, 0.1, draw.expovariate(1), draw.uniform(0, 5)])
            await asyncio.sleep(min(pause, max(0.0, deadline - loop.time())))
    return done
