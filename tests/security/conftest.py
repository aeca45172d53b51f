"""One run of the real command over text, sources and file names that try to get out of where they belong."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest
import zstandard

from jacobian_core.lake.layout import Lake
from tests.artifact.conftest import CANARY
from tests.flows.test_cli import environment, jacobian
from tests.flows.test_main_command import PROFILE
from tests.tiny import make_corpus, make_model, make_pair

SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PREFECT_SERVER_API_AUTH_STRING", "MY_PASSWORD")
"""Environment variables that hold the canary while the command runs; the fourth is left out where a server starts."""
OUTSIDE = Path(tempfile.gettempdir()) / f"jacobian-hostile-{uuid4().hex}"
"""A file that nobody has, and that is there only if some text of the corpus was run as SQL or by a shell."""
TEXTS = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> </mark></q><svg onload=alert(1)>",
    "'; DROP TABLE tokens; -- \" ') UNION SELECT 1; COPY (SELECT 1) TO '" + f"{OUTSIDE}'",
    "../../../etc/passwd \\..\\..\\ %2e%2e/ file:///etc/passwd",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J \u202eright to left\u2066 \u200b \ufeff",
    "nul \0 inside, line\u2028separators\u2029, returns\r\n\r, bell \x07, delete \x7f",
    f"$(touch {OUTSIDE}) `touch {OUTSIDE}`",
    "{{7*7}} ${HOME} %(x)s {0.__class__} $run_id :x ?1 [b]markup[/b] [link=file:///x]y[/link]",
    "| a | b |\n|---|---|\n# heading ![x](http://127.0.0.1:9/x.png) `code` <!-- comment",
    '=HYPERLINK("http://127.0.0.1:9") @SUM(1) +1 -1',
    "\U0001f600 \u0e33\u0e33\u0e33 Z\u0351\u036b\u0343 \ud7ff \uffff \U0010ffff",
)
SHARDS = ("it's; DROP--.jsonl.zst", "<img src=x onerror=alert(1)>.jsonl", "\x1b[31m$(touch x)\n..jsonl")
RAW_LINES = (b'{"text": "\xff\xfe not utf-8"}', b"\0\0\0", b'{"text": "cut', b"\x1b[2J", b"[" * 10_000)


def documents() -> list[dict[str, object]]:
    """Each hostile text, long enough to be analysed, with a hostile source."""
    return [
        {"text": f"{text} {text} one latent drives another", "meta": {"pile_set_name": source}}
        for text, source in zip(TEXTS, (*TEXTS[1:], TEXTS[0]), strict=True)
    ]


def write_hostile_shards(folder: Path) -> None:
    """A compressed shard and two plain ones; the first also holds a line of 10 MB and one that expands to 64 MB."""
    rows = [json.dumps(row, ensure_ascii=False).encode() for row in documents()]
    long = json.dumps({"text": "latent " * (10_000_000 // 7)}).encode()
    compressor = zstandard.ZstdCompressor().compressobj()
    content = compressor.compress(b"\n".join([*RAW_LINES, *rows, long, b'{"text": "']))
    content += b"".join(compressor.compress(b"0" * (1 << 22)) for _ in range(16))
    content += compressor.compress(b'"}\n' + rows[0] + b"\n") + compressor.flush()
    (folder / SHARDS[0]).write_bytes(content)
    for name in SHARDS[1:]:
        (folder / name).write_bytes(b"\n".join(rows) + b"\n")


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: model, pair, hostile corpus and a profile."""
    root = tmp_path_factory.mktemp("hostile")
    make_corpus(root / "made", documents=4)
    make_model(root / "model", root / "made")
    make_pair(root / "pair")
    (root / "corpus").mkdir()
    write_hostile_shards(root / "corpus")
    (root / "tiny.toml").write_text(PROFILE.replace('"tiny"', '"hostile"'))
    return root


@pytest.fixture(scope="session")
def ran(work: Path) -> subprocess.CompletedProcess[str]:
    """`jacobian run` over it, with its own server, while the environment is full of canaries."""
    env = environment(work, **{name: CANARY for name in SECRETS if not name.startswith("PREFECT_")})
    return jacobian("run", "--profile", "tiny.toml", "--lake", "lake", "--stop-server", cwd=work, env=env)


@pytest.fixture(scope="session")
def lake(work: Path, ran: subprocess.CompletedProcess[str]) -> Lake:
    """What it left."""
    assert ran.returncode == 0, ran.stderr
    return Lake.open(work / "lake")


@pytest.fixture(scope="session")
def run_id(lake: Lake) -> str:
    """The run's id."""
    return lake.runs()[0]
