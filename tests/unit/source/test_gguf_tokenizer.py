"""A GGUF file's tokenizer, chat templates, end tokens and sampling."""

import json

import pytest
from transformers import AutoTokenizer, GenerationConfig

from conversion.errors import SourceError
from conversion.source import open_source
from tests.support.gguf import VOCABULARY, byte_vocabulary, gguf_tensors, write_gguf
from tests.support.tiny import tiny_llama

IM_END, EOT, EOM, BOS = range(257, 261)


@pytest.fixture
def assets(tmp_path):
    """The folder that a file's assets are written to."""

    def write(**metadata):
        original = tiny_llama(vocab_size=VOCABULARY)
        metadata = {f"tokenizer.{key}": value for key, value in metadata.items()}
        sampling = {k.removeprefix("tokenizer."): v for k, v in metadata.items() if "sampling" in k}
        path = write_gguf(
            tmp_path / "model.gguf",
            gguf_tensors(original),
            original.config,
            {k: v for k, v in metadata.items() if "sampling" not in k} | sampling,
        )
        source = open_source(str(path))
        folder = tmp_path / "assets"
        folder.mkdir()
        source.write_assets(folder)
        return source, folder

    return write


def test_every_end_token(assets):
    source, folder = assets(
        **{"ggml.eos_token_id": EOM, "ggml.eot_token_id": EOT, "ggml.eom_token_id": EOM}
    )
    # By its spelling llama.cpp takes <|im_end|> for an end, too.
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [EOM, EOT, IM_END]
    assert source.config.eos_token_id == [EOM, EOT, IM_END]
    assert source.tokenizer().eos_token_id == EOM


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("text", ["<|end_of_text|>", "<EOT>", "<end_of_utterance>"])
def test_an_end_token_by_its_spelling_whatever_its_type(tmp_path, text, kind):
    tokens, types, merges = byte_vocabulary()
    original = tiny_llama(vocab_size=VOCABULARY)
    path = write_gguf(
        tmp_path / "m.gguf",
        gguf_tensors(original),
        original.config,
        {"tokenizer.ggml.eos_token_id": IM_END},
        vocabulary=([*tokens[:-1], text], [*types[:-1], kind], merges),
    )
    assert open_source(str(path)).config.eos_token_id == [IM_END, BOS]


def test_end_tokens_in_a_list(assets):
    source, _ = assets(**{"ggml.eos_token_id": EOM, "ggml.eos_token_ids": [EOM, 65]})
    assert source.config.eos_token_id == [EOM, 65, IM_END]


def test_the_end_of_what_is_filled_in(assets):
    source, _ = assets(**{"ggml.eos_token_id": IM_END, "ggml.fim_pad_token_id": 65})
    assert source.config.eos_token_id == [IM_END, 65]


def test_one_end_token(assets):
    _, folder = assets(**{"ggml.eos_token_id": IM_END, "ggml.bos_token_id": BOS})
    found = json.loads((folder / "generation_config.json").read_text())
    assert (found["eos_token_id"], found["bos_token_id"]) == (IM_END, BOS)


def test_the_sampling_that_the_file_recommends(assets):
    _, folder = assets(**{"general.sampling.temp": 0.5, "general.sampling.top_k": 7})
    found = GenerationConfig.from_pretrained(folder)
    assert (found.do_sample, found.temperature, found.top_k) == (True, 0.5, 7)


def test_tokens_that_are_never_sampled(assets):
    _, folder = assets(**{"ggml.suppress_tokens": [7, 9]})
    assert GenerationConfig.from_pretrained(folder).suppress_tokens == [7, 9]


def test_sampling_that_has_no_counterpart_is_said(assets, caplog):
    assets(**{"general.sampling.mirostat": 2, "general.sampling.penalty_last_n": 64})
    assert "general.sampling.mirostat, general.sampling.penalty_last_n" in caplog.text


def ids(folder, text):
    return AutoTokenizer.from_pretrained(folder)(text).input_ids


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, [64, 256]),
        ({"ggml.add_bos_token": True}, [BOS, 64, 256]),
        ({"ggml.add_bos_token": True, "ggml.add_eos_token": True}, [BOS, 64, 256, EOT]),
        # llama.cpp begins the texts of Llama 3 with BOS, unless the file says otherwise.
        ({"ggml.pre": "llama-bpe"}, [BOS, 64, 256]),
        ({"ggml.pre": "llama-bpe", "ggml.add_bos_token": False}, [64, 256]),
    ],
    ids=str,
)
def test_tokens_around_a_text(assets, metadata, expected):
    source, folder = assets(**metadata | {"ggml.bos_token_id": BOS, "ggml.eos_token_id": EOT})
    assert source.tokenizer()("a t").input_ids == expected
    assert ids(folder, "a t") == expected


def test_the_vocabulary_is_the_files(assets):
    source, folder = assets(**{"ggml.eos_token_id": EOT})
    assert len(source.tokenizer()) == VOCABULARY
    assert max(ids(folder, "an <|endoftext|><|eot|>")) == EOT


@pytest.mark.parametrize(("pre", "spaces"), [("gpt-2", 2), ("smollm", 1), ("refact", 1)])
def test_digits_are_split_off_first(assets, pre, spaces):
    # GPT-2 leaves the second space to the number, as the byte Ġ; here nothing merges with it.
    source, _ = assets(**{"ggml.pre": pre})
    backend = source.tokenizer().backend_tokenizer
    assert len(backend.pre_tokenizer.pre_tokenize_str("a  12")) == {2: 3, 1: 4}[spaces]


@pytest.mark.parametrize("pre", [None, "default", "deepseek-llm"])
def test_a_split_of_text_that_nobody_knows(assets, pre):
    with pytest.raises(SourceError, match=r"tokenizer\.ggml\.pre .* is not known"):
        assets(**{"ggml.pre": pre})


SENTENCEPIECE = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "▁a"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, ["<s>", "▁a"]),
        ({"ggml.add_bos_token": False}, ["▁a"]),
        ({"ggml.add_space_prefix": False}, ["<s>", "a"]),
    ],
    ids=str,
)
def test_sentencepiece(tmp_path, metadata, expected):
    original = tiny_llama(vocab_size=len(SENTENCEPIECE))
    path = write_gguf(
        tmp_path / "model.gguf",
        gguf_tensors(original),
        original.config,
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.scores": [0.0] * 259 + [-3.0, -2.0, -1.0],
            **{f"tokenizer.{key}": value for key, value in metadata.items()},
        },
        vocabulary=(SENTENCEPIECE, [2, 3, 3, *[6] * 256, 1, 1, 1], None),
    )
    tokenizer = open_source(str(path)).tokenizer()
    found = tokenizer("a").input_ids
    assert tokenizer.convert_ids_to_tokens(found) == expected
    assert tokenizer.decode(found, skip_special_tokens=True) == "a"


def test_special_tokens_that_a_sentencepiece_file_does_not_name(tmp_path):
    """llama.cpp takes the tokens 0, 1 and 2."""
    original = tiny_llama(vocab_size=len(SENTENCEPIECE))
    scores = [0.0] * 259 + [-3.0, -2.0, -1.0]
    path = write_gguf(
        tmp_path / "model.gguf",
        gguf_tensors(original),
        original.config,
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores},
        vocabulary=(SENTENCEPIECE, [2, 3, 3, *[6] * 256, 1, 1, 1], None),
    )
    source = open_source(str(path))
    tokenizer = source.tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("a").input_ids) == ["<s>", "▁a"]
    assert (tokenizer.unk_token, tokenizer.eos_token) == ("<unk>", "</s>")
    assert (source.config.bos_token_id, source.config.eos_token_id) == (1, 2)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"ggml.model": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"ggml.normalizer.lowercase": True}, "tokenizer.ggml.normalizer.lowercase is 'True'"),
        ({"ggml.new_in_2027": 3}, "tokenizer.ggml.new_in_2027 is '3'"),
        ({"ggml.eos_token_ids": [10**6]}, "tokenizer.ggml.eos_token_ids is '[1000000]'"),
    ],
    ids=str,
)
def test_what_nobody_knows_of_a_tokenizer_is_refused(assets, metadata, message):
    with pytest.raises(SourceError) as error:
        assets(**metadata)
    assert message in str(error.value)


def test_what_says_nothing_of_a_tokenizer_is_taken(assets):
    assets(**{"ggml.normalizer.lowercase": False, "ggml.add_sep_token": True})


def test_every_chat_template(assets):
    templates = {"chat_template": "plain", "chat_template.tool_use": "tools"}
    # The names of all but the first, as llama.cpp's converter lists them.
    templates |= {"chat_templates": ["tool_use"]}
    _, folder = assets(**templates)
    assert AutoTokenizer.from_pretrained(folder).chat_template == {
        "default": "plain",
        "tool_use": "tools",
    }
