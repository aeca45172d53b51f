"""Make the page of one or several runs of a lake and write it, with a PNG of every figure beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jacobian_core.lake import files
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import LakePath

if TYPE_CHECKING:
    import pyarrow as pa

PAGE_NAME = "report.html"


@dataclass(frozen=True)
class WrittenPage:
    """The page's file, and the PNG files of its figures with their captions, both by title."""

    path: LakePath
    images: dict[str, LakePath]
    captions: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The paths of all of them."""
        return [str(self.path), *map(str, self.images.values())]


def write_page(
    lake: Lake,
    run_ids: Sequence[str],
    folder: LakePath | None = None,
    known: Mapping[str, Mapping[str, pa.Table]] | None = None,
) -> WrittenPage:
    """Write `report.html` and the figures' PNG files into `folder`, by default the reports' folder of the run.

    Several runs are laid over each other, in the order given. `known` holds reports, by run and name, that were run
    already. Raises QueryError for an unknown run or too many, LakeError where a part breaks its contract or the folder
    can't be written; each file is then the old one or the new one.
    """
    from jacobian_core.page.canvas import png_of
    from jacobian_core.page.document import page
    from jacobian_core.page.gather import gather_runs
    from jacobian_core.page.sections import draw_all
    from jacobian_core.sql.warehouse import connect

    chosen = list(dict.fromkeys(run_ids))
    with connect(lake, chosen) as connection:
        runs = gather_runs(connection, lake, chosen, known)
    pictures = draw_all(runs)
    target = folder if folder is not None else default_folder(lake, chosen)
    images = {}
    for picture in (p for group in pictures.values() for p in group):
        images[picture.title] = target / f"{picture.name}.png"
        files.write_atomic(images[picture.title], png_of(picture.figure))
    path = target / PAGE_NAME
    files.write_atomic(path, page(runs, pictures).encode())
    return WrittenPage(path, images, {p.title: p.caption for group in pictures.values() for p in group})


def default_folder(lake: Lake, run_ids: Sequence[str]) -> LakePath:
    """Where the page of these runs belongs in the lake: beside the run's reports, or a folder of the comparison."""
    if len(run_ids) == 1:
        return lake.report_folder(run_ids[0])
    return lake.report_folder("comparison-" + hashlib.sha256("\n".join(run_ids).encode()).hexdigest()[:12])
