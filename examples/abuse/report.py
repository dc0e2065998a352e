"""The verdict of a run: its checks, a table of them, and all of it as JSON."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from abuse.ledger import Check
from abuse.run import Options, Run
from abuse.watch import FEWEST_SAMPLES, MEMORY_SHARE, alarms, growth

MIB = 1 << 20
COUNTED = (("preemptions", "preemptions"), ("prefix_hits", "tokens found in the prefix cache"))
WORDS = {True: "ok", False: "FAILED", None: "too short to tell"}


def checks(run: Run) -> list[Check]:
    """List what was checked, with its figures."""
    return [*_alive(run), *_answers(run), *_tokens(run), *_cache(run), *_memory(run), *_log(run)]


def passed(run: Run) -> bool:
    """Tell if no check failed."""
    return all(check.ok is not False for check in checks(run))


def table(run: Run) -> Table:
    """Make the table that a run ends with."""
    shown = Table("checked", "", "figure", title=f"{run.seconds / 60:.1f} minutes of abuse")
    for check in checks(run):
        style = "bold red" if check.ok is False else ""
        shown.add_row(Text(check.name), Text(WORDS[check.ok], style), Text(check.figure))
    return shown


def as_json(run: Run, options: Options, settings: dict[str, Any]) -> dict[str, Any]:
    """Lay the whole run out as JSON keeps it.

    Args:
        run: the run.
        options: how it was driven.
        settings: the rest that it takes to repeat it.
    """
    noise = run.noise and {
        "largest": run.noise.largest,
        "tokens": run.noise.tokens,
        "rms": run.noise.rms,
        "tolerance": vars(run.noise.tolerance),
        "limit": run.noise_limit,
    }
    return {
        "passed": passed(run),
        "settings": settings | dataclasses.asdict(options),
        "seconds": run.seconds,
        "checks": [dataclasses.asdict(check) for check in checks(run)],
        "noise": noise,
        "before": run.before and dataclasses.asdict(run.before),
        "after": run.after and dataclasses.asdict(run.after),
        **vars(run.ledger),
        "alarms": alarms(run.log)[:100],
    }


def _alive(run: Run) -> Iterator[Check]:
    died = run.ledger.died
    yield Check("alive at the end", died is None, died or "every question answered")


def _answers(run: Run) -> Iterator[Check]:
    ledger = run.ledger
    total = ledger.requests.total()
    kinds = ", ".join(f"{count} {kind}" for kind, count in ledger.requests.most_common())
    yield Check("requests made", total > 0, kinds or "none")
    yield Check(
        "answers well-formed, wrong requests refused",
        ledger.wrong == 0,
        f"{ledger.wrong} faults; {ledger.refused} refused with a 4xx, {ledger.left} cancelled",
    )


def _tokens(run: Run) -> Iterator[Check]:
    if run.noise is None:
        return
    ledger, noise, tolerance = run.ledger, run.noise, run.noise.tolerance
    rms = math.sqrt(ledger.squares / max(1, ledger.tokens))
    yield Check(
        "quiet server agrees with itself",
        noise.largest <= run.noise_limit,
        f"{noise.tokens:,} tokens, off by {noise.largest:.2g} at most, bound {run.noise_limit:g}; "
        f"root mean square of a request {noise.rms:.2g} at most",
    )
    yield Check(
        "tokens as in a quiet run",
        ledger.unlike == 0 if ledger.tokens else None,
        f"{ledger.tokens:,} compared, {ledger.unlike} answers differ; log-probabilities off by "
        f"{ledger.largest:.2g} at most (noise {noise.largest:.2g}, "
        f"tolerance {tolerance.token:.2g}), by {rms:.2g} in the root mean square (tolerance of an "
        f"answer {tolerance.answer:.2g}); another token ahead by {ledger.lead:.2g} at most",
    )
    yield Check(
        "quiet scores as at the start",
        ledger.drift <= tolerance.token,
        f"moved by {ledger.drift:.2g} at most",
    )


def _cache(run: Run) -> Iterator[Check]:
    ledger = run.ledger
    yield Check(
        "no block or request held after a storm",
        not ledger.held,
        "; ".join(ledger.held[:3]) or f"0 after each of {len(ledger.memory)} rounds",
    )
    if run.before is None or run.after is None:
        return
    yield Check("a request as large as the cache, at the end", True, f"{run.full:,} tokens")
    for name, word in COUNTED:
        count = getattr(run.after, name) - getattr(run.before, name)
        yield Check(word, count > 0, f"{count:,.0f}")


def _memory(run: Run) -> Iterator[Check]:
    samples, grown = run.ledger.memory, growth(run.ledger.memory)
    if not samples:
        return
    figure = f"{samples[0] / MIB:.0f} MiB first, {samples[-1] / MIB:.0f} last"
    if grown is None:
        yield Check("memory flat", None, f"{figure}; needs {FEWEST_SAMPLES} rounds")
    else:
        bound = f"{grown:+.1%} from the second quarter to the last, at most {MEMORY_SHARE:.0%}"
        yield Check("memory flat", grown <= MEMORY_SHARE, f"{figure}; {bound}")


def _log(run: Run) -> Iterator[Check]:
    found = alarms(run.log)
    yield Check("no error in the server's log", not found, found[0][:200] if found else "none")
