"""A chat: several answers at once, questions from files, and answers that go round in circles."""

import pytest
from transformers import AutoModelForCausalLM

from conversion.errors import TextError
from conversion.evaluation.batched import greedy_answers
from conversion.evaluation.chat import is_loop
from conversion.evaluation.chat_questions import read_chat
from conversion.evaluation.chunked import greedy
from conversion.evaluation.quantised_cache import KINDS, quantised_cache
from conversion.runtime.progress import Progress
from tests.support.records import write
from tests.support.tiny import TEXT, tiny_llama, tiny_tokenizer
from tests.support.tiny_converted import save_tiny_coded

LENGTHS = (40, 3, 17, 60, 22)


def prompts():
    ids = tiny_tokenizer()(TEXT, return_tensors="pt")["input_ids"][0]
    return [ids[start : start + length] for start, length in enumerate(LENGTHS)]


def answers(model, stop=frozenset(), limit=20):
    return greedy_answers(model, prompts(), set(stop), limit, Progress(), "", batch=3)


def test_answers_in_a_batch_are_those_alone():
    model = tiny_llama()
    alone = [greedy(model, ids, set(), 20) for ids in prompts()]
    assert answers(model) == alone
    stop = alone[1][7]
    expected = [each[: each.index(stop) + 1] if stop in each else each for each in alone]
    assert answers(model, {stop}) == expected


def test_a_batch_of_coded_rows_is_padded_without_a_trace(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_tiny_coded(tmp_path)).eval()
    assert answers(model) == [greedy(model, ids, set(), 20) for ids in prompts()]


def test_a_batch_of_quantised_caches_is_padded_without_a_trace():
    model = tiny_llama()
    with quantised_cache(model, KINDS["int4_per_token_head"]):
        rounded = answers(model)
        assert rounded == [greedy(model, ids, set(), 20) for ids in prompts()]
    assert rounded != answers(model)


@pytest.mark.parametrize(
    ("answer", "loops"),
    [
        ([*range(8)] * 4, True),
        ([*range(8)] * 3 + [*range(7)], False),
        ([5] * 11, True),
        ([5] * 10, False),
        ([], False),
    ],
)
def test_an_answer_loops_if_eight_tokens_occur_four_times(answer, loops):
    assert is_loop([100, 101, *answer]) is loops


def test_the_first_turn_or_the_prompt_is_asked(tmp_path):
    tokenizer = tiny_tokenizer()
    for record in ({"turns": ["Hello", "again"]}, {"prompt": "Hello"}):
        path = write(tmp_path / "chat.jsonl", [record, record | {"id": 3}])
        chat = read_chat(path, tokenizer, context=20, new_tokens=15, limit=1)
        assert (chat.name, chat.new_tokens, len(chat.prompts)) == ("chat.jsonl", 15, 1)
        assert tokenizer.decode(chat.prompts[0]) == "Hello"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "Hello"}], "accepted are {turns} or {prompt}; retrieval goes to"),
        ([{"turns": ["Hello"]}, {"turns": []}], "line 2 has no usable turns"),
        ([{"turns": "Hello"}], "line 1 has no usable turns"),
        ([{"prompt": " "}], "line 1 has no usable prompt"),
        ([{"prompt": "Hello, and hello"}], "line 1 has 16 tokens, and with an answer of 15"),
    ],
)
def test_bad_questions(tmp_path, records, message):
    path = write(tmp_path / "bad.jsonl", records)
    with pytest.raises(TextError) as error:
        read_chat(path, tiny_tokenizer(), context=20, new_tokens=15, limit=None)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
