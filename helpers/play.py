"""Things to play with in a live notebook: a slice browser, curves that grow while training, a picker for scans.

They use what ipywidgets 7 and 8 have in common. Where nobody can move a slider, on GitHub or in a PDF, the picture
that a widget starts with stands in its place.
"""

import base64
import html
import io
import os
import tempfile
from pathlib import Path

import ipywidgets as widgets
from IPython.display import display

from helpers import colab, predict, show, train
from helpers.backend import keras
from helpers.data import DataError

LAYERS = ("truth", "prediction", "error", "uncertainty")


class Live(keras.callbacks.Callback):
    """Curves of loss and Dice that grow with every epoch of the run in the folder `run`, and go when it ends."""

    def __init__(self, run, task):
        super().__init__()
        self.run, self.task, self.handle = run, task, None

    def on_train_begin(self, logs=None):
        """Take a place in the notebook."""
        if not os.environ.get("STATIC"):
            self.handle = display({"text/plain": ""}, raw=True, display_id=True)

    def on_epoch_end(self, epoch, logs=None):
        """Draw the history so far in the place of the last drawing."""
        if self.handle:
            self.handle.update(show.curves(train.read_history(self.run), self.task))

    def on_train_end(self, logs=None):
        """Leave the place to what the notebook shows next."""
        if self.handle:
            self.handle.update({"text/plain": ""}, raw=True)


def browser(split, guesses=None, unsure=None):
    """Look through a split slice by slice: subject, slice, what to lay over it, how opaque, which labels.

    `guesses` (N, H, W) are predictions; without them only the split's own labels can be shown. `unsure` maps images
    (n, H, W, C) to uncertainty (n, H, W), 0 to 1; it is called for the slice in view only.
    """
    layers = ["labels"] if guesses is None else LAYERS[:3] if unsure is None else LAYERS
    names = sorted(set(split.subjects.tolist()))
    subject = widgets.Dropdown(options=names, description="subject")
    place = widgets.IntSlider(description="slice", min=1, max=1, continuous_update=False)
    layer = widgets.ToggleButtons(options=layers, value=layers[len(layers) > 1], description="show")
    opacity = widgets.FloatSlider(description="opacity", value=0.5, min=0, max=1, step=0.1, continuous_update=False)
    labels = [widgets.ToggleButton(value=True, description=label.name) for label in split.task.labels[1:]]
    picture = widgets.Image(format="png", layout={"align_self": "flex-start", "max_width": "100%"})
    own = {name: [i for i, s in enumerate(split.subjects.tolist()) if s == name] for name in names}

    def draw(*_):
        """Bring the picture up to date with the controls."""
        index = own[subject.value][place.value - 1]
        shown = [k for k, label in enumerate(labels, start=1) if label.value]
        made = show.one(split, index, layer.value, guesses, unsure, opacity.value, shown)
        picture.value = as_png(made)

    def other_subject(*_):
        """Start in the middle of the subject's slices."""
        with place.hold_trait_notifications():
            place.max = len(own[subject.value])
            place.value = (place.max + 1) // 2
        draw()

    other_subject()
    subject.observe(other_subject, names="value")
    for control in (place, layer, opacity, *labels):
        control.observe(draw, names="value")
    rows = [[subject, place], [layer], [opacity, *labels]]
    panel = widgets.VBox([*(widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows), picture])
    return Playable(panel, bytes(picture.value))


def picker(network, task, folder, mirrors=(), found=None):
    """Choose a scan of your own: upload it (an Analyze volume: both files), or give its path; see it segmented.

    `mirrors` as in `predict.scan`; `found`, what that returned for some scan, is shown until another is chosen.
    """
    upload = widgets.FileUpload(multiple=True, description="a scan")
    path = widgets.Text(placeholder="or its path, then Enter", continuous_update=False, layout={"width": "60%"})
    said, place = widgets.HTML(), widgets.VBox()

    def look(found):
        """Show a segmented scan; the bytes of its picture."""
        slices = browser(found.split)
        said.value, place.children = found._repr_html_(), (slices.panel,)
        return slices.png

    def segment(file):
        """Show a file's labels, or what is wrong with it."""
        try:
            look(predict.scan(network, file, task, folder, mirrors))
        except DataError as error:
            said.value, place.children = html.escape(str(error)), ()

    def uploaded(change):
        """Write what was uploaded into the run's folder and segment it."""
        (Path(folder) / "uploads").mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=Path(folder) / "uploads"))  # never half of an earlier pair
        files = [keep_upload(*item, own) for item in uploads(change["new"])]
        scans = {file.with_suffix("") if file.suffix.lower() in (".hdr", ".img") else file for file in files}
        if len(scans) == 1:
            segment(files[0])
        elif scans:
            names = ", ".join(file.name for file in files)
            said.value, place.children = html.escape(f"{len(scans)} scans were uploaded: {names}. Choose one."), ()

    upload.observe(uploaded, names="value")
    path.observe(lambda change: segment(change["new"]) if change["new"] else None, names="value")
    return Playable(widgets.VBox([widgets.HBox([upload, path]), said, place]), found and look(found))


def uploads(value):
    """(name, bytes) of each uploaded file: ipywidgets 7 gives a dict, 8 a tuple."""
    if isinstance(value, dict):
        return [(name, item["content"]) for name, item in value.items()]
    return [(item["name"], bytes(item["content"])) for item in value]


def keep_upload(name, content, folder):
    """Write one uploaded file, under its own name, into a folder; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / Path(name.replace("\\", "/")).name
    file.write_bytes(content)
    return file


def as_png(made):
    """A figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    made.savefig(stream, format="png")
    return stream.getvalue()


class Playable:
    """A widget that has a PNG in its place where widgets are not alive; with STATIC set, the PNG alone."""

    def __init__(self, panel, png=None):
        self.panel, self.png = panel, png

    def _ipython_display_(self):
        if colab.in_colab():
            display(self.panel)
            return
        bundle = {"text/plain": "A widget: run the notebook to use it."}
        if self.png:
            bundle["image/png"] = base64.b64encode(self.png).decode()
        if not os.environ.get("STATIC"):
            bundle["application/vnd.jupyter.widget-view+json"] = {
                "version_major": 2, "version_minor": 0, "model_id": self.panel.model_id}
        display(bundle, raw=True)
