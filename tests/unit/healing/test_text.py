"""Packing text into windows."""

import json

import pytest
import torch

from conversion.errors import TextError
from conversion.healing.recipe import HealingRecipe
from conversion.healing.text import packed_windows
from tests.support.tiny import TEXT, tiny_tokenizer


def pack(files, tokens=10**6, window=32, held_out=64, repeats=0.0):
    recipe = HealingRecipe(tokens=tokens, window=window, held_out_tokens=held_out, repeats=repeats)
    return packed_windows(tiny_tokenizer(), files, recipe)


def test_everything_is_used_once_and_held_out_windows_only_there(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT[:3200])
    packed = pack([file])
    assert packed.ids.shape == (98, 32)
    assert packed.held_out.shape == (2, 32)
    tokenizer = tiny_tokenizer()
    rows = [tokenizer.decode(row) for row in (*packed.ids, *packed.held_out)]
    assert sorted(rows) == sorted(TEXT[at : at + 32] for at in range(0, 3200, 32))


def test_fewer_tokens_come_from_all_parts(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("a" * 3200)
    second.write_text("b" * 3200)
    packed = pack([first, second], tokens=320)
    decoded = "".join(tiny_tokenizer().decode(row) for row in packed.ids)
    assert len(packed.ids) == 10
    assert decoded.count("a") == decoded.count("b") == 160
    assert packed.files == ["a.txt", "b.txt"]


def test_some_windows_repeat_their_first_half(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT[:3200])
    for window, count in ((32, 98), (33, 94)):
        plain, packed = (pack([file], window=window, repeats=share) for share in (0.0, 0.25))
        same = (packed.ids == plain.ids).all(1)
        assert len(same) == count
        assert int((~same).sum()) == round(count / 4)
        changed = packed.ids[~same]
        assert torch.equal(changed[:, :16], changed[:, 16:32])
        assert torch.equal(changed[:, :16], plain.ids[~same][:, :16])
        # From all parts of the text, and never what is held out.
        assert (~same).nonzero()[:, 0].diff().max() <= 5
        assert torch.equal(packed.held_out, plain.held_out)
        assert packed.fingerprint != plain.fingerprint


def test_a_short_text_holds_nothing_out(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT[:100])
    packed = pack([file])
    assert packed.ids.shape == (3, 32)
    assert packed.held_out.shape == (0, 32)


def test_messages_go_through_the_chat_template(tmp_path):
    file = tmp_path / "chat.jsonl"
    record = {"messages": [{"role": "user", "content": "Hello there, how are you?"}]}
    file.write_text(json.dumps(record) + "\n")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    recipe = HealingRecipe(tokens=100, window=8, held_out_tokens=0, repeats=0)
    packed = packed_windows(tokenizer, [file], recipe)
    text = "".join(tokenizer.decode(row) for row in packed.ids)
    assert text.startswith("<user>Hello there")


def test_without_files_it_is_the_built_in_text():
    packed = pack([], tokens=640)
    assert packed.ids.shape == (20, 32)
    assert packed.files == ["pydoc_data.topics"]


def test_less_than_a_window_is_refused(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("short")
    with pytest.raises(TextError, match=r"text\.txt: 5 tokens are less than one window"):
        pack([file])
