"""Text of any length for benchmarks: the demo's sentences drawn at random into new documents, the same ones each time.

Repeating documents would repeat their pairs of latents too; new neighbours of a sentence change the model's context.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from jacobian_core.resources import project_path

_SENTENCES_PER_DOCUMENT = (2, 8)
_CHARACTERS_PER_TOKEN = 10
"""More than there are, since what is beyond a document's context is not analysed."""


def write_text(folder: Path, tokens: int) -> None:
    """A shard of at least so many analysed tokens."""
    sentences, rng = _sentences(), random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    left = _CHARACTERS_PER_TOKEN * tokens
    with (folder / "00.jsonl").open("w", encoding="utf-8") as file:
        while left > 0:
            text = ". ".join(rng.choices(sentences, k=rng.randint(*_SENTENCES_PER_DOCUMENT))) + "."
            file.write(json.dumps({"text": text}) + "\n")
            left -= len(text)


def _sentences() -> list[str]:
    import zstandard

    found: list[str] = []
    for path in sorted(project_path("demo/corpus").glob("*.jsonl.zst")):
        lines = zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read().decode().splitlines()
        found += [part for line in lines for part in json.loads(line)["text"].split(". ") if len(part) > 20]
    return found
