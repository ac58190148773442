import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_data import TASK

from helpers import evaluate, model, preprocess, show
from helpers.data import Split


@pytest.fixture
def split():
    labels = np.random.default_rng(0).integers(0, 4, (8, 16, 16)).astype(np.uint8)
    return Split("test", (labels * 60)[..., None], labels, np.array(list("aaaabbbb")), TASK)


def texts(figure):
    axes = [t for ax in figure.axes for t in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel())]
    return " | ".join([figure.get_suptitle(), *axes])


def test_pairs_show_slice_and_its_own_mask(split):
    figure = show.pairs(split, 2)
    shown = [ax.images[0].get_array() for ax in figure.axes]
    assert np.array_equal(shown[1], shown[3] * 60) and "toy" in texts(figure)


def test_augmented_shows_what_preprocess_makes(split):
    figure = show.augmented(split, 0.5, 2, seed=3)
    images, _ = preprocess.augment(split.images[[4, 4]], split.labels[[4, 4]], np.random.default_rng(3), (1,), 0.5)
    assert np.array_equal(figure.axes[1].images[0].get_array(), images[0, ..., 0])


def test_network_connections_are_the_graphs():
    net = model.improved_unet((32, 32, 1), 4, levels=3)
    expected = {("image", "input"), ("input", "open_1"), ("open_1", "context_1"), ("context_1", "open_2"),
                ("open_2", "context_2"), ("context_2", "open_3"), ("open_3", "context_3"), ("context_3", "up_2"),
                ("context_2", "localisation_2"), ("up_2", "localisation_2"), ("localisation_2", "up_1"),
                ("context_1", "localisation_1"),
                ("up_1", "localisation_1"), ("localisation_2", "segment_2"), ("localisation_1", "segment_1"),
                ("segment_2", "segment_1"), ("segment_1", "segment")}
    assert show.connections(net) == expected
    assert f"{net.count_params():,} weights" in texts(show.network(net))


def test_curves_draw_the_history():
    history = pd.DataFrame({"loss": [2.0, 1.0], "val_loss": [1.5, 0.8], "val_worst dice": [0.6, 0.5]})
    for label in TASK.labels:
        history[f"val_dice {label.name}"] = [0.6, 0.7]
    losses, dice = show.curves(history, TASK).axes
    lines = losses.lines
    assert lines[0].get_ydata().tolist() == [2.0, 1.0] and lines[1].get_ydata().tolist() == [1.5, 0.8]
    assert lines[0].get_xdata().tolist() == [1, 2]
    assert "kept: epoch 1" in " ".join(t.get_text() for t in dice.get_legend().get_texts())


def test_an_overlay_draws_the_labels_asked_for(split):
    figure = show.overlays(split, 2)
    drawn = figure.axes[0].images[1].get_array()
    index = 2 if "slice 3 of 8" in texts(figure) else None
    assert drawn.count() == (split.labels[index] > 0).sum()
    _, [[ax]] = show.figure()
    show.draw_overlay(ax, split.images[0], split.labels[0], TASK, opacity=0.3, shown=[2])
    assert set(ax.images[1].get_array().compressed()) == {2} and ax.images[1].get_alpha() == 0.3


def test_boxes_and_comparison(split):
    guesses = split.labels.copy()
    guesses[4:, 0, 0] = (guesses[4:, 0, 0] + 1) % 4  # one wrong pixel of 256 in each slice of b
    scores = evaluate.score(split, guesses)
    assert "Dice of each subject" in texts(show.boxes(scores, TASK))
    figure = show.comparison(split, guesses, scores.worst, n=2)
    assert "toy, test: b" in texts(figure) and "error: 0.39 % of pixels" in texts(figure)
    assert figure.axes[3].images[1].get_array().count() == 1


def test_greys_count_pixels(split):
    lines = show.greys(split).axes[0].lines
    for label, line in enumerate(lines):  # every pixel of a label has the grey 60 x label
        assert line.get_ydata()[60 * label] == pytest.approx(100 * (split.labels == label).mean())


def test_keep_writes_a_picture(split, tmp_path):
    figure = show.keep(show.pairs(split, 2), tmp_path / "new" / "pairs.png")
    assert Image.open(tmp_path / "new" / "pairs.png").size[0] > 300 and figure.axes


def test_before_after(split):
    figure = show.before_after(split, split.labels[:1] * 0, split.labels[:1], [0])
    assert not figure.axes[2].images[0].get_array().any()
    assert np.array_equal(figure.axes[3].images[0].get_array(), split.labels[0])


def test_gallery_is_of_the_worst_slices(split):
    guesses = split.labels.copy()
    guesses[5, :8] = (guesses[5, :8] + 1) % 4
    guesses[2, :4] = (guesses[2, :4] + 1) % 4
    scores = evaluate.score(split, guesses)
    figure = show.gallery(split, guesses, scores, n=2)
    for first, index in ((0, 5), (4, 2)):
        assert np.array_equal(figure.axes[first].images[0].get_array(), split.images[index, ..., 0])
        mean = scores.per_image.iloc[index, 1:].mean()
        assert figure.axes[first].get_title() == f"{split.subjects[index]}, slice {index % 4 + 1}\nmean Dice {mean:.3f}"


def test_uncertainty_is_drawn_beside_its_errors(split):
    guesses, unsure = split.labels.copy(), np.random.default_rng(0).random(split.labels.shape)
    guesses[:, 3, 3] = (guesses[:, 3, 3] + 1) % 4
    axes = show.uncertainty(split, guesses, unsure, n=1).axes
    assert axes[1].images[1].get_array().count() == 1
    assert any(np.array_equal(axes[2].images[0].get_array(), u) for u in unsure)


def test_next_to_no_uncertainty_is_dark(split):
    sure = show.one(split, 0, "uncertainty", split.labels, lambda images: np.full(images.shape[:3], 1e-6))
    unsure = show.one(split, 0, "uncertainty", split.labels, lambda images: np.full(images.shape[:3], 0.7))
    assert [made.axes[1].images[0].get_clim() for made in (sure, unsure)] == [(0, 0.1), (0, 0.7)]


def test_review_counts_the_errors_found(split):
    guesses = split.labels.copy()
    guesses[:, :2] = (guesses[:, :2] + 1) % 4  # one pixel in eight
    wrong = (split.labels != guesses).astype(float)
    lines = show.review(split, guesses, {"oracle": wrong, "opposite": -wrong}).axes[0].lines
    looked, found = lines[0].get_data()
    assert np.allclose(found, np.minimum(100, looked * 8), atol=0.5) and not lines[1].get_ydata().any()


def test_confusion_shows_its_table(split):
    guesses = np.where(split.labels == 3, 2, split.labels)
    figure = show.confusion(evaluate.score(split, guesses))
    assert [t.get_text() for t in figure.axes[0].texts][-4:] == ["0.00", "0.00", "100.00", "0.00"]


def test_ingredients_draw_every_run_once():
    rows = pd.DataFrame({"data": "toy", "variant": ["all", "less"] * 4, "seed": [0, 0, 1, 1] * 2,
                         "budget": ["epochs"] * 4 + ["seconds"] * 4, "epochs": [5] * 5 + [9, 5, 9],
                         "test background": 0.99, "test b": 0.5,
                         "test a": [0.9, 0.8, 0.92, 0.7, 0.9, 0.86, 0.92, 0.88]})
    ax = show.ingredients(rows).axes[0]
    assert "mean of b, a" in ax.get_xlabel()
    runs = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert runs == [pytest.approx(two) for two in ([0.68, 0.69], [0.65, 0.6], [0.7, 0.71])]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["less, 9 epochs (the same seconds)", "less", "all"]
    rows.columns = [name.replace("test", "validation") for name in rows]
    validated = show.ingredients(rows, "validation").axes[0]
    assert validated.get_xlabel().startswith("validation Dice")
    assert [line.get_xdata().tolist() for line in validated.lines if line.get_marker() == "o"] == runs


def test_levels_end_with_what_the_network_decides(split):
    net = model.improved_unet((16, 16, 1), 4, filters=4, levels=4)
    drawn = [ax.images[0].get_array() for ax in show.levels(net, split, 3).axes]
    assert [picture.shape for picture in drawn] == [(4, 4), (8, 8), (16, 16), (16, 16)]
    assert np.array_equal(drawn[2], evaluate.predict(net, split.images[3:4])[0])
    assert np.array_equal(drawn[3], split.labels[3])


def test_row_shows_every_picture_with_its_size():
    figure = show.row({"a": np.zeros((4, 6, 1)), "b": np.ones((2, 3, 1))}, "two")
    assert "a: 4x6" in texts(figure) and "b: 2x3" in texts(figure) and "two" in texts(figure)


def test_sweep_has_a_frame_for_every_slice_of_the_subject(split, tmp_path):
    with Image.open(show.sweep(split, split.labels, "b", tmp_path / "new" / "sweep.png")) as made:
        assert made.n_frames == 4 and made.format == "PNG"
        first = np.asarray(made.convert("RGB"))
        made.seek(3)
        assert (np.asarray(made.convert("RGB")) != first).any()
