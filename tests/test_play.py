import io
import sys
import types

import ipywidgets as widgets
import numpy as np
import pytest
from PIL import Image
from test_data import TASK

from helpers import play, show
from helpers.data import Split


@pytest.fixture
def split():
    labels = np.random.default_rng(0).integers(0, 4, (9, 16, 16)).astype(np.uint8)
    return Split("test", (labels * 60)[..., None], labels, np.array(list("aaabbbbbc")), TASK)


def controls(panel):
    """All controls of a panel by their description."""
    found, rest = {}, [panel]
    while rest:
        widget = rest.pop()
        rest += getattr(widget, "children", ())
        found[getattr(widget, "description", "") or type(widget).__name__] = widget
    return found


def test_every_control_of_the_browser_changes_the_picture_once(split, monkeypatch):
    drawn, overlay = [], show.overlay
    monkeypatch.setattr(show, "overlay", lambda *words: drawn.append(words) or overlay(*words))
    unsure = []
    found = controls(play.browser(split, np.roll(split.labels, 1, axis=2),
                                  lambda images: unsure.append(images) or images[..., 0] / 255).panel)
    picture, slices = found["Image"], found["slice"]
    assert (slices.max, slices.value) == (3, 2) and Image.open(io.BytesIO(picture.value)).size[0] > 500
    seen = {picture.value}
    for name, value in (("slice", 3), ("opacity", 1.0), ("CSF", False), ("show", "truth"), ("show", "error"),
                        ("show", "uncertainty"), ("subject", "b"), ("slice", 5), ("subject", "a"), ("subject", "c")):
        found[name].value = value
        assert picture.value not in seen, name
        seen.add(picture.value)
        assert len(drawn) == len(seen), name
    assert (slices.max, slices.value) == (1, 1)
    assert len(unsure) == 5 and np.array_equal(unsure[0], split.images[[2]])  # only when uncertainty is in view


def test_what_the_browser_draws_is_the_slice_chosen(split, monkeypatch):
    drawn, overlay = [], show.overlay
    monkeypatch.setattr(show, "overlay", lambda *words: drawn.append(words[1:]) or overlay(*words))
    found = controls(play.browser(split).panel)
    assert found["show"].options == ("labels",)
    found["subject"].value = "b"
    found["slice"].value = 5
    found["grey matter"].value = False
    assert drawn[0] == (1, "labels", None, None, 0.5, [1, 2, 3])
    assert drawn[-1] == (7, "labels", None, None, 0.5, [1, 3])


def test_shown_where_widgets_are_not_alive(split, monkeypatch):
    sent = []
    monkeypatch.setattr(play, "display", lambda *content, **options: sent.append((content[0], options)))
    made = play.browser(split, split.labels)
    made._ipython_display_()
    bundle, options = sent[-1]
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == made.panel.model_id and bundle["image/png"].startswith("iVBOR")
    assert options["metadata"] == {"image/png": {"alt": "toy: a. A slice, bare and under its prediction."}}
    monkeypatch.setenv("STATIC", "1")
    made._ipython_display_()
    assert sent[-1][0].keys() == {"text/plain", "image/png"}
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    made._ipython_display_()
    assert isinstance(sent[-1][0], widgets.Widget)
