import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, precision_score, recall_score
from test_data import TASK

from helpers import evaluate
from helpers.data import Split


def test_dice_by_hand():
    truth = [[0, 0, 1], [0, 1, 1], [2, 2, 1]]
    guess = [[0, 0, 1], [0, 0, 1], [2, 1, 1]]
    # 0: 2*3 / (3+4); 1: 2*3 / (4+4); 2: 2*1 / (2+1); 3: in neither
    assert np.allclose(evaluate.dice(truth, guess, 4), [6 / 7, 6 / 8, 2 / 3, np.nan], equal_nan=True)


def test_dice_is_scikit_learns_f1():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, (2, 3, 20, 20))
    assert np.allclose(evaluate.dice(truth, guess, 4), f1_score(truth.ravel(), guess.ravel(), average=None))


def test_absent_in_one_is_zero_absent_in_both_is_nan():
    assert evaluate.dice([0, 0, 1], [0, 0, 0], 3).tolist()[1] == 0
    assert np.isnan(evaluate.dice([0, 0, 1], [0, 0, 0], 3)[2])


@pytest.fixture
def scored():
    """Two subjects: a with two slices, b with one; label 2 only in b, label 3 nowhere."""
    truth = np.array([[[0, 1]], [[1, 1]], [[2, 0]]], np.uint8)
    guess = np.array([[[0, 1]], [[1, 0]], [[2, 2]]], np.uint8)
    split = Split("test", np.zeros((3, 1, 2, 1), np.uint8), truth, np.array(["a", "a", "b"]), TASK)
    return evaluate.score(split, guess)


def test_averages_by_hand(scored):
    nan = np.nan
    assert np.allclose(scored.pooled, [2 / 4, 4 / 5, 2 / 3, nan], equal_nan=True)
    assert np.allclose(scored.per_subject.loc["a"], [2 / 3, 4 / 5, nan, nan], equal_nan=True)
    assert np.allclose(scored.per_subject.loc["b"], [0, nan, 2 / 3, nan], equal_nan=True)
    assert np.allclose(scored.per_image["background"], [1, 0, 0])
    assert np.allclose(scored.baseline, [2 * 2 / (2 + 6), 0, 0, nan], equal_nan=True)
    table = scored.table()
    assert table.loc["CSF", "image mean"] == pytest.approx((1 + 2 / 3) / 2)
    assert table.loc["background", "subject SD"] == pytest.approx(np.std([2 / 3, 0], ddof=1))
    assert table.loc["CSF", "image worst"] == pytest.approx(2 / 3)
    assert (scored.worst, scored.best) == ("b", "a")


def test_verdict_grades_what_occurs(scored):
    grade = evaluate.verdict(scored, needed=0.6)
    assert grade.table["verdict"].tolist() == ["FAIL", "pass", "pass", "absent"]
    assert not grade.passed and grade.sentence.startswith("FAIL: background below Dice 0.6")
    grade = evaluate.verdict(scored, needed=0.5)
    assert grade.passed and grade.sentence.startswith("PASS: every label that occurs (not white matter) reaches")
    assert "toy, test" in repr(grade) and "toy, test" in grade._repr_html_()


def test_verdict_of_nothing_is_not_a_pass():
    nothing = evaluate.Scores("t", ["a", "b"], np.array(["x"]), np.zeros((1, 2, 2), int))
    assert not evaluate.verdict(nothing).passed


def test_files(scored, tmp_path):
    evaluate.save(scored, evaluate.verdict(scored), tmp_path / "run", network="a network")
    rows = pd.read_csv(tmp_path / "run" / "dice.csv")
    assert rows["averaging"].tolist() == ["pooled", "subject", "subject", "image", "image", "image"]
    assert rows["subject"].tolist() == ["all", "a", "b", "a", "a", "b"]
    assert rows.loc[0, "CSF"] == pytest.approx(0.8) and rows["white matter"].isna().all()
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["network"] == "a network"
    assert verdict["passed"] is False and verdict["dice"]["CSF"] == 0.8 and verdict["dice"]["white matter"] is None


def test_predict_is_the_most_probable_label():
    class Network:
        def predict(self, images, batch_size, verbose):
            return np.eye(4)[images[..., 0] % 4]

    images = np.arange(2 * 9, dtype=np.uint8).reshape(2, 3, 3, 1)
    assert np.array_equal(evaluate.predict(Network(), images, batch_size=1), images[..., 0] % 4)


def test_side_by_side(scored):
    history = pd.DataFrame({"seconds": [9.0, 2.0, 4.0]})
    table = evaluate.side_by_side({"one": (scored, [history]), "two": (scored, [history / 2, history])}).table
    assert table.loc["one", "CSF"] == 0.8
    assert table["seconds an epoch (median)"].tolist() == [4, 6]  # two networks take the sum


def test_measures_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, (2, 6, 8, 8), dtype=np.uint8)
    guess[:5] = np.where(rng.random((5, 8, 8)) < 0.7, truth[:5], guess[:5])
    split = Split("test", np.zeros((6, 8, 8, 1), np.uint8), truth, np.array(list("aabbcc")), TASK)
    scores = evaluate.score(split, guess)
    table, flat = scores.measures().table, (truth.ravel(), guess.ravel())
    for name, function in (("Dice", f1_score), ("IoU", jaccard_score), ("precision", precision_score),
                           ("recall", recall_score)):
        assert np.allclose(table[name], function(*flat, average=None), atol=6e-5), name
    assert np.allclose(scores.confusion_table(), 100 * confusion_matrix(*flat, normalize="true"))
    volumes = np.array([[(part[at:at + 2] == label).sum() for label in range(4)]
                        for part in (truth, guess) for at in (0, 2, 4)])
    errors = 100 * (volumes[3:] - volumes[:3]) / volumes[:3]
    assert np.allclose(table["volume error, %"], errors.mean(0), atol=6e-3)
    assert np.allclose(table["absolute volume error, %"], np.abs(errors).mean(0), atol=6e-3)
    assert (table["95 % interval, low"] < table["Dice"]).all() and (table["Dice"] < table["high"]).all()
    lowest, highest = scores.per_subject.min().to_numpy(), scores.per_subject.max().to_numpy()
    assert (table["95 % interval, low"] >= lowest - 6e-5).all() and (table["high"] <= highest + 6e-5).all()


def test_no_interval_from_two_subjects(scored):
    assert np.isnan(scored.interval()).all()


def test_the_border_of_a_picture_is_no_surface():
    truth, guess = np.zeros((2, 3, 16, 16), np.uint8)
    truth[0, :, :8] = guess[0, :, :10] = 1  # half the picture; its only surface is two pixels off
    truth[1] = guess[1] = 1  # the whole picture: no surface at all
    truth[2], guess[2, :, :8] = 1, 1
    split = Split("test", np.zeros((3, 16, 16, 1), np.uint8), truth, np.array(["a", "b", "c"]), TASK)
    row = evaluate.surface_distances(split, guess).table.loc["CSF"]
    assert row[["Hausdorff 95 %", "mean", "slices", "slices where only one has it"]].tolist() == [2, 2, 1, 1]


def test_surface_distances_by_hand():
    truth, guess = np.zeros((2, 3, 16, 16), np.uint8)
    truth[0, 4:9, 4:9] = guess[0, 4:9, 6:11] = 1  # a square, two pixels off
    truth[1, 2, 2] = 2  # missed altogether
    truth[2, 3, 3] = guess[2, 3, 3] = 1  # one pixel, found
    split = Split("test", np.zeros((3, 16, 16, 1), np.uint8), truth, np.array(["a", "b", "c"]), TASK)
    table = evaluate.surface_distances(split, guess).table

    def ring(mask):
        """The border of a square, as points."""
        rows, columns = (slice(p.min() + 1, p.max()) for p in np.nonzero(mask))
        hollow = mask.copy()
        hollow[rows, columns] = 0
        return np.argwhere(hollow)

    apart = cdist(ring(truth[0]), ring(guess[0]))
    there, back = apart.min(1), apart.min(0)
    assert table.loc["CSF", "Hausdorff 95 %"] == pytest.approx(
        (max(np.percentile(there, 95), np.percentile(back, 95)) + 0) / 2, abs=0.006)
    assert table.loc["CSF", "mean"] == pytest.approx(np.r_[there, back].mean() / 2, abs=0.006)
    assert table.loc["CSF", "slices"] == 2 and table.loc["CSF", "slices where only one has it"] == 0
    assert table.loc["grey matter", "slices where only one has it"] == 1
    assert table.loc["grey matter", "slices"] == 0 and np.isnan(table.loc["grey matter", "Hausdorff 95 %"])


class Position:
    """A network that knows only where a pixel is: label 1 grows more probable downwards, label 2 to the right."""

    def predict(self, images, batch_size, verbose):
        rows, columns = np.indices(images.shape[1:3]) / 10
        return np.tile(np.stack([0.5 + 0 * rows, rows, columns], -1), (len(images), 1, 1, 1))


def test_mirror_images_are_mirrored_back_and_averaged():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    plain = evaluate.probabilities(Position(), images)
    assert np.allclose(plain[0, :, 0, 1], [0, 0.1, 0.2, 0.3])
    rows = evaluate.probabilities(Position(), images, (1,))
    assert np.allclose(rows[..., 1], 0.15) and np.allclose(rows[..., 2], plain[..., 2])
    both = evaluate.probabilities(Position(), images, (1, 2))
    assert np.allclose(both[..., 1:], 0.15) and np.allclose(both[..., 0], 0.5)


def test_largest_component_of_each_subject():
    guesses = np.zeros((4, 8, 8), np.uint8)
    guesses[0, 1:3, 1:3], guesses[1, 3, 3] = 1, 1  # one piece through two slices: they touch at a corner
    guesses[1, 6, :4] = 1  # a smaller one, though larger in its slice
    guesses[3, 0, 0] = 2  # another subject's only piece
    expected = guesses.copy()
    expected[1, 6] = 0
    kept = evaluate.largest_component(guesses, np.array(list("aabc")))
    assert np.array_equal(kept, expected) and guesses[1, 6].any()


def test_uncertainty_by_dropout():
    from helpers.backend import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    wide = keras.ops.tile(inputs, (1, 1, 1, 2))
    outputs = keras.layers.Softmax()(keras.layers.Dropout(0.5)(wide))  # drops in half of the pixels and maps
    network = keras.Model(inputs, outputs)
    images = np.full((2, 8, 8, 1), 4.0, np.float32)
    images[0] = 0  # nothing to drop: both labels always equally probable
    unsure = evaluate.uncertainty(network, images, samples=64)
    assert unsure.shape == (2, 8, 8) and np.allclose(unsure[0], 1, atol=1e-6)
    assert unsure.min() > 0.5 and unsure[1].max() > 0.99  # the two maps are alike, so dropout makes it a coin's throw,
    assert np.abs(unsure[1] - 1).max() > 1e-3  # of which 64 come out unevenly somewhere
    first = evaluate.uncertainty(network, images, samples=1)[1]
    assert first.min() < 0.1 and first.max() > 0.9  # one throw: one map dropped, or both or none
    once = evaluate.entropy(evaluate.probabilities(network, images))
    assert np.allclose(once, 1, atol=1e-6)  # without dropout both maps are equal


def test_entropy_is_a_share_of_the_largest():
    assert np.allclose(evaluate.entropy(np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]])), [1, 0, 0.5])


def test_gains_have_a_row_for_each_switch():
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[:, 3, 3] = 2
    split = Split("validation", np.zeros((2, 4, 4, 1), np.uint8), labels, np.array(["a", "a"]), TASK)
    found = evaluate.gains(Position(), split)
    assert found.table.index.tolist() == ["as it is", "with mirror images"]
    assert repr(found).startswith("toy, validation: Dice (hard, pooled)\n")
    network = Position()
    assert evaluate.gains(network, split, network).table.equals(found.table)  # an ensemble of one
    assert evaluate.gains(network, split, Position()).table.index[2] == "and all networks"
    tumour = replace(split, labels=labels // 2, task=replace(TASK, labels=TASK.labels[:2]))
    assert len(evaluate.gains(Position(), tumour).table) == 3


def test_ingredients_by_hand():
    rows = pd.DataFrame({"data": "toy", "variant": ["a", "a", "b"], "seed": [0, 1, 0], "budget": "epochs", "epochs": 6,
                         "weights": [5, 5, 7], "seconds per epoch": [1.0, 3.0, 4.0], "validation CSF": 0.1,
                         "test CSF": [0.8, 0.9, 0.7]})
    found = evaluate.ingredients(rows)
    table = found.table
    assert table.loc[("epochs", "a"), "CSF"] == "0.8500 ± 0.0707" and table.loc[("epochs", "a"), "runs"] == 2
    assert table.loc[("epochs", "a"), "seconds per epoch"] == 2 and table.loc[("epochs", "b"), "weights"] == 7
    assert "validation CSF" not in table and found.caption.startswith("toy, test: Dice (hard, pooled)")
    assert evaluate.ingredients(rows, "validation").table.loc[("epochs", "a"), "CSF"] == "0.1000 ± 0.0000"
