import io
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image
from test_data import TASK

from helpers import evaluate, model, preprocess, show
from helpers.data import Box, Dataset, Split


ROOT = Path(__file__).parent.parent


@pytest.fixture
def split():
    """Two subjects of four slices 16x16, whose greys are 60 times the label."""
    labels = np.random.default_rng(0).integers(0, 4, (8, 16, 16)).astype(np.uint8)
    return Split("test", (labels * 60)[..., None], labels, np.array(list("aaaabbbb")), TASK)


@pytest.fixture
def guesses(split):
    """Predictions with one wrong pixel in each slice of b, and a quarter of a's third slice wrong."""
    made = split.labels.copy()
    made[4:, 0, 0] = (made[4:, 0, 0] + 1) % 4
    made[2, :4] = (made[2, :4] + 1) % 4
    return made


def drawn(picture, panel, layer=0):
    return picture.figure.axes[panel].images[layer].get_array()


def titles(picture):
    return [ax.get_title() for ax in picture.figure.axes]


def test_a_picture_is_a_png_with_alternative_text(split, tmp_path):
    picture = show.pairs(split, 2)
    formats, metadata = DisplayFormatter().format(picture)  # as a notebook does
    assert formats["text/plain"] == metadata["image/png"]["alt"] == (
        "toy: the test split and its labels. 2 slices in a row; below each its mask, a colour a label: background, "
        "CSF, grey matter, white matter.")
    opened = Image.open(io.BytesIO(formats["image/png"]))
    assert (opened.format, opened.width) == ("PNG", 2 * 3 * 80)  # two panels of 3 inches, 80 pixels an inch


def test_pictures_are_alike_whatever_the_readers_settings_are(tmp_path):
    code = ("import matplotlib, numpy as np; from helpers import show; fig, axes = show.axes_of(title='a title'); "
            "import IPython; from IPython.core.formatters import DisplayFormatter as F; "
            "axes[0, 0].plot([1, 2]); picture = show.Picture(fig, 'alt'); "
            "print(sorted(F().format(picture)[0]), fig.get_facecolor(), fig._suptitle.get_color(), "
            "fig._suptitle.get_usetex(), axes[0, 0].spines['top'].get_visible())")
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: black\nfigure.facecolor: black\ntext.color: white\n"
                                           "text.usetex: true\n")
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, env={
        **os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT), "MATPLOTLIBRC": str(tmp_path)})
    assert shown.stdout == "['image/png', 'text/plain'] (1.0, 1.0, 1.0, 1.0) black False False\n", shown.stderr


def test_pairs_show_each_slice_above_its_own_mask(split):
    picture = show.pairs(split, 2)
    assert titles(picture)[:2] == ["a", "b"]
    for column, index in ((0, 0), (1, 7)):
        assert np.array_equal(drawn(picture, column), split.images[index, ..., 0])
        assert np.array_equal(drawn(picture, 2 + column), split.labels[index])


def test_slices_are_cut_to_the_head(split):
    far = np.zeros((1, 64, 64, 1), np.uint8)
    far[0, 20:40, 3:50] = 200  # 20 x 47 pixels: 32 x 48, in multiples of 16, around the same middle
    one = Split("test", far, far[..., 0] * 0, np.array(["a"]), TASK)
    assert show.cropped(one, [0])[1] == Box(14, 2, 32, 48)
    assert drawn(show.overlay(one, 0, "truth"), 0).shape == (32, 48)
    assert drawn(show.augmented(one, 1.0, 1), 2).shape[1] < 64  # though noise fills the air


def test_augmented_shows_what_preprocess_makes(split):
    picture = show.augmented(split, 1.0, 2, seed=3)
    images, labels = preprocess.augment(split.images[[4, 4]], split.labels[[4, 4]], np.random.default_rng(3),
                                        split.task, 1.0)
    assert np.array_equal(drawn(picture, 0), split.images[4, ..., 0])
    assert np.array_equal(drawn(picture, 2), images[1, ..., 0]) and np.array_equal(drawn(picture, 5), labels[1])
    assert np.array_equal(drawn(show.augmented(split, None, 1), 1), split.images[4, ..., 0])


def test_network_connections_are_the_graphs():
    net = model.improved_unet((32, 32, 1), 4, filters=4, dropout=0.0, levels=3, supervised=2)
    expected = {("image", "input"), ("input", "down_1"), ("down_1", "context_1"), ("context_1", "down_2"),
                ("down_2", "context_2"), ("context_2", "down_3"), ("down_3", "context_3"), ("context_3", "up_2"),
                ("context_2", "localisation_2"), ("up_2", "localisation_2"), ("localisation_2", "up_1"),
                ("context_1", "localisation_1"), ("up_1", "localisation_1"), ("localisation_2", "output_2"),
                ("localisation_1", "output_1"), ("output_2", "output_1"), ("output_1", "output")}
    assert show.connections(net) == expected
    figure = show.network(net).figure
    assert figure.get_suptitle() == f"improved_unet: {net.count_params():,} weights"
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["8x8", "16x16", "32x32"]
    assert len(figure.axes[0].patches) == len({block for pair in expected for block in pair} - {"image"})


@pytest.fixture
def run(split):
    """What the curves ask of a run after two epochs, the first of which was better."""
    three = [Split(name, split.images + np.uint8(own), split.labels, np.array([name] * 8), TASK)
             for own, name in enumerate(("train", "validation", "test"))]
    history = pd.DataFrame({"loss": [2.0, 1.0], "val_loss": [1.5, 0.8]})
    for label in TASK.labels:
        history[f"val_dice {label.name}"] = [0.7, 0.6]
    return types.SimpleNamespace(history=history, best=0, task=TASK, dataset=Dataset(*three), box=Box(0, 0, 16, 16),
                                 recipe=types.SimpleNamespace(size=None))


def background(images):
    """The probabilities of a network that calls everything background."""
    return np.broadcast_to(np.eye(4, dtype="float32")[0], (*images.shape[:3], 4))


def test_curves_draw_the_history_and_what_is_wrong_now(run, split):
    picture = show.curves(run, background)
    losses, dice, _ = picture.figure.axes
    assert [line.get_ydata().tolist() for line in losses.lines] == [[2.0, 1.0], [1.5, 0.8]]
    assert losses.lines[0].get_xdata().tolist() == [1, 2] and dice.lines[0].get_ydata().tolist() == [0.7, 0.6]
    assert "kept: epoch 1" in [text.get_text() for text in dice.get_legend().get_texts()]
    assert np.array_equal(drawn(picture, 2, 1).filled(0), split.labels[4] > 0)
    assert len(show.curves(run).figure.axes) == 2


def test_live_draws_each_epoch_and_the_kept_network_in_one_place(run, monkeypatch):
    run.network, seen, places = lambda: background, [], []
    place = types.SimpleNamespace(update=seen.append)
    monkeypatch.setattr(show, "display", lambda nothing, display_id: places.append(nothing.data) or place)
    live, history = show.live(), run.history
    for epochs in (1, 2):
        run.history = history[:epochs]
        live(run, background)
    live(run, None)  # the end
    assert places == [""]
    assert [len(picture.figure.axes[0].lines[0].get_xdata()) for picture in seen] == [1, 2, 2]
    assert "over 2 epochs; the wrong pixels" in seen[2].alt


def test_boxes_show_every_subject(split, guesses):
    picture = show.boxes(evaluate.score(split, guesses), TASK)
    points = [line.get_ydata() for line in picture.figure.axes[0].lines if line.get_marker() == "o"]
    for number, values in enumerate(points):
        expected = [evaluate.dice(split.labels[own], guesses[own], 4)[number] for own in (slice(4), slice(4, 8))]
        assert values == pytest.approx(expected)


def test_comparison_shows_best_median_and_worst(split, guesses):
    four = Split("test", split.images, split.labels, np.array(list("aabbccdd")), TASK)  # errors: 0, 64, 2, 2
    scores = evaluate.score(four, guesses)
    picture = show.comparison(four, guesses, scores)
    first = [title.split("\n") for title in titles(picture)[::4]]
    assert [name for name, _ in first] == ["best: a", f"median: {scores.ranking[2]}", "worst: b"]
    assert first[0][1] == "mean Dice 1.000" and scores.ranking[2] in "cd"
    assert titles(picture)[3::4] == ["error: 0 pixels", "error: 1 pixels", "error: 0 pixels"]  # slices 1, 5 or 7, 3
    assert drawn(picture, 7, 1).count() == 1 and np.array_equal(drawn(picture, 9), split.labels[3])


def test_gallery_is_of_the_worst_slice_of_each_subject(split, guesses):
    guesses[5, :2], guesses[3, :3] = (guesses[5, :2] + 1) % 4, (guesses[3, :3] + 1) % 4  # 3 and 2 are of one subject
    scores = evaluate.score(split, guesses)
    picture = show.gallery(split, guesses, scores, n=2)
    for row, index in ((0, 2), (4, 5)):
        mean = np.mean(evaluate.dice(split.labels[index], guesses[index], 4)[1:])
        assert titles(picture)[row] == f"{split.subjects[index]}, slice {index % 4}\nmean Dice {mean:.3f}"
        assert np.array_equal(drawn(picture, row), split.images[index, ..., 0])
        assert np.array_equal(drawn(picture, row + 2), guesses[index])


def test_overlays_are_spread_and_show_labels_over_slices(split):
    picture = show.overlays(split, 2)
    assert titles(picture) == ["slice 3 of 8", "slice 6 of 8"]
    assert np.array_equal(drawn(picture, 1, 1).filled(0), split.labels[5])
    assert drawn(picture, 1, 1).count() == (split.labels[5] > 0).sum()  # background leaves the slice visible


def test_an_overlay_has_the_layer_and_labels_asked_for(split, guesses):
    two = show.overlay(split, 2, "prediction", guesses, opacity=0.3, shown=[2])
    assert set(drawn(two, 1, 1).compressed()) == {2} and two.figure.axes[1].images[1].get_alpha() == 0.3
    assert np.array_equal(drawn(two, 1, 1).filled(0) == 2, guesses[2] == 2)
    assert np.array_equal(drawn(show.overlay(split, 2, "truth", guesses), 1, 1).filled(0), split.labels[2])
    error = show.overlay(split, 2, "error", guesses)
    assert titles(error)[1] == "error: 64 pixels" and drawn(error, 1, 1).count() == 64
    asked = []
    unsure = show.overlay(split, 2, "uncertainty", guesses, lambda images: asked.append(images) or images[..., 0] / 255)
    assert np.array_equal(asked[0], split.images[[2]]) and np.array_equal(drawn(unsure, 1), asked[0][0, ..., 0] / 255)
    assert unsure.alt == "toy: a. A slice, bare and under its uncertainty."


def test_uncertainty_is_drawn_beside_its_errors_on_one_scale(split, guesses):
    unsure = np.random.default_rng(0).random(split.labels.shape) / 1000
    predictor = types.SimpleNamespace(doubt=lambda images: unsure[[np.flatnonzero(
        (split.images == image).all((1, 2, 3)))[0] for image in images]])
    picture = show.uncertainty(split, guesses, predictor, n=2)  # slices 2 and 5
    assert [drawn(picture, panel, 1).count() for panel in (1, 4)] == [64, 1]
    assert [np.array_equal(drawn(picture, panel), unsure[index]) for panel, index in ((2, 2), (5, 5))] == [True, True]
    assert picture.figure.axes[2].images[0].get_clim() == (0, 1)  # next to no uncertainty is dark


def test_source_is_read_from_the_module_that_runs():
    assert show.source(evaluate.dice).data.startswith("def dice(truth, guess, n_labels):\n")
