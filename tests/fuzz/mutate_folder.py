"""Files that are no files, links that lead out, pickles and code beside the weights."""

import json
import os
import pickle
import shutil
from pathlib import Path
from random import Random

from tests.fuzz.safetensors_bytes import join, split
from tests.support.tiny import TEXT

GIB = 1 << 30


class Evil:
    """A pickle that writes a file when it is loaded."""

    def __reduce__(self) -> tuple:
        return (os.mkdir, ("outside/pickle-was-run",))


def plant(case: Path) -> None:
    """Put beside the model what must never be read, written or run."""
    outside = case / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("a secret of the user")
    (outside / "other.safetensors").write_bytes(join({}, b""))
    (case / "out").mkdir()
    (case / "text.txt").write_text(TEXT)


def damage(rng: Random, folder: Path) -> str:
    """Do one hostile thing to a folder."""
    return rng.choice(WAYS)(rng, folder)


def _one(rng: Random, folder: Path, pattern: str = "*") -> Path:
    files = sorted(p for p in folder.glob(pattern) if p.is_file())
    return rng.choice(files) if files else folder / "config.json"


def _remove(rng: Random, folder: Path) -> str:
    path = _one(rng, folder)
    path.unlink(missing_ok=True)
    return f"no {path.name}"


def _gigabytes(rng: Random, folder: Path) -> str:
    path = _one(rng, folder, rng.choice(("*.json", "config.json", "*")))
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(rng.choice((1, 4, 1024)) * GIB)
    return f"{path.name}: of {path.stat().st_size >> 30} GiB"


def _fifo(rng: Random, folder: Path) -> str:
    path = _one(rng, folder)
    if rng.random() < 0.3:
        path = folder / rng.choice(("LICENSE", "chat_template.jinja", "generation_config.json"))
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return f"{path.name}: a FIFO"


def _directory(rng: Random, folder: Path) -> str:
    path = _one(rng, folder)
    path.unlink(missing_ok=True)
    path.mkdir()
    return f"{path.name}: a folder"


def _device(rng: Random, folder: Path) -> str:
    path = _one(rng, folder)
    path.unlink(missing_ok=True)
    path.symlink_to(rng.choice(("/dev/zero", "/dev/random", "/dev/null", "/proc/self/mem")))
    return f"{path.name}: a link to {path.readlink()}"


def _link_out(rng: Random, folder: Path) -> str:
    path = folder / rng.choice(("LICENSE", "notes.txt", "chat_template.jinja", "x.json"))
    path.unlink(missing_ok=True)
    path.symlink_to(rng.choice(("../outside/secret.txt", folder.parent / "outside/secret.txt")))
    return f"{path.name}: a link out of the folder"


def _blobs(rng: Random, folder: Path) -> str:
    """Make of the folder what the hub's cache has: links to blobs."""
    cache = folder.parent / "cache"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    for at, path in enumerate(sorted(p for p in snapshot.iterdir() if p.is_file())):
        blob = cache / "blobs" / f"{at:040x}"
        path.rename(blob)
        path.symlink_to(f"../../blobs/{blob.name}")
    folder.symlink_to(snapshot)
    return "links to blobs, as in the hub's cache"


def _loop(rng: Random, folder: Path) -> str:
    path = _one(rng, folder)
    path.unlink(missing_ok=True)
    path.symlink_to(rng.choice((path.name, "nothing", "..", "../outside")))
    return f"{path.name}: a link to {path.readlink()}"


def _templates(rng: Random, folder: Path) -> str:
    path = folder / rng.choice(("additional_chat_templates", "chat_templates"))
    way = rng.randrange(4)
    if way == 0:
        path.symlink_to("../outside")
    elif way == 1:
        path.mkdir(exist_ok=True)
        (path / "x.jinja").symlink_to("../../outside/secret.txt")
    elif way == 2:
        path.mkdir(exist_ok=True)
        os.mkfifo(path / "x.jinja")
    else:
        path.write_text("a file")
    return f"{path.name}: hostile ({way})"


def _pickle(rng: Random, folder: Path) -> str:
    name = rng.choice(
        ("pytorch_model.bin", "model.safetensors", "adapter_model.bin", "training_args.bin")
    )
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(pickle.dumps(Evil()))
    if name == "pytorch_model.bin" and rng.random() < 0.6:
        for path in folder.glob("*.safetensors*"):
            path.unlink()
    return f"{name}: a hostile pickle"


def _code(rng: Random, folder: Path) -> str:
    code = "import os\nos.mkdir('outside/code-was-run')\nclass X: pass\n"
    for name in ("evil.py", "modeling_evil.py", "modeling_mha2mla.py", "tokenization_evil.py"):
        (folder / name).write_text(code)
    path = folder / rng.choice(("config.json", "tokenizer_config.json"))
    try:
        values = json.loads(path.read_text("utf-8"))
        values["auto_map"] = {
            "AutoConfig": "evil.X",
            "AutoModelForCausalLM": "evil.X",
            "AutoTokenizer": ["evil.X", "evil.X"],
        }
        if rng.random() < 0.5:
            values["tokenizer_class" if "tokenizer" in path.name else "model_type"] = "evil"
        path.write_text(json.dumps(values))
    except (ValueError, TypeError, OSError, RecursionError):
        pass
    return f"{path.name}: names code of the folder"


def _adapter(rng: Random, folder: Path) -> str:
    text = rng.choice(('{"base_model_name_or_path": "a/b"}', "{", "[]", '"x"', "[" * 100_000))
    (folder / "adapter_config.json").write_text(text)
    return f"adapter_config.json: {text[:20]}"


def _other_weights(rng: Random, folder: Path) -> str:
    """Other weights of the same model beside those that count."""
    path = _one(rng, folder, "*.safetensors")
    name = rng.choice(
        ("consolidated.safetensors", "model.fp16.safetensors", "model.safetensors", "x.gguf")
    )
    try:
        header, data = split(path.read_bytes())
        (folder / name).write_bytes(join(header, data[::-1]))
    except (ValueError, OSError):
        shutil.copyfile(path, folder / name)
    return f"{name}: other weights"


def _tokenizer(rng: Random, folder: Path) -> str:
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")
    path = folder / rng.choice((*names, "generation_config.json", "added_tokens.json"))
    text = rng.choice(
        (
            *("{}", "[]", "{", "", "null", '{"model": {"type": "BPE", "vocab": {"a": -1}}}'),
            *('{"bos_token": 3}', '{"chat_template": "{{ 1/0 }}"}', '{"chat_template": [[]]}'),
            *(
                '{"eos_token_id": "x"}',
                '{"temperature": -1}',
                '{"tokenizer_class": "LlamaTokenizer"}',
            ),
            *('{"added_tokens_decoder": {"x": 3}}', '{"model_max_length": "x"}', "[" * 100_000),
        )
    )
    path.write_text(text)
    return f"{path.name}: {text[:60]!r}"


WAYS = (
    *(_remove, _gigabytes, _fifo, _directory, _device, _link_out, _blobs, _loop, _templates),
    *(_pickle, _code, _adapter, _other_weights, _tokenizer, _tokenizer),
)
