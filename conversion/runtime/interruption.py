"""One interruption for Ctrl-C and for signals from outside."""

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Handler of the signals that end the process as Ctrl-C does; remembers if one came.

    A library that is interrupted in a callback can turn the KeyboardInterrupt into an error of its
    own, so an exception does not say why a command ended.

    Attributes:
        came: true once a signal came.
    """

    def __init__(self) -> None:
        self.came = False

    def listen(self) -> None:
        """Handle the signals, except those that the process was started to ignore (nohup)."""
        self.came = False
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.default_int_handler(number, frame)


# A process has one set of signals.
interruption = Interruption()
