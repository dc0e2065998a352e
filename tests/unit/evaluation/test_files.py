"""The files that ``mha2mla eval`` reads: tasks and retrieval questions as JSON lines."""

import json

import pytest

from conversion.errors import TextError
from conversion.evaluation.local_tasks import read_local_task
from conversion.evaluation.questions import read_questions
from conversion.evaluation.retrieval import fitting, is_right
from conversion.evaluation.tasks import is_file
from tests.support.tiny import tiny_tokenizer

CHOICE = {"query": "Water is", "choices": ["wet.", "dry."], "gold": 0}
LAST_WORD = {"context": "Grass is", "continuation": "green"}
LINE = {"prompt": "line a: 17. What is in line a?", "expected_number": 17}
PAIR = {"ordered_kv_records": [["a", "1"], ["b", "2"]], "key": "b", "value": "2"}


def write(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


def test_multiple_choice(tmp_path):
    question = CHOICE | {"query": "Question: What is water?\n"}
    answered = CHOICE | {"query": "Question: What is water?\nAnswer:"}
    path = write(tmp_path / "mine.jsonl", CHOICE, "", question, answered)
    task = read_local_task(path)
    assert task.name == "mine.jsonl"
    assert [document["text"] for document in task.documents] == [
        "Water is",
        "Question: What is water?\nAnswer:",
        "Question: What is water?\nAnswer:",
    ]
    assert task.documents[0]["choices"] == ["wet.", "dry."]
    assert task.documents[0]["gold"] == 0


def test_last_word(tmp_path):
    # U+2028 ends a line for str.splitlines, not for JSON lines.
    odd = '{"context": "Sky\u2028is", "continuation": "blue"}'
    task = read_local_task(write(tmp_path / "words.jsonl", LAST_WORD, odd))
    assert task.documents == [
        {"text": "Grass is", "target": " green"},
        {"text": "Sky\u2028is", "target": " blue"},
    ]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no records"),
        (["{"], "line 1 is not JSON"),
        (["[1]"], "line 1 is not a JSON object"),
        ([{"text": "hello"}], "records with text; accepted are {query, choices, gold} or"),
        ([CHOICE, LAST_WORD], "line 2 is not multiple choice"),
        ([LAST_WORD, CHOICE], "line 2 is not continuation"),
        ([CHOICE | {"gold": 2}], "line 1"),
        ([CHOICE | {"gold": -1}], "line 1"),
        ([CHOICE | {"gold": True}], "line 1"),
        ([CHOICE | {"choices": ["one"]}], "line 1"),
        ([CHOICE | {"choices": ["one", ""]}], "line 1"),
        ([CHOICE | {"query": " "}], "line 1"),
        ([LAST_WORD | {"continuation": 3}], "line 1"),
    ],
)
def test_bad_task_files(tmp_path, records, message):
    path = write(tmp_path / "bad.jsonl", *records)
    with pytest.raises(TextError) as error:
        read_local_task(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_questions(tmp_path):
    (line,) = read_questions(write(tmp_path / "lines.jsonl", LINE))
    assert (line.prompt, line.answer) == (LINE["prompt"], "17")
    (pair,) = read_questions(write(tmp_path / "pairs.jsonl", PAIR))
    assert pair.answer == "2"
    assert 'JSON data:\n{"a": "1",\n "b": "2"}\n\nKey: "b"\n' in pair.prompt


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([CHOICE], "accepted are {prompt, expected_number} or {ordered_kv_records, key, value}"),
        ([LINE, PAIR], "line 2 has no usable prompt"),
        ([PAIR | {"key": "c"}], "line 1 has no usable ordered_kv_records"),
        ([PAIR | {"ordered_kv_records": "a"}], "line 1"),
        ([LINE | {"expected_number": None}], "line 1"),
    ],
)
def test_bad_retrieval_files(tmp_path, records, message):
    path = write(tmp_path / "bad.jsonl", *records)
    with pytest.raises(TextError) as error:
        read_questions(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_examples_longer_than_the_context_are_counted(tmp_path):
    path = write(tmp_path / "lines.jsonl", LINE, LINE | {"prompt": "x" * 500}, LINE)
    questions = read_questions(path)
    # 30 bytes of prompt, 2 of answer, 64 of room.
    asked = fitting(path, questions, tiny_tokenizer(), 96, None)
    assert (len(asked.examples), asked.skipped) == (2, 1)
    assert asked.examples[0].ids.numel() == 30
    assert fitting(path, questions, tiny_tokenizer(), 96, limit=1).skipped == 0
    with pytest.raises(TextError, match="the shortest needs 96"):
        fitting(path, questions, tiny_tokenizer(), 95, None)


def test_a_chat_template_makes_the_prompt_a_message(tmp_path):
    path = write(tmp_path / "lines.jsonl", LINE)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    asked = fitting(path, read_questions(path), tokenizer, 500, None)
    assert tokenizer.decode(asked.examples[0].ids) == f"<user>{LINE['prompt']}<assistant>"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The number is <17>.", True),
        ("17", True),
        ("It is 1799.", False),
        ("A17", False),
        ("", False),
    ],
)
def test_an_answer_is_a_whole_word(text, right):
    assert is_right(text, "17") is right


def test_files_and_names(tmp_path):
    assert is_file("nowhere.jsonl")
    assert is_file("folder/arc_easy")
    assert not is_file("arc_easy")
