"""``make abuse`` against a server that is right, and others that are wrong in one thing each."""

import asyncio
import importlib
import json
import os
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from conversion.bench.server import free_port
from tests.support.abused_server import AbusedServer

EXAMPLES = str(Path(__file__).parents[3] / "examples")
KINDS = ("greedy", "as long as may be", "shared prefix", "prompt scored", "wrong", "cancelled")
TEXT = "The quick brown fox jumps over the lazy dog. " * 30


@pytest.fixture
def verdict(monkeypatch, tmp_path):
    """Abuse a server with a fault; return the names of the checks that failed."""
    monkeypatch.syspath_prepend(EXAMPLES)
    rounds, run, watch, report = (
        importlib.import_module(f"abuse.{name}") for name in ("rounds", "run", "watch", "report")
    )

    async def abused(server, log):
        runner = web.AppRunner(server.app())
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        memory = psutil.Process(os.getpid()).memory_info
        watched = watch.Server(f"http://127.0.0.1:{port}", log, lambda: memory().rss, lambda: None)
        options = run.Options(
            seed=3,
            minutes=5,
            clients=8,
            round_seconds=60,
            requests=40,
            kinds=KINDS,
            pause=0.01,
            patience=0.5,
        )
        try:
            return await rounds.abuse(watched, TEXT, options, lambda line: None)
        finally:
            await runner.cleanup()

    def judge(fault=None, log_text="INFO all is well\n"):
        log = tmp_path / "log"
        log.write_text(log_text)
        found = asyncio.run(abused(AbusedServer(fault), log))
        failed = {check.name for check in report.checks(found) if check.ok is False}
        assert report.passed(found) == (not failed)
        return failed, found, report

    return judge


def test_a_right_server_passes(verdict):
    failed, run, report = verdict()
    assert failed == set(), run.ledger.findings[:3]
    assert run.ledger.tokens > 100
    assert run.ledger.left > 0
    assert run.ledger.refused > 0
    assert run.ledger.requests.keys() <= set(KINDS)
    written = json.loads(json.dumps(report.as_json(run, run_options(), {"folder": "x"})))
    assert written["passed"] is True
    assert written["settings"]["seed"] == 3
    assert written["requests"] == run.ledger.requests


def run_options():
    run = importlib.import_module("abuse.run")
    return run.Options(seed=3, minutes=1, clients=1, round_seconds=1)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("token", "tokens as in a quiet run"),
        ("logprob", "tokens as in a quiet run"),
        ("drift", "quiet scores as at the start"),
        ("short", "answers well-formed, wrong requests refused"),
        ("refusal", "answers well-formed, wrong requests refused"),
        ("crash", "answers well-formed, wrong requests refused"),
        ("leak", "no block or request held after a storm"),
    ],
)
def test_a_wrong_server_is_caught(verdict, fault, check):
    failed, run, _ = verdict(fault)
    assert check in failed
    if fault in ("token", "logprob"):
        finding = run.ledger.findings[0]
        assert finding["body"]["prompt"]
        assert len(finding["quiet_first_choices"]) == len(finding["tokens"]) - finding["start"]


def test_an_error_in_the_log_fails(verdict):
    failed, _, _ = verdict(log_text="ERROR 11-28 something broke\n")
    assert failed == {"no error in the server's log"}
