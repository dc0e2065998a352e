"""Windows of calibration text, what they hold out, and windows to measure on."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.text.places import held_out_starts, shared_grid, spread_starts, window_shares
from conversion.text.repeats import with_repeats
from conversion.text.windows import calibration_windows, evaluation_windows
from tests.support.tiny import TEXT, tiny_tokenizer


def test_windows_are_spread_over_all_files(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 1000)
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    windows = calibration_windows(tiny_tokenizer(), files, tokens=400, window=100)
    assert windows.ids.shape == (4, 100)
    assert len(set(windows.ids[:, 0].tolist())) == 2


@given(st.lists(st.integers(0, 400), min_size=1, max_size=9), st.integers(1, 60))
def test_texts_share_the_windows_as_their_lengths_allow(sizes, wanted):
    room = [size // 10 for size in sizes]
    shares = window_shares(sizes, 10, wanted)
    if not any(room):
        assert sum(shares) == 1
        assert sizes[shares.index(1)] == max(sizes)
        return
    assert sum(shares) == min(wanted, sum(room))
    assert all(share <= most for share, most in zip(shares, room, strict=True))
    # Who has less than another has nothing left, but for one that does not divide.
    for share, most in zip(shares, room, strict=True):
        assert share == most or share >= max(shares) - 1


def test_what_is_not_used_is_said_and_not_named(tmp_path, caplog):
    files = [tmp_path / f"{name}.txt" for name in ("long", "short", "longer")]
    for file, length in zip(files, (250, 90, 1000), strict=True):
        file.write_text(file.stem[0] * length)
    windows = calibration_windows(tiny_tokenizer(), files, 700, 100)
    # Two of the one, and what it lacks of the other.
    assert windows.ids.shape == (7, 100)
    assert windows.files == ["long.txt", "longer.txt"]
    assert "short.txt: not used" in caplog.text
    assert calibration_windows(tiny_tokenizer(), files, 100, 100).files == ["long.txt"]


def test_measured_windows_are_spread_over_the_others_and_come_first(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{number:04};" for number in range(300)))
    all_of_them = calibration_windows(tiny_tokenizer(), [path], 900, 100)
    windows = all_of_them.measured_first(3)
    assert torch.equal(windows.measured, all_of_them.ids[[0, 4, 8]])
    assert torch.equal(windows.ids[:3], windows.measured)
    assert torch.equal(windows.ids.sort(0).values, all_of_them.ids.sort(0).values)
    assert torch.equal(all_of_them.measured_first(9).measured, all_of_them.ids)


def test_repeats_are_in_a_share_of_every_kind_of_window(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{number:04};" for number in range(600)))
    plain = calibration_windows(tiny_tokenizer(), [path], 2000, 80).measured_first(12)
    windows = plain.repeated(0.25)
    changed = (windows.ids != plain.ids).any(1)
    assert int(changed[:12].sum()) == 3
    assert int(changed[12:].sum()) == round(0.25 * (len(plain.ids) - 12))
    # Every third of the measured windows is probed as well: one of those four is among them.
    assert int(changed[:12:3].sum()) == 1
    begins = {
        part
        for old, new in zip(plain.ids[changed], windows.ids[changed], strict=True)
        for part in (40, 20, 10)
        if torch.equal(new, old[:part].repeat(80 // part))
    }
    assert begins == {40, 20, 10}
    assert windows.measured.shape == plain.measured.shape
    assert windows.fingerprint != plain.fingerprint
    assert plain.repeated(0.0) is plain
    # A small share is one of each kind, but not all there is.
    few = calibration_windows(tiny_tokenizer(), [path], 720, 80).measured_first(4)
    changed = (few.repeated(0.01).ids != few.ids).any(1)
    assert [int(kind.sum()) for kind in (changed[:4:3], changed[1:3], changed[4:])] == [1, 1, 1]
    one = calibration_windows(tiny_tokenizer(), [path], 80, 80)
    assert torch.equal(one.repeated(0.01).ids, one.ids)


@given(st.integers(1, 9), st.integers(2, 40), st.integers(0, 9), st.integers(1, 50))
def test_a_window_repeats_its_beginning_or_is_as_it_was(count, tokens, wanted, parts):
    ids = torch.arange(count * tokens).view(count, tokens)
    found = with_repeats(ids, wanted, (parts,))
    part = max(1, tokens // parts)
    repeating = torch.stack([row[torch.arange(tokens) % part] for row in ids])
    expected = min(wanted, count)
    as_before = (found == ids).all(1)
    assert int((found == repeating).all(1).sum()) >= expected
    assert int(as_before.sum()) >= count - expected


def test_a_short_text_is_one_short_window(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("only this")
    assert calibration_windows(tiny_tokenizer(), [path], 1000, 100).ids.shape == (1, 9)


def test_held_out_windows_are_of_the_text_and_not_of_calibration(tmp_path):
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    # Every five bytes name their own place in the files.
    files[0].write_text("".join(f"{number:04};" for number in range(300)))
    files[1].write_text("".join(f"{number:04};" for number in range(300, 700)))
    windows = calibration_windows(tiny_tokenizer(), files, 500, 100, held_out_tokens=350)
    assert windows.ids.shape == (5, 100)
    assert windows.held_out.shape == (4, 100)

    def places(ids):
        # The whole numbers of a window: at least 19 of its 100 bytes' 20.
        text = tiny_tokenizer().decode(ids.tolist())
        return {int(part) for part in text.split(";") if len(part) == 4}

    calibration = set().union(*map(places, windows.ids))
    held_out = [places(ids) for ids in windows.held_out]
    assert all(len(found) >= 19 for found in held_out)
    assert not calibration & set().union(*held_out)
    # From all over the text.
    assert min(map(min, held_out)) < 300 <= max(map(max, held_out))
    again = calibration_windows(tiny_tokenizer(), files, 500, 100)
    assert torch.equal(again.ids, windows.ids)
    assert again.held_out.shape == (0, 100)


def test_a_text_that_calibration_fills_has_nothing_to_hold_out(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a" * 399)
    windows = calibration_windows(tiny_tokenizer(), [path], 400, 100, held_out_tokens=100)
    assert windows.ids.shape == (3, 100)
    assert windows.held_out.shape == (0, 100)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=3),
    tokens=st.integers(1, 600),
    window=st.integers(2, 50),
    count=st.integers(1, 6),
)
def test_held_out_windows_overlap_nothing(tmp_path_factory, lengths, tokens, window, count):
    folder = tmp_path_factory.mktemp("texts")
    files = [folder / f"{index}.txt" for index in range(len(lengths))]
    # A character of its own for every place there is.
    letters = iter(range(0x4E00, 0x9FFF))
    for path, length in zip(files, lengths, strict=True):
        path.write_text("".join(chr(next(letters)) for _ in range(length)))
    if sum(lengths) < 2 or max(lengths) < 2:
        return
    windows = calibration_windows(by_character, files, tokens, window, count * window)
    seen = torch.cat((windows.ids.flatten(), windows.held_out.flatten()))
    assert len(seen.unique()) == len(seen)
    assert len(windows.held_out) <= count


def by_character(text, **_options):
    return {"input_ids": torch.tensor([[ord(character) for character in text]])}


def test_held_out_windows_are_spread_over_the_room_there_is():
    # Free: 10 to 50 and 60 to 100.
    assert held_out_starts([(100, (0, 50))], 10, 2) == [(0, 30), (0, 80)]
    assert held_out_starts([(100, (0, 50)), (15, (0,))], 10, 1) == [(0, 60)]
    assert held_out_starts([(35, (0, 25))], 10, 3) == [(0, 12)]


def test_where_calibration_takes_all_some_of_it_is_held_out():
    starts, places = shared_grid([55, 30], 10, [9, 9], 2)
    # The grid: 0 to 40 of the first text, 0 to 20 of the second.
    assert places == [(0, 20), (1, 10)]
    assert starts == [[0, 10, 30, 40], [0, 20]]
    assert shared_grid([55, 30], 10, [2, 2], 2)[0] == [[0, 30], [0, 20]]


def test_a_text_used_to_its_end_still_holds_something_out(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT[:3000])
    windows = calibration_windows(tiny_tokenizer(), [file], 3000, 100, 300)
    assert windows.held_out.shape == (3, 100)
    assert windows.ids.shape == (27, 100)
    few = calibration_windows(tiny_tokenizer(), [file], 1000, 100, 300)
    assert few.ids.shape == (10, 100)
    # More than a fifth is not taken away.
    assert len(calibration_windows(tiny_tokenizer(), [file], 3000, 100, 900).held_out) == 0


def test_evaluation_windows_do_not_overlap():
    windows = evaluation_windows(tiny_tokenizer(), TEXT, window=64, limit=3)
    expected = tiny_tokenizer()(TEXT)["input_ids"][: 3 * 64]
    assert windows.flatten().tolist() == expected


@given(st.integers(2**24, 2**31), st.integers(2, 300))
def test_windows_of_a_very_long_text_stay_in_it(length, count):
    starts = spread_starts(length, count, 1024)
    assert starts[0] == 0
    assert starts[-1] == length - 1024
    assert starts == sorted(starts)
