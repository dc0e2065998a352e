"""Reading texts."""

import json
import os
from pathlib import Path

import pytest

from conversion.errors import TextError
from conversion.text.documents import builtin_text, read_text, text_name
from tests.support.tiny import tiny_tokenizer


def test_the_builtin_parts_share_no_topic():
    calibration, held_out = builtin_text("calibration"), builtin_text("held-out")
    assert len(calibration) > 100_000
    assert len(held_out) > 20_000
    assert held_out[:2000] not in calibration


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "plain"}, "plain"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "hi"),
        ({"prompt": "two and two", "completion": "four"}, "two and two\nfour"),
        ({"instruction": "add", "input": "1 1", "output": "2"}, "add\n1 1\n2"),
    ],
)
def test_json_lines(tmp_path, record, text):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record) + "\n\n")
    assert read_text(path, tiny_tokenizer()) == text


def test_messages_go_through_the_chat_template(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}))
    assert read_text(path, tokenizer) == "<user>hi"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("empty.txt", b" \n", "no text"),
        ("bad.jsonl", b"{", "line 1 is not JSON"),
        ("odd.jsonl", b'{"id": 3}', "line 1 has none of the fields"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TextError, match=f"{name}.*{message}"):
        read_text(path, tiny_tokenizer())


def test_half_a_character_is_read(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "cut \\ud83d off"}\n')
    text = read_text(file, tiny_tokenizer())
    assert text == "cut ? off"


def test_a_name_of_other_bytes_is_text():
    assert text_name(Path(os.fsdecode(b"folder/caf\xe9.txt"))) == "caf?.txt"
