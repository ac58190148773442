"""A slice browser for a live notebook.

It uses what ipywidgets 7 and 8 have in common. Where nobody can move a slider, on GitHub or in a PDF, the picture
that it starts with stands in its place.
"""

import base64
import os

import ipywidgets as widgets
from IPython.display import display

from helpers import colab, show


def browser(split, labels=None, doubt=None):
    """Look through a split slice by slice: subject, slice, what to lay over it, how opaque, which labels.

    `labels` (N, H, W) are predictions; without them only the split's own labels can be shown. `doubt` maps images
    (n, H, W, C) to uncertainty (n, H, W), 0 to 1; it is called for the slice in view only.
    """
    layers = ["labels"] if labels is None else ["truth", "prediction", "error", *["uncertainty"] * (doubt is not None)]
    names = sorted(set(split.subjects.tolist()))
    subject = widgets.Dropdown(options=names, description="subject")
    place = widgets.IntSlider(description="slice", min=1, max=1, continuous_update=False)
    layer = widgets.ToggleButtons(options=layers, value=layers[len(layers) > 1], description="show")
    opacity = widgets.FloatSlider(description="opacity", value=0.5, min=0, max=1, step=0.1, continuous_update=False)
    toggles = [widgets.ToggleButton(value=True, description=name) for name in split.task.names[1:]]
    picture = widgets.Image(format="png", layout={"align_self": "flex-start", "max_width": "100%"})
    own = {name: [i for i, s in enumerate(split.subjects.tolist()) if s == name] for name in names}

    def draw(*_):
        """Bring the picture up to date with the controls."""
        index = own[subject.value][place.value - 1]
        shown = [k for k, toggle in enumerate(toggles, start=1) if toggle.value]
        picture.value = (drawn := show.overlay(split, index, layer.value, labels, doubt, opacity.value, shown)).png()
        return drawn

    def other_subject(*_):
        """Start in the middle of the subject's slices, drawn once."""
        place.unobserve(draw, names="value")
        place.max = len(own[subject.value])
        place.value = (place.max + 1) // 2
        place.observe(draw, names="value")
        return draw()

    for control in (place, layer, opacity, *toggles):
        control.observe(draw, names="value")
    subject.observe(other_subject, names="value")
    first = other_subject()
    rows = [[subject, place], [layer], [opacity, *toggles]]
    return Playable(widgets.VBox([*(widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows), picture]), first)


class Playable:
    """A widget that has a picture in its place where widgets are not alive; with STATIC set, the picture alone."""

    def __init__(self, panel, picture):
        self.panel, self.picture = panel, picture

    def _ipython_display_(self):
        if colab.in_colab():
            return display(self.panel)
        bundle = {"text/plain": "A widget: run the notebook to use it.",
                  "image/png": base64.b64encode(self.picture.png()).decode()}
        if not os.environ.get("STATIC"):
            bundle["application/vnd.jupyter.widget-view+json"] = {
                "version_major": 2, "version_minor": 0, "model_id": self.panel.model_id}
        display(bundle, raw=True, metadata={"image/png": {"alt": self.picture.alt}})
