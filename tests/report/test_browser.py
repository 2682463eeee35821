"""The page in a real browser: it loads without a complaint, shows its pictures, fits and can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from unmask.report import Page, render_page

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
# The contrast (WCAG 2) of every element that holds words against the nearest painted ground behind it.
CONTRASTS = """
const paint = colour => {
  const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
  return {light: [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0), seen: a > 0};
};
const ground = e => {
  for (; e; e = e.parentElement) {
    const here = paint(getComputedStyle(e).backgroundColor);
    if (here.seen) return here.light;
  }
  return 1;
};
return [...document.querySelectorAll('body *')]
  .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.tagName !== 'title')
  .map(e => {
    const inside = e.namespaceURI.endsWith('svg');
    const a = paint(getComputedStyle(e)[inside ? 'fill' : 'color']).light, b = ground(e);
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent];
  });
"""


@pytest.fixture(scope="module")
def browser(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip("needs Debian's chromium and chromium-driver")
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in [*OPTIONS.split(), f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    (folder / "report.html").write_text(render_page(page), encoding="utf-8")
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.get((folder / "report.html").as_uri())
        yield driver
    finally:
        driver.quit()


def resize(browser: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_it_loads_without_a_complaint_and_runs_nothing(browser: webdriver.Chrome, page: Page) -> None:
    assert browser.get_log("browser") == []
    assert browser.title == f"{page.run} · unmask"
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_every_picture_is_decoded(browser: webdriver.Chrome, page: Page) -> None:
    widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    cells = [cell for f in page.figures for sheet in f.sheets.values() for row in sheet.rows for cell in row]
    assert len(widths) == len(cells)
    assert min(widths) > 0


@pytest.mark.parametrize("width", [380, 768, 1400, 1600])
@pytest.mark.parametrize("unfolded", [False, True])
def test_it_fits_the_width(browser: webdriver.Chrome, width: int, unfolded: bool) -> None:
    resize(browser, width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = arguments[0])", unfolded)
    needed, given = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert needed <= given <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_words_can_be_read(browser: webdriver.Chrome, scheme: str) -> None:
    resize(browser, 1400)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 200
    assert [words for contrast, words in contrasts if contrast < 4.5] == []
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 3 * 128
    assert dark == (scheme == "dark")
