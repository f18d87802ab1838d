"""A page in headless Chromium, for tests that look at it as a person would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def chromium() -> str:
    """Path of Chromium; skips the test without it, and fails it on a build server."""
    found = shutil.which("chromium")
    try:
        import playwright  # noqa: F401
    except ImportError:
        found = None
    if found:
        return found
    reason = "no chromium in the PATH, or no playwright: install both to open the page in a browser"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def opened(path: Path, scheme: str = "light", width: int = 1280) -> Iterator[Any]:
    """The page in headless Chromium; any request that leaves the file and any message of the console fails."""
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_ARGUMENTS))
        view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.on("request", lambda request: complaints.append(request.url) if not local(request.url) else None)
        view.goto(path.as_uri())
        view.wait_for_selector("html[data-drawn]", timeout=60_000)
        yield view
        view.wait_for_timeout(200)
        browser.close()
    assert complaints == [], complaints


def local(address: str) -> bool:
    return address.startswith(("file:", "data:", "blob:"))


def steady_box(view: Any, selector: str) -> dict[str, float]:
    """Where an element stands, once two looks in a row find it in the same place."""
    before = None
    for _ in range(100):
        view.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box = view.locator(selector).first.bounding_box()
        if box is not None and box == before:
            return box
        before = box
    raise AssertionError(f"{selector} does not come to rest; last seen at {before}")


def hover_cell(view: Any, plot: int, row: int, column: int, shape: tuple[int, int]) -> str:
    """Words of the hover label after pointing at one cell of a heatmap."""
    view.locator(".plot").nth(plot).scroll_into_view_if_needed()
    box = view.locator(".plot").nth(plot).locator(".nsewdrag").first.bounding_box()
    x = box["x"] + (column + 0.5) * box["width"] / shape[1]
    y = box["y"] + (row + 0.5) * box["height"] / shape[0]
    view.mouse.move(x - 2, y - 2)
    view.mouse.move(x, y, steps=3)
    label = view.locator(".plot").nth(plot).locator(".hoverlayer .hovertext")
    label.wait_for(timeout=10_000)
    return label.text_content()
