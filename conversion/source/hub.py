"""Models of the Hugging Face hub: downloaded into its cache, without what the converter ignores."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from conversion.errors import SourceError, first_line
from conversion.source.assets import TEMPLATES
from conversion.source.weight_files import INDEX, SINGLE, read_index

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Everything that is no weights: config, tokenizer, chat template, licence.
ASSETS = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*"]
# Other folders of a repository hold the same model in other formats.
IGNORED = ["*/*", "pytorch_model*", "tf_model*", "flax_model*"]
# Seconds until the hub must have answered. Without a limit, a lost connection takes minutes.
TIMEOUT = 10


def looks_like_hub_id(name: str) -> bool:
    """Tell whether a name can be that of a model of the hub, ``organisation/name``."""
    return HUB_ID.fullmatch(name) is not None and not name.endswith(".gguf")


def hub_folder(name: str, check: Callable[[Path], None]) -> Path:
    """The folder of a hub model in the hub's cache; what is missing there is downloaded.

    Args:
        name: the model, ``organisation/name``.
        check: called with the folder when it holds everything but the weights, to refuse a model
            before its weights are downloaded.

    Raises:
        SourceError: the hub does not have it, does not give it, or cannot be reached.
    """
    unreachable = _why_unreachable(name)
    folder = _snapshot(name, unreachable, ASSETS)
    check(folder)
    _snapshot(name, unreachable, [f"{TEMPLATES}/*.jinja"], ignored=[])
    return _snapshot(name, unreachable, [*ASSETS, *_shards(folder, name)])


def _why_unreachable(name: str) -> str | None:
    """The reason why only the hub's cache can be used; ``None``: the hub has the model."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        HfApi().model_info(name, timeout=TIMEOUT)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise _refusal(name, error) from error
    except Exception as error:  # Releases of the hub's client differ in their HTTP library.
        return f"{constants.ENDPOINT} cannot be reached ({first_line(error)})"
    return None


def _snapshot(
    name: str, unreachable: str | None, files: list[str], ignored: list[str] = IGNORED
) -> Path:
    try:
        folder = snapshot_download(
            name,
            allow_patterns=files,
            ignore_patterns=ignored,
            local_files_only=unreachable is not None,
            etag_timeout=TIMEOUT,
        )
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise _refusal(name, error) from error
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"{name}: no such file or folder; as a model of the hub it is not in the cache, and "
            f"{unreachable or first_line(error)}; check the path, or where there is a network: "
            f"hf download {name} --local-dir {Path(name).name}"
        ) from error
    except OSError as error:
        raise SourceError(f"{name}: cannot be downloaded ({first_line(error)})") from error
    return Path(folder)


def _shards(folder: Path, name: str) -> list[str]:
    """The names of the weight files that a model's index names."""
    if not (folder / INDEX).is_file():
        return [SINGLE]
    try:
        # Where there is one file beside them, opening the folder refuses both.
        return [SINGLE, *sorted(set(read_index(folder / INDEX, name).values()))]
    except SourceError:
        # Opening the folder says what is wrong with the index.
        return []


def _refusal(name: str, error: Exception) -> SourceError:
    if isinstance(error, GatedRepoError):
        return SourceError(
            f"{name}: gated; accept its terms at {constants.ENDPOINT}/{name} and sign in with: "
            "hf auth login"
        )
    return SourceError(
        f"{name}: no such file or folder, and no such model at {constants.ENDPOINT}; check the "
        "name or, if the model is private, sign in with: hf auth login"
    )
