"""One layer's self-check: a few steps on its own cache, and their rows and outputs judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_mha2mla.self_check.inputs import draw
from vllm_mha2mla.self_check.reference import Reference, Subject
from vllm_mha2mla.self_check.requests import Batch, batches
from vllm_mha2mla.self_check.stored import StoredBlocks, row_places


@dataclass(frozen=True)
class Mismatch:
    """A token whose row or output differs from the reference's.

    Attributes:
        case: kind of request and position of the token.
        found: the thing that differs.
        error: relative to the size of what differs.
        allowed: the bound.
    """

    case: str
    found: str
    error: float
    allowed: float


Compute = Callable[[Tensor, Tensor, Batch], Tensor]
"""Runs the layer: query  # [tokens, heads * (nope + rope)], rows  # [tokens, rank + rope], the
requests; gives outputs  # [tokens, heads * v]"""


def check(subject: Subject, compute: Compute) -> Mismatch | None:
    """Run every batch on a layer's cache, and leave the cache as it was.

    Args:
        subject: the layer.
        compute: runs it.

    Returns:
        the worst mismatch, or ``None``.
    """
    cache = subject.cache
    steps = list(batches(len(cache), cache.shape[1], subject.longest))
    touched = sorted({b for batch in steps for request in batch.requests for b in request.blocks})
    kept = cache[touched]
    cache[touched] = 0
    try:
        return _mismatch(subject, compute, steps, touched)
    finally:
        cache[touched] = kept


def _mismatch(
    subject: Subject, compute: Compute, steps: Sequence[Batch], touched: Sequence[int]
) -> Mismatch | None:
    reference = Reference(subject)
    counts = [batch.tokens for batch in steps]
    positions = torch.cat([batch.positions for batch in steps])
    generator = torch.Generator("cpu").manual_seed(0)
    inputs = draw(reference.sizes, positions, reference.coded, generator)
    query, rows = (part.to(subject.w_uk.dtype) for part in inputs)
    outs, stored = [], []
    places = row_places(subject)
    before = StoredBlocks(subject, touched, places)
    nothing = before.at(steps[0].slots[:1])
    for batch, of_query, of_rows in zip(
        steps, query.split(counts), rows.split(counts), strict=True
    ):
        # Copies, because kernels for GPUs turn the query in place.
        outs.append(compute(of_query.clone(), of_rows.clone(), batch).float().cpu())
        after = StoredBlocks(subject, touched, places)
        if not after.differ_only_at(batch.slots, before):
            return Mismatch(batch.cases[0], "a row beside those of the step", 1.0, 0.0)
        stored.append(after.at(batch.slots))
        before = after
    # Where nothing has been written attention reads zero bytes.
    seen, row_errors = reference.rows(torch.cat((*stored, nothing)), rows.float(), positions)
    reference.begin(before, steps, seen[-1])
    output_errors = [
        reference.output_errors(of_query.float(), of_seen, batch, out)
        for batch, of_query, of_seen, out in zip(
            steps, query.split(counts), seen[:-1].split(counts), outs, strict=True
        )
    ]
    mismatches = []
    for found, errors, allowed in (
        ("the row in the cache", row_errors, reference.row_tolerance),
        ("the output", torch.cat(output_errors), reference.tolerance),
    ):
        # What is no number counts as the largest error.
        error, token = errors.nan_to_num(torch.inf, posinf=torch.inf).max(0)
        if error > allowed:
            case = [of for batch in steps for of in batch.cases][int(token)]
            mismatches.append(Mismatch(case, found, float(error), allowed))
    return max(mismatches, key=lambda one: one.error / one.allowed, default=None)
