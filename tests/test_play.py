import io
import sys
import types

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_data import TASK

from helpers import play, predict, show
from helpers.data import DataError, Split


@pytest.fixture
def split():
    labels = np.random.default_rng(0).integers(0, 4, (8, 16, 16)).astype(np.uint8)
    return Split("test", (labels * 60)[..., None], labels, np.array(list("aaabbbbb")), TASK)


def controls(panel):
    """All controls of a panel by their description."""
    found, rest = {}, [panel]
    while rest:
        widget = rest.pop()
        rest += getattr(widget, "children", ())
        found[getattr(widget, "description", "") or type(widget).__name__] = widget
    return found


def test_every_control_of_the_browser_changes_the_picture(split):
    guesses = np.roll(split.labels, 1, axis=2)
    asked = []

    def unsure(images):
        asked.append(images)
        return np.full(images.shape[:3], 0.5)

    found = controls(play.browser(split, guesses, unsure).panel)
    picture, slices = found["Image"], found["slice"]
    assert (slices.max, slices.value) == (3, 2) and Image.open(io.BytesIO(picture.value)).size[0] > 500
    seen = {picture.value}
    for name, value in (("slice", 3), ("opacity", 1.0), ("CSF", False), ("show", "truth"), ("show", "error"),
                        ("show", "uncertainty"), ("subject", "b")):
        found[name].value = value
        assert picture.value not in seen, name
        seen.add(picture.value)
    assert (slices.max, slices.value) == (5, 3)
    assert len(asked) == 2 and np.array_equal(asked[0][0], split.images[2])  # only when uncertainty is in view


def test_what_the_browser_draws_is_the_slice_chosen(split, monkeypatch):
    drawn = []
    monkeypatch.setattr(show, "one", lambda *all_: drawn.append(all_) or show.figure()[0])
    found = controls(play.browser(split).panel)
    assert found["show"].options == ("labels",)
    found["subject"].value = "b"
    found["slice"].value = 5
    found["grey matter"].value = False
    _, index, layer, guesses, unsure, opacity, shown = drawn[-1]
    assert (index, layer, guesses, unsure, opacity, shown) == (7, "labels", None, None, 0.5, [1, 3])


def test_shown_where_widgets_are_not_alive(split, monkeypatch):
    sent = []
    monkeypatch.setattr(play, "display", lambda *content, **options: sent.append(content[0]))
    made = play.browser(split)
    made._ipython_display_()
    view = sent[-1]["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == made.panel.model_id and sent[-1]["image/png"].startswith("iVBOR")
    monkeypatch.setenv("STATIC", "1")
    made._ipython_display_()
    assert sent[-1].keys() == {"text/plain", "image/png"}
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    made._ipython_display_()
    assert isinstance(sent[-1], widgets.Widget)


def test_the_picker_shows_the_scan_or_what_is_wrong(split, monkeypatch, tmp_path):
    asked = []

    def scan(network, file, task, folder, mirrors):
        asked.append(file)
        assert mirrors == (1,)
        if "bad" in str(file):
            raise DataError(f"{file} <is> bad")
        return predict.Segmented(split, tmp_path / "mask.png", pd.DataFrame({"voxels": [1]}))

    monkeypatch.setattr(predict, "scan", scan)
    other = predict.Segmented(split, tmp_path / "other.png", pd.DataFrame({"voxels": [1]}))
    made = play.picker(None, TASK, tmp_path, (1,), other)
    assert made.png.startswith(b"\x89PNG") and play.picker(None, TASK, tmp_path).png is None
    found, panel = controls(made.panel), made.panel
    assert "other.png" in found["HTML"].value and "Image" in found
    found["Text"].value = "good.png"
    assert "mask.png" in found["HTML"].value and "Image" in controls(panel)
    found["Text"].value = "bad.png"
    assert "bad.png &lt;is&gt; bad" in found["HTML"].value and "Image" not in controls(panel)
    uploaded = ({"name": "a.img", "content": memoryview(b"i")}, {"name": "../a.hdr", "content": memoryview(b"h")})
    found["a scan"].notify_change({"name": "value", "type": "change", "new": uploaded, "old": (),
                                   "owner": found["a scan"]})
    assert asked[-1].parent.parent == tmp_path / "uploads" and asked[-1].with_suffix(".hdr").read_bytes() == b"h"
    assert asked[-1].with_suffix(".img").read_bytes() == b"i"
    several = tuple({"name": f"<{n}>.png", "content": memoryview(b"")} for n in "ab")
    found["a scan"].notify_change({"name": "value", "type": "change", "new": several, "old": (),
                                   "owner": found["a scan"]})
    assert "2 scans were uploaded: &lt;a&gt;.png, &lt;b&gt;.png" in found["HTML"].value and len(asked) == 3
    assert play.uploads({"a.png": {"content": b"x"}}) == [("a.png", b"x")]  # ipywidgets 7


def test_live_curves_grow_and_go(tmp_path, monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=lambda made, **options: shown.append(made))
    monkeypatch.setattr(play, "display", lambda made, raw, display_id: handle)
    live = play.Live(tmp_path, TASK)
    live.on_train_begin()
    row = {"loss": 1.0, "val_loss": 1.0, "val_worst dice": 0.5} | {f"val_dice {la.name}": 0.5 for la in TASK.labels}
    for epoch in range(2):
        pd.DataFrame([row] * (epoch + 1)).rename_axis("epoch").to_csv(tmp_path / "history.csv")
        live.on_epoch_end(epoch)
    assert [len(made.axes[0].lines[0].get_xdata()) for made in shown] == [1, 2]
    live.on_train_end()
    assert shown[-1] == {"text/plain": ""}


