"""The slice browser in a real browser: headless Chromium against JupyterLab."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import ipywidgets
import nbformat
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
CELL = """
import numpy as np
from helpers import data, play
labels = np.random.default_rng(0).integers(0, 4, (6, 32, 32)).astype(np.uint8)
task = data.Task("toy", data.TISSUES, "made here")
split = data.Split("test", (labels * 60)[..., None], labels, np.array(list("aaabbb")), task)
play.browser(split, np.roll(labels, 1, axis=2))
"""

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
              pytest.mark.skipif(int(ipywidgets.__version__.split(".")[0]) < 8,
                                 reason="ipywidgets 7 is Colab's; JupyterLab 4 needs 8")]


@pytest.fixture
def lab(tmp_path):
    """Address of a JupyterLab server whose folder holds one notebook."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(book, tmp_path / "book.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "RUNTIME", "DATA")}
    environment = os.environ | folders | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--port-retries=0",
         "--IdentityProvider.token=t", f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None"],
        cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=(tmp_path / "log").open("w"))
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token=t", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield f"{address}/lab/tree/book.ipynb?token=t"
    finally:
        server.terminate()
        server.wait(30)


def test_moving_a_slider_changes_the_picture(lab):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as player:
        page = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS).new_page(
            viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(120_000)
        dialog = page.locator(".jp-Dialog")  # of a server that answered late, on a busy machine; it keeps clicks away
        page.add_locator_handler(dialog, lambda: dialog.locator("button.jp-mod-accept").first.click())
        page.goto(lab)
        picture = page.locator("img.widget-image, .widget-image img").first
        for _ in range(10):  # a key pressed while JupyterLab is still starting is lost
            page.locator(".jp-CodeCell .cm-content").first.click()
            page.keyboard.press("Control+Enter")
            try:
                picture.wait_for(timeout=30_000)
                break
            except playwright.TimeoutError:
                continue
        first = picture.get_attribute("src")
        page.locator(".widget-slider .noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("([old]) => document.querySelector('img.widget-image, .widget-image img').src != old",
                               arg=[first])
        assert "3" in page.locator(".widget-slider .widget-readout").first.inner_text()
        moved = picture.get_attribute("src")
        page.locator("button", has_text="error").first.click()
        page.wait_for_function("([old]) => document.querySelector('img.widget-image, .widget-image img').src != old",
                               arg=[moved])
        if os.environ.get("SCREENSHOT"):
            page.screenshot(path=os.environ["SCREENSHOT"])
