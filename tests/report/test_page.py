"""The page: whole, self-contained, safe with hostile text, the same each time, and useful when much is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jacobian_core.errors import QueryError
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.manifest import to_json
from jacobian_core.page.gather import MOST_RUNS, short_labels, short_paths
from jacobian_core.page.write import WrittenPage, default_folder, write_page
from jacobian_core.sql.reports import run_report
from jacobian_core.sql.warehouse import connect
from tests.report.conftest import text_of
from tests.report.lakes import HOSTILE, RUNS, hostile_lake
from tests.sql.lakes import HAND, HAND_RUN, config_of, hand_lake, tables_of, write_blocks

MAX_BYTES = 3_000_000
_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(HTMLParser):
    """Tags in order; complains about what is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _attributes(page: str, tag: str) -> list[dict[str, str | None]]:
    return [attributes for name, attributes in Outline(page).tags if name == tag]


def test_page_is_well_formed_and_has_all_its_sections(both: WrittenPage) -> None:
    outline = Outline(text_of(both))
    assert outline.open == []
    sections = [attributes["id"] for tag, attributes in outline.tags if tag == "section"]
    assert sections == ["answer", "causal", "sizes", "second", "pairs", "quality", "provenance"]
    ids = [attributes["id"] for _, attributes in outline.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"])[1:] for tag, attributes in outline.tags if tag == "a"]
    assert set(links) <= set(ids)


def test_unbalanced_markup_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        Outline("<p><b>x</p></b>")


def test_page_needs_nothing_else(both: WrittenPage) -> None:
    page = text_of(both)
    assert len(page.encode()) < MAX_BYTES
    policy = next(a["content"] for a in _attributes(page, "meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in Outline(page).tags}
    addresses = set(re.findall(r"""(?:href|src|url)\s*[=(]\s*["']?([^"')\s>]+)""", page))
    assert all(address.startswith("#") for address in addresses)


def test_hostile_text_stays_text(one: WrittenPage) -> None:
    page = text_of(one)
    assert "<script" not in page
    assert "\u202e" not in page
    assert "\x07" not in page
    shown = "".join(Outline(page).texts)
    assert r"<script>alert('x')</script>" in shown  # it is there, as text: escaping it twice or dropping it fails here
    assert r"\u202e" in shown
    assert HOSTILE not in page


def test_each_figure_can_be_read_without_seeing_it(both: WrittenPage) -> None:
    page = text_of(both)
    figures = re.findall(r"<figure .*?</figure>", page, re.DOTALL)
    assert len(figures) == len(both.images)
    for figure in figures:
        label = re.search(r'<svg [^>]*role="img"[^>]*aria-label="([^"]*)"|<svg role="img" aria-label="([^"]*)"', figure)
        assert label
        assert re.search(r"\d", label[0].partition("aria-label=")[2])
        assert "<figcaption>" in figure
        assert "<details>" in figure
        assert figure.count("<tr>") > 1


def test_figures_take_their_colours_from_the_page(one: WrittenPage) -> None:
    page = text_of(one)
    drawings = "".join(re.findall(r"<svg .*?</svg>", page, re.DOTALL))
    assert "var(--series-1)" in drawings
    assert not re.findall(r"(?:fill|stroke): #(?!ffffff00)\w+", drawings)
    assert re.search(r"@media \(prefers-color-scheme:dark\)\{:root\{[^}]*--series-1:#56b4e9", page)


def test_both_runs_are_in_the_figures_that_compare(one: WrittenPage, both: WrittenPage) -> None:
    for page, runs in ((one, 1), (both, 2)):
        drawing = re.search(r'<figure id="causal-zero">.*?</figure>', text_of(page), re.DOTALL)
        assert drawing
        assert ("var(--series-2)" in drawing[0]) == (runs == 2)
        assert sum(path.name.startswith("effects-") for path in page.images.values()) == runs


def test_answer_comes_first(both: WrittenPage, lake: Lake) -> None:
    page = text_of(both)
    with connect(lake) as connection:
        sentences = [run_report(connection, "causal_zero_answer", {"run_id": r})["answer"][0].as_py() for r in RUNS]
    shown = "".join(Outline(page).texts).replace("\u00a0", " ")
    places = [shown.index(sentence) for sentence in sentences]
    assert places == sorted(places)
    assert places[-1] < shown.index("Do zeros mean no effect?")


def test_same_lake_same_bytes(lake: Lake, one: WrittenPage, tmp_path: Path) -> None:
    again = write_page(lake, RUNS[:1], tmp_path)
    assert again.path.read_bytes() == one.path.read_bytes()
    assert [p.read_bytes() for p in again.images.values()] == [p.read_bytes() for p in one.images.values()]


def test_another_run_is_another_page(lake: Lake, one: WrittenPage, tmp_path: Path) -> None:
    assert write_page(lake, RUNS[1:], tmp_path).path.read_bytes() != one.path.read_bytes()


def test_page_without_interventions_says_so(tmp_path: Path) -> None:
    lake = hostile_lake(tmp_path / "lake", RUNS[:1], interventions=False)
    written = write_page(lake, RUNS[:1])
    page = text_of(written)
    assert written.path == lake.report_folder(RUNS[0]) / "report.html"
    sections = [attributes["id"] for attributes in _attributes(page, "section")]
    assert sections == ["answer", "sizes", "second", "pairs", "quality", "provenance"]
    assert "causal-zero.png" not in [path.name for path in written.images.values()]
    answer = re.search(r'<p class="answer[^>]*>(.*?)</p>', page)
    assert answer
    assert "intervention" in answer[1]


@pytest.mark.parametrize("blocks", [0, 2])
def test_page_of_a_run_that_goes_on(tmp_path: Path, blocks: int) -> None:
    """Facts that only a manifest holds are still unknown, and with no block there is no row of anything."""
    lake = Lake.create(tmp_path / "lake")
    write_blocks(lake, HAND_RUN, [tables_of(HAND[:2]), tables_of(HAND[2:])][:blocks], config_of())
    page = text_of(write_page(lake, [HAND_RUN], tmp_path / "page"))
    assert "still running" in page
    assert "not yet" in page
    assert ('<figure id="histogram-entries">' in page) == (blocks > 0)


@pytest.mark.parametrize(
    ("first", "words"),
    [([], ["No block, and not the run as a whole, has unusual figures."]),
     ([{"where": "0000-000007", "measure": "fvu_in", "value": 0.75, "usual": 0.125}],
      ["Unusual figures, of blocks or of the run as a whole: 1.", "0000-000007", "fvu in", "0.75", "0.125"])],
)  # fmt: skip
def test_page_says_what_is_unusual(tmp_path: Path, first: list[dict[str, object]], words: list[str]) -> None:
    lake = hand_lake(tmp_path / "lake")
    manifest = lake.manifest(HAND_RUN)
    assert manifest is not None
    quality = {**manifest.quality, "drift": {"found": len(first), "first": first}}
    lake.manifest_path(HAND_RUN).write_bytes(to_json(manifest.model_copy(update={"quality": quality})))
    texts = Outline(text_of(write_page(lake, [HAND_RUN], tmp_path / "page"))).texts
    assert [word for word in words if word not in texts] == []


def test_known_reports_are_not_run_again(lake: Lake, one: WrittenPage, tmp_path: Path) -> None:
    with connect(lake) as connection:
        known = run_report(connection, "threshold_fractions", {"run_id": RUNS[0], "thresholds": "0.5"})
    page = write_page(lake, RUNS[:1], tmp_path, {RUNS[0]: {"threshold_fractions": known}})
    table = r'<figure id="threshold-curves">.*?</figure>'
    assert not re.search(table, text_of(page), re.DOTALL)  # nothing is above 0.5, so there is no curve
    assert re.search(table, text_of(one), re.DOTALL)


def test_png_files_are_beside_the_page(both: WrittenPage) -> None:
    assert all(path.parent == both.path.parent for path in both.images.values())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in both.images.values())
    assert both.path.parent.name.startswith("comparison-")


def test_order_of_runs_is_part_of_a_comparison(lake: Lake) -> None:
    assert default_folder(lake, RUNS) != default_folder(lake, RUNS[::-1])


@pytest.mark.parametrize("runs", [[], ["no-such-run"], [f"r-{n:012x}" for n in range(MOST_RUNS + 1)]])
def test_wrong_runs_are_refused(lake: Lake, tmp_path: Path, runs: list[str]) -> None:
    with pytest.raises(QueryError):
        write_page(lake, runs, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_labels_tell_runs_apart() -> None:
    assert short_labels(["a-b-0123456789ab", "c-0123456789ab"]) == {"a-b-0123456789ab": "a-b", "c-0123456789ab": "c"}
    assert list(short_labels(["a-0123456789ab", "a-ba9876543210"]).values()) == ["a 0123", "a ba98"]


def test_pages_name_no_folders_of_people() -> None:
    given = {"a": ["/home/someone/models/m", "EleutherAI/pythia"], "b": {"c": "./models/m"}, "d": 3}
    assert short_paths(given) == {**given, "a": ["…/models/m", "EleutherAI/pythia"]}
