"""``vllm serve``, with no option that the checkpoint itself would need."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest

from conversion.bench.server import free_port
from tests.support.engine import (
    LOG_TAIL,
    PROMPT_LENGTHS,
    assert_same_text_in_bfloat16,
    text_logprobs,
)

pytestmark = pytest.mark.slow

# Only a server that hangs takes longer: compiling and warming up take 130 s on two slow cores.
START_TIMEOUT = 600
STOP_TIMEOUT = 30
TEXT = PROMPT_LENGTHS.index(300)


@pytest.fixture(scope="module")
def client(full_width, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("vllm")),
        *("serve", str(full_width), "--host", "127.0.0.1", "--port", str(port)),
        *("--kv-cache-memory-bytes", str(1 << 28), "--max-model-len", "2048"),
    ]
    with log.open("wb") as output:
        # A session of its own, so that the engine's processes can be stopped with the server.
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_until_healthy(server, f"http://127.0.0.1:{port}/health", log)
        with openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120, max_retries=0
        ) as client:
            yield client
    finally:
        stop(server)


def wait_until_healthy(server: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    state = "still starting" if server.poll() is None else f"exit code {server.returncode}"
    pytest.fail(f"server is not healthy ({state}):\n{log.read_text(errors='replace')[-LOG_TAIL:]}")


def stop(server: subprocess.Popen) -> None:
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(STOP_TIMEOUT)
    # Whatever the server has not stopped itself; an empty group is no error.
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(STOP_TIMEOUT)


@pytest.fixture(scope="module")
def model(client) -> str:
    return client.models.list().data[0].id


def test_chat_completion(client, model):
    # Each token of the answer leads the next best by 2 or more: no tie that bfloat16 could turn.
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the chemical symbol for water?"}],
        temperature=0,
        max_tokens=24,
    )
    assert "H2O" in answer.choices[0].message.content


def test_completion(client, model):
    answer = client.completions.create(
        model=model, prompt="The capital of France is", temperature=0, max_tokens=8
    )
    assert answer.choices[0].text.startswith(" Paris")


def test_log_probabilities_are_the_originals(client, model, original, prompts):
    answer = client.completions.create(
        model=model, prompt=prompts[TEXT], temperature=0, max_tokens=1, echo=True, logprobs=0
    )
    logprobs = answer.choices[0].logprobs.token_logprobs[1 : PROMPT_LENGTHS[TEXT]]
    # vLLM serves a float32 checkpoint in bfloat16 unless it is told otherwise.
    assert_same_text_in_bfloat16(logprobs, text_logprobs(original, prompts[TEXT]))
