"""The report in a real headless Chromium: nothing on the console, nothing missing, nothing wider
than the window.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement, width = root.clientWidth;
  const seen = (e) => !e.closest(".scroll") && e.getClientRects().length;
  const past = (e) => e.getBoundingClientRect().right > width + 1;
  const wide = [...document.querySelectorAll("body *")].filter((e) => seen(e) && past(e)).map((e) => e.outerHTML.slice(0, 80));
  const before = getComputedStyle(document.body).backgroundColor;
  document.getElementById("theme").click();
  const after = getComputedStyle(document.body).backgroundColor;
  const key = document.querySelector("header .legend button");
  key.click();
  const dimmed = [...document.querySelectorAll("svg g[data-series]")].filter((g) => getComputedStyle(g).opacity < 0.5).length;
  key.click();
  const mark = document.querySelector(".panel svg circle");
  mark.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 20, clientY: 200}));
  parent.document.documentElement.dataset.probe = JSON.stringify({
    window: innerWidth, page: root.scrollWidth, wide: wide.slice(0, 5), before, after, dimmed,
    tip: document.getElementById("tip").textContent,
    empty: [...document.querySelectorAll(".panel svg")].filter((s) => s.getBoundingClientRect().height < 40 &&
      !s.closest("details:not([open])")).length,
    sections: [...document.querySelectorAll("main > section")].map((s) => s.id),
  });
}, 50));</script></body>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(
            f"no Chromium on the PATH ({', '.join(NAMES)}); on Debian: apt-get install chromium"
        )
    return found


def look(
    chromium: str, page: Path, folder: Path, width: int, dark: bool
) -> tuple[dict[str, Any], str]:
    """What the probe found, and what the browser wrote on its console.

    The page stands in a frame of the wanted width, since a headless window is never narrower than
    500 pixels.
    """
    frame = html.escape(page.read_text(encoding="utf-8").replace("</body>", PROBE), quote=True)
    outer = folder / "outer.html"
    head = "<!doctype html><meta charset=utf-8><style>:root{color-scheme:light dark}body{margin:0}iframe{border:0}</style>"
    outer.write_text(
        f'{head}<iframe width="{width}" height="900" srcdoc="{frame}"></iframe>', encoding="utf-8"
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    flags += [
        "--no-first-run",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,950",
    ]
    flags += (
        ["--blink-settings=preferredColorScheme=0"]
        if dark
        else ["--blink-settings=preferredColorScheme=1"]
    )
    command = [chromium, *flags, "--virtual-time-budget=4000", "--dump-dom", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    probe = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert probe is not None, f"the page did not run: {done.stderr[-2000:]}"
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(probe[1])), console


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_opens(
    chromium: str, written: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    page = written / "index.html"
    text = page.read_text(encoding="utf-8")
    found, console = look(chromium, page, tmp_path, width, dark)
    assert console == ""
    assert found["window"] == width
    assert found["page"] <= width, found["wide"]
    assert found["wide"] == []
    assert found["empty"] == 0
    assert found["sections"] == re.findall(r'<section id="([^"]+)"', text)
    assert len(found["sections"]) >= 13
    light, night = "rgb(255, 255, 255)", "rgb(20, 23, 29)"
    assert (found["before"], found["after"]) == ((night, light) if dark else (light, night))
    assert found["dimmed"] > 20
    assert found["tip"]


def test_the_probe_detects_a_broken_page(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    body = '<header><ul class="legend"><button data-key="a">a</button></ul></header><button id="theme"></button><p id="tip">t</p>'
    wide = '<div class="panel" style="width:3000px"><svg><circle r="1"/></svg></div><script>missing()</script>'
    page.write_text(f"<!doctype html><body>{body}<figure>{wide}</figure></body>", encoding="utf-8")
    found, console = look(chromium, page, tmp_path, 390, False)
    assert "missing is not defined" in console
    assert found["page"] > 390
    assert found["wide"]
