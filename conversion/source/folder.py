"""Hugging Face folders with safetensors, single or sharded."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from conversion.errors import SourceError, first_line
from conversion.families import FAMILIES
from conversion.source.assets import check_assets, copy_assets
from conversion.source.checkpoint import (
    CONFIG_ERRORS,
    SourceCheckpoint,
    check_keys,
    with_head_dim,
)
from conversion.source.fingerprint import ends_and_pieces
from conversion.source.kinds import check_has_config
from conversion.source.plain_files import check_plain_files
from conversion.source.quantised import (
    dequantised_dtype,
    quantisation,
    quantised_weights,
    refusal,
)
from conversion.source.scaled import ScaledWeight
from conversion.source.stored import StoredTensors
from conversion.source.tensor_info import ALL_ROWS, TensorInfo
from conversion.source.weight_files import weight_files

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Of a generation config that is made of a config without sampling.
ANY_CONFIGS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
    *("_from_model_config", "transformers_version"),
}
# Of every transformers model that the converter knows: the decoder within the language model.
DECODER = "model."


class FolderCheckpoint(SourceCheckpoint):
    """A folder with ``config.json`` and safetensors.

    Raises:
        SourceError: the config or a shard is missing or unreadable.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or str(folder)
        self.config = read_config(folder, self.name)
        files, promised = weight_files(folder, self.config, self.name)
        # The converted model's weights have the usual names.
        vars(self.config).pop("transformers_weights", None)
        self._stored = StoredTensors(folder, files, promised, self.name)
        infos, self._scaled = dict(self._stored.infos), dict[str, ScaledWeight]()
        settings = quantisation(self.config)
        if settings is not None and refusal(settings) is None:
            infos = self._dequantise(settings)
        self._keys = own_names(infos, self._head(), self.name)
        self.tensors = {own: infos[key] for own, key in self._keys.items()}
        self._untie()

    def _dequantise(self, settings: Mapping[str, Any]) -> dict[str, TensorInfo]:
        """Read the checkpoint from now on as the one that it was quantised from."""
        stored = self._stored
        self._scaled, used = quantised_weights(settings, stored.infos, stored.read, self.name)
        dtype = dequantised_dtype(self.config)
        infos = {key: info for key, info in stored.infos.items() if key not in used}
        for key, weight in self._scaled.items():
            infos[key] = TensorInfo(weight.shape, dtype, stored.infos[weight.values].shard)
        logger.info(
            "%s is %s-quantised: %d matrices are dequantised to %s as they are read",
            *(self.name, settings["quant_method"], len(self._scaled)),
            str(dtype).removeprefix("torch."),
        )
        for key in ("quantization_config", "compression_config"):
            vars(self.config).pop(key, None)
        return infos

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor:
        """One tensor, or some of its rows, from its shard, dequantised."""
        key = self._keys[name]
        scaled = self._scaled.get(key)
        if scaled is not None:
            return scaled.read(self._stored.read, rows, self.tensors[name].dtype)
        return self._stored.read(key, rows)

    def _head(self) -> str | None:
        family = FAMILIES.get(self.config.model_type)
        return family.head if family else None

    def _untie(self) -> None:
        """Believe a stored head that is not the embedding, as transformers does.

        vLLM would take the embedding. Here the config says from now on that they are two.
        """
        family = FAMILIES.get(self.config.model_type)
        if family is None or not self.config.tie_word_embeddings:
            return
        head, embedding = self.tensors.get(family.head), self.tensors.get(family.embedding)
        if head is None or embedding is None or head.shape != embedding.shape:
            return
        pairs = zip(self.pieces(family.head), self.pieces(family.embedding), strict=False)
        if head.dtype != embedding.dtype or not all(torch.equal(one, two) for one, two in pairs):
            logger.info(
                "%s holds a head of its own, although config.json ties it to the embedding; it is "
                "used, as transformers does",
                self.name,
            )
            self.config.tie_word_embeddings = False

    def fingerprint(self) -> str:
        """SHA-256 over config, and sizes and parts of shards."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for shard in sorted({info.shard for info in self._stored.infos.values()}):
            path = self.folder / shard
            digest.update(f"{shard}:{path.stat().st_size}".encode())
            digest.update(ends_and_pieces(path))
        return digest.hexdigest()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer."""
        try:
            # Left unsaid, transformers asks whether to run a folder's code.
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.folder, trust_remote_code=False
            )
        except Exception as error:  # The package tokenizers raises nothing more special.
            found = any((self.folder / file).is_file() for file in TOKENIZER_FILES)
            trouble = f"no usable tokenizer ({first_line(error)})" if found else "no tokenizer"
            raise SourceError(
                f"{self.name}: {trouble}; copy tokenizer.json and tokenizer_config.json of the "
                f"original model into {self.folder}"
            ) from error
        return tokenizer

    def check_assets(self) -> None:
        """Refuse links out of the folder among the files that are copied."""
        check_assets(self.folder)

    def write_assets(self, folder: Path) -> None:
        """Copy every file that belongs to the model and is not made anew, byte for byte.

        Old models have their sampling in ``config.json``, where transformers no longer saves it.
        """
        copy_assets(self.folder, folder)
        written = folder / GENERATION_CONFIG_NAME
        if written.exists():
            return
        try:
            sampling = GenerationConfig.from_pretrained(
                self.folder, config_file_name="config.json", _from_model_config=True
            )
        except CONFIG_ERRORS as error:
            raise SourceError(
                f"{self.name}: the sampling in config.json cannot be read ({first_line(error)}); "
                "take it out"
            ) from error
        if sampling.to_diff_dict().keys() - ANY_CONFIGS:
            written.write_text(sampling.to_json_string(), "utf-8")


def own_names(keys: Iterable[str], head: str | None, name: str) -> dict[str, str]:
    """Stored names by those of the language model.

    A decoder that was saved alone has names without ``model.``; one that was saved within something
    else has it twice. transformers loads both.

    Args:
        keys: the stored names.
        head: name of the language-model head; ``None`` for a family that nobody knows.
        name: how the user named the folder.

    Raises:
        SourceError: two tensors would have one name.
    """
    if head is None:
        return {key: key for key in keys}
    whole = any(key.startswith(DECODER) for key in keys)

    def own(key: str) -> str:
        if key.startswith(DECODER * 2) or key == DECODER + head:
            return key.removeprefix(DECODER)
        return key if whole or key == head else DECODER + key

    owned: dict[str, str] = {}
    for key in keys:
        other = owned.setdefault(own(key), key)
        if other != key:
            raise SourceError(
                f"{name}: {other} and {key} are two tensors for one place in the model; download "
                "the model again"
            )
    return owned


def read_config(folder: Path, name: str) -> Any:
    """The config of a model folder.

    Raises:
        SourceError: there is none, or transformers cannot read it.
    """
    check_plain_files(folder, name)
    check_has_config(folder, name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_keys(config)
        with_head_dim(config)
    except CONFIG_ERRORS as error:
        raise SourceError(
            f"{name}: config.json cannot be read ({first_line(error)}); give a decoder model "
            "that this transformers release knows"
        ) from error
    try:
        GenerationConfig.from_pretrained(folder)
    except OSError:
        # Without one, or with one that is no JSON, transformers does without.
        pass
    except CONFIG_ERRORS as error:
        raise SourceError(
            f"{name}: {GENERATION_CONFIG_NAME} cannot be read ({first_line(error)}); download the "
            "model again"
        ) from error
    return config
