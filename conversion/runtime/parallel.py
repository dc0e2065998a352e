"""Independent pieces of a computation, side by side on the threads that PyTorch may use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Item], Result], items: Iterable[Item], at_most: int | None = None
) -> Iterator[Result]:
    """``work`` of every item, in the items' order.

    Each piece gets its share of PyTorch's threads. Two pieces of one thread each waste less than
    two threads that wait for each other after every small operation. Results are the same however
    many pieces run at once, because the caller adds them up in order.

    Args:
        work: called with one item, with the caller's gradient mode. Autocast is not inherited:
            ``work`` enters what it needs. It must not touch what another piece writes.
        items: taken one by one, never more than run at once.
        at_most: pieces at once, where each takes memory; ``None``: as many as there are threads.
    """
    threads = torch.get_num_threads()
    workers = max(1, min(threads, threads if at_most is None else at_most))
    if workers == 1:
        yield from map(work, items)
        return
    gradients = torch.is_grad_enabled()

    def piece(item: Item) -> Result:
        with torch.set_grad_enabled(gradients):
            return work(item)

    running: deque[Future[Result]] = deque()
    try:
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(threads // workers,)
        ) as pool:
            for item in items:
                running.append(pool.submit(piece, item))
                if len(running) == workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        # The number is each thread's own, but new threads start with the last that any was given.
        torch.set_num_threads(threads)
