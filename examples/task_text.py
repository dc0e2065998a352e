"""Write text of a task's kind, to calibrate and heal on, from documents that are not measured.

    python examples/task_text.py piqa.jsonl arc_easy.jsonl --skip 200 --out questions.jsonl

`mha2mla eval --tasks piqa.jsonl --limit 200` measures the first 200 documents of a file. This
script writes all the others in the form that `mha2mla convert --calibration` and `mha2mla heal
--text` read, with the files mixed. It draws one of a question's choices at random: the text is of
the task's kind and does not tell which answer is right.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from conversion.evaluation.local_tasks import read_local_task


def main() -> None:
    """Read the tasks, write their text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", type=Path, nargs="+", help="files as `mha2mla eval --tasks` takes")
    parser.add_argument("--skip", type=int, required=True, help="documents of each to leave out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    texts = [
        text_of(document, draw)
        for path in arguments.tasks
        for document in read_local_task(path).documents[arguments.skip :]
    ]
    if len(arguments.tasks) > 1:
        draw.shuffle(texts)
    arguments.out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    print(f"{arguments.out}: {len(texts)} documents")


def text_of(document: dict[str, Any], draw: random.Random) -> str:
    """Join a document as the harness does, with one of its choices drawn at random."""
    if "choices" in document:
        return f"{document['text']} {draw.choice(document['choices'])}"
    return f"{document['text']}{document['target']}"


if __name__ == "__main__":
    main()
