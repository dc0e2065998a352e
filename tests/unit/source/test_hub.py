"""Models of the hub: what is downloaded, and one line for each reason why nothing is."""

import json
import shutil
import socket
import time

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from conversion.errors import SourceError
from conversion.source import open_source
from tests.support.hub import running
from tests.support.tiny import save_tiny

NAME = "some-org/Tiny-1.5B"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of our own, with one model, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running() as hub:
        endpoint(monkeypatch, hub.url)
        hub.repositories[NAME] = save_tiny(tmp_path / "repository", shard_size="60KB")
        yield hub


def refused(name):
    """The one line, which must come at once."""
    start = time.monotonic()
    with pytest.raises(SourceError) as error:
        open_source(name)
    assert time.monotonic() - start < 5
    line = str(error.value)
    assert "\n" not in line
    return line


def test_a_hub_model_is_downloaded_without_what_is_not_read(hub):
    repository = hub.repositories[NAME]
    (repository / "pytorch_model-00001-of-00001.bin").write_bytes(b"pickle")
    (repository / "pytorch_model.bin.index.json").write_text("{}")
    (repository / "consolidated.safetensors").write_bytes(b"the same once more")
    (repository / "additional_chat_templates").mkdir()
    (repository / "additional_chat_templates/rag.jinja").write_text("x")
    (repository / "original").mkdir()
    (repository / "original/params.json").write_text("{}")
    source = open_source(NAME)
    assert source.name == NAME
    wanted = {
        path.name
        for path in repository.iterdir()
        if "model-0000" in path.name and path.suffix == ".safetensors"
    }
    assert len(wanted) > 1
    assert hub.downloaded() == wanted | {
        "additional_chat_templates/rag.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    shard = source.tensors["model.norm.weight"].shard
    expected = load_file(repository / shard)["model.norm.weight"]
    assert torch.equal(source.tensor("model.norm.weight"), expected)
    assert len(source.tokenizer()) == 256


def test_a_model_in_one_file(hub, tmp_path):
    hub.repositories["other/one-file"] = save_tiny(tmp_path / "single")
    open_source("other/one-file")
    assert "model.safetensors" in hub.downloaded()


def test_what_was_downloaded_serves_without_a_network(hub, monkeypatch):
    open_source(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_source(NAME).name == NAME
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint(monkeypatch, nobody())
    assert open_source(NAME).name == NAME


def test_a_folder_comes_before_the_hub(hub):
    shutil.copytree(hub.repositories[NAME], NAME)
    open_source(NAME)
    assert not hub.requested


def test_weights_of_a_model_that_is_refused_are_not_downloaded(hub):
    path = hub.repositories[NAME] / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    assert "AWQ-quantised" in refused(NAME)
    assert "config.json" in hub.downloaded()
    assert not any(name.endswith(".safetensors") for name in hub.downloaded())


def test_without_a_network(hub, monkeypatch):
    endpoint(monkeypatch, nobody())
    line = refused(NAME)
    assert "no such file or folder" in line
    assert "cannot be reached" in line
    assert f"hf download {NAME} --local-dir Tiny-1.5B" in line


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("conversion.source.hub.TIMEOUT", 0.5)
        assert "cannot be reached" in refused(NAME)


def test_offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refused(NAME)
    assert "HF_HUB_OFFLINE" in line
    assert f"hf download {NAME} --local-dir Tiny-1.5B" in line
    assert not hub.requested


def test_a_name_that_nothing_has(hub):
    line = refused("modles/llama")
    assert "no such file or folder, and no such model at http" in line
    assert "hf auth login" in line


def test_a_gated_model(hub):
    hub.gated.add(NAME)
    assert f"gated; accept its terms at {hub.url}/{NAME}" in refused(NAME)


def test_a_name_below_a_folder_that_exists_is_a_path(hub, tmp_path):
    (tmp_path / "models/llama").mkdir(parents=True)
    line = refused("models/lama")
    assert "the folder models holds no lama" in line
    assert "hf download models/lama" in line
    assert not hub.requested


@pytest.mark.parametrize("name", ["./models/lama", "a/b/c", "lama", "org/x.gguf"])
def test_a_path_with_a_mistake_is_not_looked_for_at_the_hub(hub, tmp_path, name):
    (tmp_path / "models/llama").mkdir(parents=True)
    assert "no such file or folder" in refused(name)
    assert not hub.requested


def test_a_model_without_safetensors(hub, tmp_path):
    folder = save_tiny(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.repositories["other/pickled"] = folder
    assert "only safetensors weights are read" in refused("other/pickled")


def endpoint(monkeypatch, url):
    """The effect of HF_ENDPOINT, which is read when huggingface_hub is imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def nobody():
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}"
