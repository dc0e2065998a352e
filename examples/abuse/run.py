"""The settings of a run, and all that it leaves."""

from dataclasses import dataclass, field

from abuse.ledger import Ledger
from abuse.noise import FLOAT32_FLOOR, Noise
from abuse.watch import SETTLE_SECONDS, State


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


@dataclass
class Run:
    """A run, filled as it goes.

    Attributes:
        noise_limit: the most that the noise may be.
        ledger: what it found.
        noise: of the quiet server; None until it is measured.
        before, after: the server's counters; None until then.
        full: tokens of the request that filled the whole cache at the end; None until then.
        log: all that the server wrote, once the run is over.
        seconds: of storms alone.
    """

    noise_limit: float
    ledger: Ledger = field(default_factory=Ledger)
    noise: Noise | None = None
    before: State | None = None
    after: State | None = None
    full: int | None = None
    log: str = ""
    seconds: float = 0.0
