import os
import signal

import pytest

from conversion import cli


@pytest.fixture
def restored():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # A test run in the background of a shell, or by nohup, ignores some of them.
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_error_made_of_an_interruption_is_one(monkeypatch, capsys, restored, number):
    # torch does so where it is hit while it converts a storage.
    def interrupted():
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise ValueError("could not convert a storage") from None

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == cli.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_an_error_without_an_interruption_stays_one(monkeypatch, restored):
    def fails():
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(ValueError, match="a bug"):
        cli.main()


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch, restored):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(cli, "app", lambda: os.kill(os.getpid(), signal.SIGHUP))
    cli.main()
