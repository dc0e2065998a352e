import json

import pytest

from conversion.calibration.text import (
    builtin_text,
    calibration_windows,
    evaluation_windows,
    read_text,
)
from conversion.errors import CalibrationError
from tests.tiny import TEXT, tiny_tokenizer


def test_the_builtin_parts_share_no_topic():
    calibration, held_out = builtin_text("calibration"), builtin_text("held-out")
    assert len(calibration) > 100_000
    assert len(held_out) > 20_000
    assert held_out[:2000] not in calibration


def test_windows_are_spread_over_all_files(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 1000)
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    windows = calibration_windows(tiny_tokenizer(), files, tokens=400, window=100)
    assert windows.ids.shape == (4, 100)
    assert len(set(windows.ids[:, 0].tolist())) == 2


def test_a_short_text_is_one_short_window(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("only this")
    assert calibration_windows(tiny_tokenizer(), [path], 1000, 100).ids.shape == (1, 9)


def test_evaluation_windows_do_not_overlap():
    windows = evaluation_windows(tiny_tokenizer(), TEXT, window=64, limit=3)
    expected = tiny_tokenizer()(TEXT)["input_ids"][: 3 * 64]
    assert windows.flatten().tolist() == expected


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
    with pytest.raises(CalibrationError, match=f"{name}.*{message}"):
        read_text(path, tiny_tokenizer())
