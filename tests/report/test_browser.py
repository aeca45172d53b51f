"""The page in a real browser, where one is installed: it fits a phone, light and dark differ, nothing is fetched."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jacobian_core.page.write import WrittenPage
from tests.report.conftest import text_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
PHONE = 390
_ASK = """<script>
const wide = [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg')
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className);
const small = [...document.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().height < 9).length;
document.title = JSON.stringify({asked: innerWidth, needed: document.documentElement.scrollWidth,
  dark: getComputedStyle(document.body).backgroundColor, wide, small,
  series: getComputedStyle(document.documentElement).getPropertyValue('--series-1')});
</script>"""


def _chromium(folder: Path, *arguments: str) -> str:
    quiet = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]  # fmt: skip
    done = subprocess.run([str(CHROMIUM), *quiet, *arguments], capture_output=True, text=True, timeout=120)
    return done.stdout


def _asked(folder: Path, page: str, width: int, scheme: int) -> dict[str, object]:
    """What the page says of itself at a width; the copy that is asked may run our one script.

    A headless window is never narrower than 500 pixels, but a frame in it is.
    """
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (folder / "asked.html").write_text(open_page.replace("</body>", f"{_ASK}</body>"), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="asked.html" width="{width}" height="800" style="border:0"></iframe>'
        "<script>f.onload = () => { document.title = f.contentDocument.title }</script>"
    )
    colours = f"--blink-settings=preferredColorScheme={scheme}"
    dom = _chromium(
        folder, "--allow-file-access-from-files", "--virtual-time-budget=4000", colours, "--dump-dom", frame.as_uri()
    )
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title, dom[:500]
    found: dict[str, object] = json.loads(html.unescape(title[1]))
    return found


@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_page_fits_a_phone(both: WrittenPage, tmp_path: Path, scheme: int) -> None:
    found = _asked(tmp_path, text_of(both), PHONE, scheme)
    assert found["asked"] == PHONE
    assert found["needed"] == PHONE
    assert found["wide"] == []
    assert found["small"] == 0
    assert found["series"] == ("#56b4e9" if scheme == 0 else "#0072b2")


def test_a_page_that_does_not_fit_is_noticed(both: WrittenPage, tmp_path: Path) -> None:
    page = text_of(both).replace("<main>", '<main><div style="width:600px">x</div>', 1)
    assert int(str(_asked(tmp_path, page, PHONE, 1)["needed"])) >= 600
