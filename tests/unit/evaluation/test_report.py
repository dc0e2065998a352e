"""The report: the figures are in it, and it needs nothing else."""

import base64
from html.parser import HTMLParser

import pytest

from conversion.errors import MissingExtraError, OutputError, UsageError
from conversion.evaluation import (
    CacheFigures,
    Entry,
    PerplexityFigures,
    PositionFigures,
    Report,
    RetrievalFigures,
    TaskFigures,
    write_report,
)
from conversion.evaluation.results import RIVAL, MetricFigures, PositionBucket


def entry(name, method, size, value, **more):
    return Entry(
        name=name,
        method=method,
        cache=CacheFigures(
            bytes_per_token=size, baseline_bytes_per_token=23040, fraction=size / 23040
        ),
        perplexity=PerplexityFigures(
            converted=value, baseline=11.875, ratio=value / 11.875, window=1024, windows=8
        ),
        **more,
    )


def accuracy(converted):
    return TaskFigures(
        task="arc.jsonl",
        documents=50,
        metrics=[
            MetricFigures(
                metric="acc",
                higher_is_better=True,
                original=0.617,
                original_stderr=0.045,
                converted=converted,
                converted_stderr=0.046,
            )
        ],
    )


def positions(converted):
    bucket = PositionBucket(start=512, end=1024, tokens=1024, original=12.345, converted=converted)
    return PositionFigures(text="whale.txt", window=1024, windows=2, buckets=[bucket])


LOST = RetrievalFigures(
    task="keys.jsonl", examples=7, skipped=3, context=8192,
    original=0.857, original_stderr=0.143, converted=0.286, converted_stderr=0.184,
)  # fmt: skip
REPORT = Report(
    title="A <sweep>",
    source="demo:smollm2-135m",
    notes=["Two | notes"],
    entries=[
        entry("half & half", "calibrated", 11520, 13.561, tasks=[accuracy(0.523)],
              positions=[positions(14.321)], retrieval=[LOST], layer_error=[0.01, 0.25, 0.04]),
        entry("quarter", "calibrated", 5760, 17.472, positions=[positions(19.876)]),
        entry("paper", "mha2mla", 11520, 981.3, tasks=[accuracy(0.411)]),
        entry("original, int4", RIVAL, 6480, 12.321, kv_cache_dtype="int4_per_token_head"),
    ],
)  # fmt: skip
FIGURES = [
    "11.875", "13.561", "17.472", "981.300", "11,520", "5,760", "6,480", "12.321",
    "50.00%", "25.00%", "1.4713",
    "0.3862",
    "0.617 ± 0.045", "0.523 ± 0.046", "0.411 ± 0.046",
    "0.857 ± 0.143", "0.286 ± 0.184", "3 examples of keys",
    "512-1024", "12.345", "14.321", "19.876", "0.25",
]  # fmt: skip


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.resources, self.images, self.tags, self.cells = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        self.resources += [
            attrs[name] for name in ("src", "href", "srcset", "data") if name in attrs
        ]
        if tag == "img":
            self.images.append(attrs)

    def handle_data(self, data):
        self.cells.append(data)


def test_html_holds_the_figures_and_needs_no_other_file(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, REPORT)
    assert list(tmp_path.iterdir()) == [path]
    content = path.read_text("utf-8")
    reader = Reader()
    reader.feed(content)
    text = "\n".join(reader.cells)
    for figure in FIGURES:
        assert figure in text
    assert "A <sweep>" in text
    assert "half & half" in text
    assert [image["alt"] for image in reader.images] == [
        "Perplexity against cache bytes per token",
        "Accuracy with standard errors",
        "Perplexity by position, whale.txt",
        "Error per layer",
    ]
    assert len(reader.resources) == len(reader.images)
    for resource in reader.resources:
        kind, data = resource.split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(data)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert "url(" not in content
    assert "@import" not in content


def test_markdown_has_its_images_beside(tmp_path):
    path = tmp_path / "my report.md"
    write_report(path, REPORT)
    text = path.read_text("utf-8")
    for figure in FIGURES:
        assert figure in text
    assert "Two \\| notes" in text
    images = sorted(p.name for p in tmp_path.glob("*.png"))
    assert images == [
        f"my report-{n}.png" for n in ("accuracy", "layers", "perplexity", "positions")
    ]
    for name in images:
        assert f"](<{name}>)" in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_what_was_not_measured_is_left_out(tmp_path):
    bare = REPORT.entries[1].model_copy(update={"perplexity": None, "positions": []})
    write_report(tmp_path / "bare.md", Report(title="Bare", source="x", entries=[bare]))
    text = (tmp_path / "bare.md").read_text()
    assert "5,760" in text
    assert "erplexity" not in text
    assert "Tasks" not in text
    assert "layer" not in text
    assert not list(tmp_path.glob("*.png"))


def test_a_report_survives_its_json():
    assert Report.model_validate_json(REPORT.model_dump_json()) == REPORT


def test_places_a_report_cannot_go(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"report\.pdf.*\.html or \.md"):
        write_report(tmp_path / "report.pdf", REPORT)
    with pytest.raises(OutputError, match="no folder"):
        write_report(tmp_path / "nowhere" / "report.md", REPORT)
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_report(tmp_path / "folder.md", REPORT)
    monkeypatch.setattr("conversion.runtime.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "vllm-mha2mla\[eval\]"'):
        write_report(tmp_path / "report.md", REPORT)
