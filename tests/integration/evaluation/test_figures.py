"""The figures of `mha2mla eval`, against independent ones."""

import re

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from conversion.evaluation import Comparison
from conversion.evaluation.chat import is_loop
from conversion.evaluation.quantised_cache import KINDS
from conversion.evaluation.retrieval import EXTRA_TOKENS
from tests.support.records import write
from tests.support.tiny import TEXT, tiny_tokenizer

WORDS = TEXT.split()[:32]


def continuation_loss(model, context, continuation):
    """Log-likelihood of a continuation, and whether it is the greedy one."""
    start, whole = (list(text.encode()) for text in (context, context + continuation))
    ids = torch.tensor(tiny_tokenizer()(context + continuation)["input_ids"])
    assert ids.numel() == len(whole)
    with torch.no_grad():
        logs = model(ids[None]).logits[0].log_softmax(-1)
    rows = range(len(start) - 1, len(whole) - 1)
    targets = ids[len(start) :]
    return float(logs[rows, targets].sum()), torch.equal(logs[rows].argmax(-1), targets)


def stderr(values):
    # From the unbiased variance.
    return float(torch.tensor(values, dtype=torch.float64).std()) / len(values) ** 0.5


def mean(values):
    return sum(values) / len(values)


def test_multiple_choice_by_the_harness_and_by_hand(tmp_path, models, figures):
    records = [
        {
            "query": f"Question: What follows {word}?\n" if index % 2 else f"After {word}",
            "choices": [WORDS[index - 1], f"{word} and {WORDS[-index]}", word[:3]],
            "gold": index % 3,
        }
        for index, word in enumerate(WORDS)
    ]
    entry = figures("--tasks", write(tmp_path / "mine.jsonl", records), "--limit", 24)
    (task,) = entry.tasks
    assert (task.task, task.documents) == ("mine.jsonl", 24)
    found = {metric.metric: metric for metric in task.metrics}
    assert list(found) == ["acc", "acc_norm"]
    for name, model in models.items():
        right = {"acc": [], "acc_norm": []}
        for record in records[:24]:
            query = record["query"]
            if query.startswith("Question:"):
                query = query[:-1] + "\nAnswer:"
            scores = torch.tensor(
                [continuation_loss(model, query, " " + c)[0] for c in record["choices"]]
            )
            lengths = torch.tensor([len(choice) for choice in record["choices"]])
            right["acc"].append(float(scores.argmax() == record["gold"]))
            right["acc_norm"].append(float((scores / lengths).argmax() == record["gold"]))
        # Neither all nor nothing, nor the same twice: each could be told from the others.
        assert 0 < mean(right["acc"]) < 1
        assert right["acc"] != right["acc_norm"]
        for metric, values in right.items():
            assert getattr(found[metric], name) == mean(values)
            assert getattr(found[metric], f"{name}_stderr") == pytest.approx(stderr(values))


def test_last_words_by_the_harness_and_by_hand(tmp_path, models, figures):
    records = [
        {"context": f"The word {word} and", "continuation": WORDS[index - 1]}
        for index, word in enumerate(WORDS[:10])
    ]
    # What the original would say: something for it to be right about.
    for start in ("Next", "Then", "After that"):
        record = {"context": start, "continuation": "?"}
        for code in range(33, 127):
            if continuation_loss(models["original"], start, " " + chr(code))[1]:
                record["continuation"] = chr(code)
        records.append(record)
    (task,) = figures("--tasks", write(tmp_path / "words.jsonl", records)).tasks
    found = {metric.metric: metric for metric in task.metrics}
    for name, model in models.items():
        answers = [continuation_loss(model, r["context"], " " + r["continuation"]) for r in records]
        losses = torch.tensor([loss for loss, _ in answers], dtype=torch.float64)
        expected = float((-losses.mean()).exp())
        # Losses of about 50 nats in float32: batches are padded, and rounded in another order.
        assert getattr(found["perplexity"], name) == pytest.approx(expected, rel=1e-3)
        assert getattr(found["acc"], name) == mean([float(right) for _, right in answers])
        assert getattr(found["perplexity"], f"{name}_stderr") > 0
    assert not found["perplexity"].higher_is_better


def test_text_long_context_and_report_in_one_go(tmp_path, folder, models, evaluate):
    json_path, report = tmp_path / "figures.json", tmp_path / "report.html"
    code, printed, error = evaluate(
        "--text", folder / "text.txt", "--window", 700, "--windows", 2,
        "--long-context", folder / "text.txt", "--context", 700, "--limit", 2,
        "--json", json_path, "--report", report,
    )  # fmt: skip
    assert code == 0, error
    entry = Comparison.model_validate_json(json_path.read_text())
    assert (entry.name, entry.method) == ("out", "calibrated + high")
    (found,) = entry.positions
    assert (found.text, found.window, found.windows) == ("text.txt", 700, 2)
    assert [(b.start, b.end) for b in found.buckets] == [(0, 512), (512, 700)]
    tokens = torch.tensor([bucket.tokens for bucket in found.buckets])
    for name, whole in (
        ("original", entry.perplexity.baseline),
        ("converted", entry.perplexity.converted),
    ):
        values = torch.tensor([getattr(bucket, name) for bucket in found.buckets])
        average = float(((values.log() * tokens).sum() / tokens.sum()).exp())
        assert average == pytest.approx(whole, rel=1e-4)
    assert entry.perplexity.converted != entry.perplexity.baseline
    assert f"{entry.perplexity.converted:.3f}" in printed
    assert f"{found.buckets[1].converted:.3f}" in printed
    assert f"{entry.perplexity.converted:.3f}" in report.read_text()

    outputs = {}
    for name, model in models.items():
        kept = outputs[name] = []
        for layer in model.model.layers:
            layer.self_attn.o_proj.register_forward_hook(
                lambda _module, _inputs, output, kept=kept: kept.append(output)
            )
        with torch.no_grad():
            model(tiny_tokenizer()(TEXT[:700], return_tensors="pt")["input_ids"])
    expected = [
        float(torch.dist(b, a) ** 2 / a.norm() ** 2)
        for a, b in zip(outputs["original"], outputs["converted"], strict=True)
    ]
    assert entry.layer_error == pytest.approx(expected, rel=1e-3)


def test_rivals_are_the_original_with_a_rounded_cache(tmp_path, folder, models, evaluate):
    json_path, report = tmp_path / "figures.json", tmp_path / "report.html"
    names = ["int8_per_token_head", "int4_per_token_head", "turboquant_3bit_nc"]
    code, printed, error = evaluate(
        "--text", folder / "text.txt", "--window", 200, "--windows", 3,
        "--long-context", folder / "text.txt", "--context", 200, "--limit", 3,
        "--baseline-kv-cache-dtype", ",".join(names), "--baseline-kv-cache-dtype", names[0],
        "--json", json_path, "--report", report,
    )  # fmt: skip
    assert code == 0, error
    found = Comparison.model_validate_json(json_path.read_text())
    assert [rival.kv_cache_dtype for rival in found.rivals] == names
    ids = tiny_tokenizer()(TEXT[:600], return_tensors="pt")["input_ids"].view(3, 200)
    for rival in found.rivals:
        kind = KINDS[rival.kv_cache_dtype]

        def rounded(module, query, keys, values, mask, kind=kind, **options):
            if not kind.is_exact(module.layer_idx, 2):
                keys, values = kind.keys(keys), kind.values(values)
            return sdpa_attention_forward(module, query, keys, values, mask, **options)

        AttentionInterface.register("rounded", rounded)
        model = models["original"]
        model.set_attn_implementation("rounded")
        with torch.no_grad():
            logits = model(ids).logits[:, :-1].flatten(0, 1)
        model.set_attn_implementation("sdpa")
        expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).exp()
        assert rival.perplexity.converted == pytest.approx(float(expected), rel=1e-4)
        assert rival.perplexity.baseline == found.perplexity.baseline
        (bucket,) = rival.positions[0].buckets
        assert bucket.converted == pytest.approx(float(expected), rel=1e-4)
        assert f"{rival.perplexity.ratio:.4f}" in printed
        assert f"original, {rival.kv_cache_dtype}" in report.read_text()
    # Two heads of 16 in two layers: the last kind leaves both exact, in the 16 bits that coded rows
    # are beside.
    assert [rival.cache.bytes_per_token for rival in found.rivals] == [160, 96, 256]
    assert {rival.cache.baseline_bytes_per_token for rival in found.rivals} == {256}
    assert found.cache.baseline_bytes_per_token == 256
    eight, four, exact = (rival.perplexity for rival in found.rivals)
    assert abs(four.excess_loss) > abs(eight.excess_loss) > 0
    assert exact.converted == exact.baseline


def test_chat_by_hand(tmp_path, folder, models, evaluate):
    questions = [" ".join(WORDS[index : index + 3 + 2 * index]) for index in range(5)]
    records = [{"turns": [question, "and then?"]} for question in questions]
    json_path, report = tmp_path / "figures.json", tmp_path / "report.html"
    code, printed, error = evaluate(
        "--chat", write(tmp_path / "chat.jsonl", records), "--chat-tokens", 30, "--limit", 4,
        "--baseline-kv-cache-dtype", "int4_per_token_head",
        "--json", json_path, "--report", report,
    )  # fmt: skip
    assert code == 0, error
    comparison = Comparison.model_validate_json(json_path.read_text())
    found = comparison.chat
    assert (found.task, found.questions, found.tokens) == ("chat.jsonl", 4, 120)
    said, agreed, divergence = {name: [] for name in models}, [], []
    for question in questions[:4]:
        ids = tiny_tokenizer()(question, return_tensors="pt")["input_ids"]
        for name, model in models.items():
            whole = model.generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=0)
            said[name].append(whole[0, ids.shape[1] :].tolist())
        answer = torch.tensor(said["original"][-1])
        with torch.no_grad():
            logs = {
                name: model(torch.cat((ids[0], answer))[None]).logits[0].log_softmax(-1)
                for name, model in models.items()
            }
        before, after = (logs[name][-31:-1] for name in ("original", "converted"))
        agreed += (after.argmax(-1) == answer).tolist()
        divergence += (before.exp() * (before - after)).sum(-1).tolist()
    assert 0.05 < mean(agreed) < 0.95
    assert found.agreement == pytest.approx(mean(agreed))
    # The original's predictions are kept in float16: to 0.004 where a logarithm is below -8.
    assert found.kl == pytest.approx(mean(divergence), rel=1e-3)
    assert found.original_loops == mean([is_loop(answer) for answer in said["original"]])
    assert found.converted_loops == mean([is_loop(answer) for answer in said["converted"]])
    (rival,) = comparison.rivals
    assert found.agreement < rival.chat.agreement < 1
    for chat in (found, rival.chat):
        for text in (printed, report.read_text()):
            assert f"{chat.agreement:.1%}" in text
            assert f"{chat.kl:.4f}" in text


def test_retrieval_by_hand(tmp_path, models, figures):
    tokenizer = tiny_tokenizer()

    def said(model, prompt, tokens=60):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        kept = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return tokenizer.decode(kept[0, ids.shape[1] :])

    records = []
    for index in range(4):
        prompt = " ".join(WORDS[index : index + 12])
        words = re.findall(r"(?<![0-9A-Za-z])[0-9A-Za-z]+(?=[^0-9A-Za-z])",
                           said(models["original"], prompt))  # fmt: skip
        records.append({"prompt": prompt, "expected_number": words[0]})
    records.append({"prompt": WORDS[0], "expected_number": "unheardof"})
    records.append({"prompt": TEXT[:1000], "expected_number": "toolong"})
    (found,) = figures("--long-context", write(tmp_path / "lines.jsonl", records)).retrieval
    assert (found.examples, found.skipped, found.context) == (5, 1, 1024)
    assert found.original == 4 / 5
    assert found.original_stderr == pytest.approx(stderr([1.0] * 4 + [0.0]))
    converted = []
    for record in records[:5]:
        answer = record["expected_number"]
        # As many tokens as the command takes: with fewer, a longer word can end early.
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        text = said(models["converted"], record["prompt"], len(ids) + EXTRA_TOKENS)
        word = rf"(?<![0-9A-Za-z]){answer}(?![0-9A-Za-z])"
        converted.append(float(re.search(word, text, re.IGNORECASE) is not None))
    assert found.converted == mean(converted)
    assert found.converted < found.original
