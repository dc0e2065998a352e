"""`mha2mla eval` with what users get wrong, and where its figures go."""

import os
from types import SimpleNamespace

import pytest

from conversion.errors import OutputError
from tests.support.records import write
from tests.support.tiny import save_tiny, tiny_tokenizer


def wrong(evaluate, *arguments):
    code, _, error = evaluate(*arguments)
    line = error.strip().splitlines()[-1]
    assert code == 2, error
    assert line.startswith("error: ")
    assert "Traceback" not in error
    return line


def _add_token(monkeypatch):
    """A word with an id beyond the model's embedding, as a tokenizer of another release has."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Rotary"])
    monkeypatch.setattr("conversion.source.folder.FolderCheckpoint.tokenizer", lambda _: tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --text, --tasks, --long-context or --chat"),
        (("--chat", "{bad}"), "records with text; accepted are {turns} or {prompt}; retrieval"),
        (("--chat", "{question}", "--chat-tokens", 1020), "has 5 tokens, and with an answer of"),
        (("--tasks", "nowhere.jsonl"), "nowhere.jsonl: cannot be read (No such file"),
        (("--tasks", "{bad}"), "records with text; accepted are {query, choices, gold} or"),
        (("--tasks", "{good}", "--tasks", "{good}"), "given twice"),
        (("--long-context", "{bad}"), "records with text; accepted are {prompt, expected_number}"),
        (("--long-context", "nowhere.txt"), "nowhere.txt: cannot be read"),
        (("--long-context", "{text}", "--context", "2048"), "--context 2048: the model takes 1024"),
        (("--long-context", "{text}", "--long-context", "{same}"), "text.txt: given 2 times"),
        (
            ("--text", "{text}", "--baseline-kv-cache-dtype", "fp8,int2"),
            "--baseline-kv-cache-dtype int2: not simulated; choose from fp8, ",
        ),
        (("--text", "{strange}"), "beyond the vocabulary of 256"),
        (("--text", "{text}", "--dtype", "int8"), "--dtype int8: choose one of float32, "),
        (("--text", "{text}", "--report", "out.pdf"), "out.pdf: give a name that ends in .html"),
        (("--text", "{text}", "--report", "nowhere/out.md"), "no folder nowhere"),
        (("--text", "{text}", "--json", "nowhere/out.json"), "no folder nowhere"),
    ],
)
def test_mistakes(tmp_path, folder, evaluate, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    good = {"context": "a", "continuation": "b"}
    names = {
        "{bad}": write(tmp_path / "bad.jsonl", [{"text": "hello"}]),
        "{good}": write(tmp_path / "good.jsonl", [good]),
        "{question}": write(tmp_path / "question.jsonl", [{"turns": ["Hello", "again"]}]),
        "{text}": folder / "text.txt",
        "{same}": tmp_path / "text.txt",
        "{strange}": tmp_path / "strange.txt",
    }
    names["{strange}"].write_text("Rotary" * 99)
    _add_token(monkeypatch)
    # A mistake is found before any weights are read.
    monkeypatch.setattr("conversion.evaluation.compare.source_model", None)
    assert message in wrong(evaluate, *(names.get(part, part) for part in arguments))


def test_an_unknown_task(evaluate, monkeypatch):
    from lm_eval.tasks import TaskManager

    # The index of the harness's own 15,000 tasks takes 10 s to build.
    built = TaskManager(include_defaults=False)
    monkeypatch.setattr("conversion.evaluation.harness.TaskManager", lambda **_: built)
    line = wrong(evaluate, "--tasks", "arc_eazy")
    assert "--tasks arc_eazy: no such file, and the harness has no task of that name" in line


def test_a_task_whose_data_cannot_be_had(evaluate, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: query\ndoc_to_target: gold\ndoc_to_choice: choices\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path}/nowhere.jsonl\n"
    )
    built = TaskManager(include_defaults=False, include_path=str(tmp_path))
    monkeypatch.setattr("conversion.evaluation.harness.TaskManager", lambda **_: built)
    line = wrong(evaluate, "--tasks", "mine")
    assert "--tasks mine: its data cannot be loaded" in line
    assert "local .jsonl file" in line


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("lm_eval", ("--tasks", "arc_easy")), ("matplotlib", ("--tasks", "x", "--report", "a.html"))],
)
def test_without_the_extra(evaluate, monkeypatch, missing, arguments):
    monkeypatch.setattr("conversion.runtime.extras.find_spec", lambda _: None)
    line = wrong(evaluate, *arguments)
    assert f'needs {missing}; install with: pip install "vllm-mha2mla[eval]"' in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 300}, "its vocab_size is 300 and the checkpoint's 256; give the model it"),
        ({"num_hidden_layers": 1}, "its num_hidden_layers is 1"),
        (None, "nowhere: no such file"),
    ],
)
def test_another_model_is_not_the_baseline(
    tmp_path, folder, evaluate, monkeypatch, changes, message
):
    other = tmp_path / "nowhere" if changes is None else save_tiny(tmp_path / "other", **changes)
    # Found before hours of measuring the converted model.
    monkeypatch.setattr("conversion.evaluation.compare.source_model", None)
    line = wrong(evaluate, "--text", folder / "text.txt", "--baseline", other)
    assert message in line


def test_other_weights_of_the_same_shape_are_said(tmp_path, folder, evaluate, caplog):
    other = save_tiny(tmp_path / "other", intermediate_size=96)
    with caplog.at_level("WARNING"):
        evaluate("--text", folder / "text.txt", "--windows", 1)
        assert "not the very files" not in caplog.text
        evaluate("--text", folder / "text.txt", "--windows", 1, "--baseline", other)
    assert "other: not the very files the checkpoint was made from" in caplog.text


def test_windows_are_no_longer_than_the_context(folder, figures, caplog):
    with caplog.at_level("INFO"):
        found = figures("--text", folder / "text.txt", "--window", 4096, "--windows", 1)
    assert found.perplexity.window == 1024
    assert "windows of 1024 tokens, not 4096" in caplog.text


def test_figures_are_shown_whatever_comes_of_the_files(tmp_path, folder, evaluate, monkeypatch):
    def full(path, figures):
        raise OutputError(f"{path}: the disk is full")

    monkeypatch.setattr("conversion.runtime.output_files.write_json", full)
    code, output, error = evaluate(
        "--text", folder / "text.txt", "--windows", 1, "--json", tmp_path / "figures.json"
    )
    assert code == 2
    assert "perplexity" in output
    assert "the disk is full" in error


def test_files_that_may_not_be_written_are_found_first(tmp_path, folder, evaluate, monkeypatch):
    refusing = SimpleNamespace(access=lambda *_: False, W_OK=os.W_OK)
    monkeypatch.setattr("conversion.runtime.output_files.os", refusing)
    monkeypatch.setattr("conversion.evaluation.compare.source_model", None)
    line = wrong(evaluate, "--text", folder / "text.txt", "--json", tmp_path / "figures.json")
    assert "may not be written" in line


def test_another_dtype_is_said_and_changes_figures_a_little(folder, evaluate, figures):
    text = ("--text", folder / "text.txt", "--window", 200, "--windows", 1)
    exact, rough = figures(*text), figures(*text, "--dtype", "bfloat16")
    assert (exact.dtype, rough.dtype) == ("float32", "bfloat16")
    assert rough.perplexity.baseline != exact.perplexity.baseline
    # 8 bits of mantissa, and logits up to about 20.
    assert rough.perplexity.baseline == pytest.approx(exact.perplexity.baseline, rel=0.1)
    assert "in bfloat16." in evaluate(*text, "--dtype", "bfloat16")[1]
