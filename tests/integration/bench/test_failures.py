"""``mha2mla bench`` when vLLM does not do its part: an error with its log, nothing left running.

The processes are real; what stands in for ``vllm`` is a script that fails as vLLM can.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("prometheus_client")

from conversion.bench import compare
from conversion.bench import drive as load
from conversion.bench import server as serving
from conversion.bench.server import serve
from conversion.errors import ServerError
from tests.support.bench import METRICS
from tests.support.tiny import save_tiny
from tests.support.tiny_converted import save_tiny_converted

# Starts a child, as vLLM does, ignores SIGTERM, as a busy start can, and never listens.
STUCK = """#!{python}
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
print("pids", child.pid, flush=True)
time.sleep(600)
"""
DYING = """#!{python}
import sys
for number in range(100):
    print("line", number)
sys.exit("RuntimeError: Engine core initialization failed")
"""
# Ready at once, with one request under way for ever or until it ends; ``vllm bench serve`` waits.
SERVING = '''#!{python}
import http.server, os, sys, threading, time
if sys.argv[1] == "bench":
    time.sleep(600)
if {lifetime}:
    threading.Timer({lifetime}, lambda: (print("EngineDeadError", flush=True), os._exit(1))).start()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"""{metrics}""" if self.path == "/metrics" else b"")
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''


@pytest.fixture
def stub(tmp_path, monkeypatch):
    def make(text):
        path = tmp_path / "vllm"
        path.write_text(text.replace("{python}", sys.executable))
        path.chmod(0o755)
        monkeypatch.setattr(serving, "vllm_command", lambda: [str(path)])
        return path

    return make


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def child_of(log):
    return int(log.read_text().split()[1])


def test_a_dying_server_is_reported_with_the_end_of_its_log(stub, tmp_path):
    stub(DYING)
    with (
        pytest.raises(ServerError, match="ended with code 1") as failure,
        serve(tmp_path, tmp_path / "log", timeout=60),
    ):
        pytest.fail("it is not ready")
    assert failure.value.tail.endswith("RuntimeError: Engine core initialization failed")
    assert "line 99" in failure.value.tail
    assert "line 1\n" not in failure.value.tail


def test_a_server_that_does_not_become_ready_is_stopped(stub, tmp_path, monkeypatch):
    stub(STUCK)
    monkeypatch.setattr(serving, "STOP_STEPS", ((signal.SIGTERM, 0.5), (signal.SIGKILL, 10.0)))
    log = tmp_path / "log"
    with (
        pytest.raises(ServerError, match="not ready after 2 s"),
        serve(tmp_path, log, timeout=2),
    ):
        pytest.fail("it is not ready")
    assert wait_for(lambda: not alive(child_of(log)))


@pytest.mark.parametrize(
    ("lifetime", "stall", "message"),
    [(2, 600.0, "ended with code 1"), (None, 1.0, "no token for 1 s")],
)
def test_a_server_that_dies_or_stalls_under_load(
    stub, tmp_path, monkeypatch, lifetime, stall, message
):
    stub(SERVING.replace("{lifetime}", str(lifetime)).replace("{metrics}", METRICS))
    monkeypatch.setattr(load, "vllm_command", serving.vllm_command)
    monkeypatch.setattr(load, "STALL_SECONDS", stall)
    asked = load.Load(input_len=32, output_len=16, max_concurrency=4, num_prompts=4, seed=0)
    with (
        pytest.raises(ServerError, match=message) as failure,
        serve(tmp_path, tmp_path / "log", timeout=60) as server,
    ):
        load.drive(server, tmp_path, asked, tmp_path)
    if lifetime:
        assert "EngineDeadError" in failure.value.tail


def test_a_cache_that_vllm_has_not_on_a_cpu_is_refused_first(mha2mla, monkeypatch):
    monkeypatch.setattr(compare, "gpus", list)
    code, _, error = mha2mla(
        "bench", "nowhere", "--baseline", "nowhere",
        "--baseline-kv-cache-dtype", "fp8,int4_per_token_head",
    )  # fmt: skip
    assert code == 2
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: --baseline-kv-cache-dtype int4_per_token_head: vLLM on a CPU")


def hear_signals():
    """A test run in the background or under nohup ignores them, and so would its children."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interruption_stops_the_servers(stub, tmp_path, number):
    script = stub(STUCK)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    source, converted = save_tiny(tmp_path / "source"), save_tiny_converted(tmp_path / "converted")
    program = f"""
import signal
from conversion.bench import server
server.vllm_command = lambda: [{str(script)!r}]
server.STOP_STEPS = ((signal.SIGTERM, 0.5), (signal.SIGKILL, 10.0))
from conversion.cli import main
main()
"""
    command = [
        sys.executable, "-c", program, "bench", str(converted), "--baseline", str(source),
        "--input-len", "32", "--output-len", "16",
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(scratch)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=hear_signals
    ) as bench:
        said_something = wait_for(
            lambda: [log for log in scratch.glob("*/original.log") if log.stat().st_size], 300
        )
        assert said_something, "no server was started"
        log = said_something[0]
        child = child_of(log)
        bench.send_signal(number)
        try:
            _, said = bench.communicate(timeout=60)
        finally:
            bench.kill()
    assert bench.returncode == 130, said
    assert "Traceback" not in said
    assert wait_for(lambda: not alive(child))
    assert not list(scratch.iterdir())
