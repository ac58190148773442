import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from helpers import evaluate
from helpers.data import TISSUES, Dataset, Split, Task

TASK = Task("toy", TISSUES, "made here")


def test_dice_by_hand():
    truth = [[0, 0, 1], [0, 1, 1], [2, 2, 1]]
    guess = [[0, 0, 1], [0, 0, 1], [2, 1, 1]]
    # 0: 2*3 / (3+4); 1: 2*3 / (4+4); 2: 2*1 / (2+1); 3: in neither
    assert np.allclose(evaluate.dice(truth, guess, 4), [6 / 7, 6 / 8, 2 / 3, np.nan], equal_nan=True)


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
    assert scored.ranking == ["b", "a"]


def test_soft_dice_by_hand():
    truth = np.array([[[0, 1]], [[1, 1]]], np.uint8)
    found = np.array([[[[0.8, 0.2, 0], [0.4, 0.5, 0.1]]], [[[0, 1, 0], [0.5, 0.5, 0]]]])
    # image 1, label 0: 2 * 0.8 / (1 + 1.2); label 1: 2 * 0.5 / (1 + 0.7); image 2, label 1: 2 * 1.5 / (2 + 1.5)
    assert np.allclose(evaluate.soft_dice(truth, found), [[1.6 / 2.2, 1 / 1.7, np.nan], [np.nan, 3 / 3.5, np.nan]],
                       equal_nan=True)


@pytest.mark.filterwarnings("error")
def test_each_report_stands_beside_the_same_averaging(scored, tmp_path):
    file = Path(__file__).parent / "benchmarks" / "oasis.csv"
    others = evaluate.like_with_like(file, scored).table
    assert others.loc[("soft, per image", "Improved U-Net, the task's first example")].tolist() == [
        0.9987, 0.9428, 0.9568, 0.9740]
    both = evaluate.like_with_like(file, scored, np.array([[0.5, 0.6, 0.7, np.nan], [0.7, 0.6, 0.5, 0.1]])).table
    assert len(both) == len(others) + 3 and both.columns.tolist() == scored.labels
    own = both.xs("this one, toy, test", level="network")
    assert own.loc["soft, per image"].tolist() == pytest.approx([0.6, 0.6, 0.6, 0.1])
    assert own.loc["hard, per image, absent = 1"].tolist() == pytest.approx([1 / 3, (1 + 2 / 3 + 1) / 3, 8 / 9, 1], abs=1e-4)
    assert own.loc["hard, pooled"].tolist()[:3] == pytest.approx([0.5, 0.8, 2 / 3], abs=1e-4)
    assert evaluate.like_with_like(file, replace(scored, labels=["background", "tumour"])) is None


def test_verdict_grades_what_occurs(scored):
    grade = evaluate.verdict(scored, needed=0.6)
    assert grade.table["verdict"].tolist() == ["FAIL", "pass", "pass", "absent"]
    assert not grade.passed and grade.sentence.startswith("FAIL: background below Dice 0.6")
    grade = evaluate.verdict(scored, needed=0.5)
    assert grade.passed and grade.sentence.startswith("PASS: every label that occurs (not white matter) reaches")
    assert "toy, test" in repr(grade) and "toy, test" in grade._repr_html_()


def test_no_grade_where_nothing_but_background_occurs(scored):
    empty = evaluate.Scores("toy", ["background", "tumour"], np.array(["a"]), np.array([[[9, 0], [0, 0]]]))
    grade = evaluate.verdict(empty)
    assert grade.passed is None and grade.sentence == (
        "NO GRADE: 1 of 1 test slices were scored on toy and have nothing but background.")


def test_verdict_of_nothing_is_not_a_pass():
    nothing = evaluate.Scores("t", ["a", "b"], np.array(["x"]), np.zeros((1, 2, 2), int))
    assert not evaluate.verdict(nothing).passed


def test_thinned_test_slices_get_no_grade(scored):
    grade = evaluate.verdict(replace(scored, whole=12), needed=0.1)
    assert grade.passed is None and grade.sentence == "NO GRADE: 3 of 12 test slices were scored on toy, test."
    split = Split("test", np.zeros((2, 1, 2, 1), np.uint8), np.ones((2, 1, 2), np.uint8), np.array(["a", "b"]), TASK)
    for some, passed in ((split.take([1]), None), (split, True)):  # a split knows how many it had
        assert evaluate.verdict(evaluate.score(some, some.labels)).passed is passed


def test_files(scored):
    rows = pd.read_csv(io.StringIO(scored.files()["dice.csv"]))
    assert rows["averaging"].tolist() == ["pooled", "subject", "subject", "image", "image", "image"]
    assert rows["subject"].tolist() == ["all", "a", "b", "a", "a", "b"]
    assert rows.loc[0, "CSF"] == pytest.approx(0.8) and rows["white matter"].isna().all()
    found = json.loads(evaluate.verdict(scored).files()["verdict.json"])
    assert found == {"set": "toy, test", "averaging": "hard, pooled", "needed": 0.9, "slices": [3, 3], "passed": False,
                     "dice": {"background": 0.5, "CSF": 0.8, "grey matter": 0.6667, "white matter": None}}
    thinned = evaluate.verdict(replace(scored, whole=4)).files()["verdict.json"]
    assert json.loads(thinned)["passed"] is None and json.loads(thinned)["slices"] == [3, 4]


def test_side_by_side(scored):
    other = replace(scored, confusion=scored.confusion[:1].repeat(3, 0))
    found = evaluate.side_by_side({"one": scored, "two": other}, {"two": {"weights": 7}})
    assert found.caption == "toy, test: Dice (hard, pooled)"
    assert found.table["CSF"].tolist() == [0.8, 1] and found.table.loc["two", "weights"] == 7
    assert np.isnan(found.table.loc["one", "weights"])


def test_baselines_by_hand():
    def made(name, greys, labels):
        labels = np.array([labels], np.uint8)
        return Split(name, np.array([greys], np.uint8)[..., None], labels, np.array([name]), TASK)

    # mean greys of training: background 10, CSF 100, grey matter 200; white matter never occurs
    train = made("train", [[0, 20, 90], [110, 200, 200]], [[0, 0, 1], [1, 2, 2]])
    validation = made("validation", [[30, 60, 149], [151, 255, 0]], [[0, 0, 1], [1, 2, 2]])
    table = evaluate.baselines(Dataset(train, validation, made("test", [[0, 0, 0]] * 2, [[0, 0, 0]] * 2))).table
    assert table["right pixels, %"].tolist() == [33.3, 50.0]
    # nearest grey: 0, 1, 1, 2, 2, 0 against 0, 0, 1, 1, 2, 2
    assert table["Dice, background"].tolist() == [0.5, 0.5] and table["Dice, CSF"].tolist() == [0, 0.5]
    assert table["Dice, grey matter"].tolist() == [0, 0.5] and table["Dice, white matter"].isna().all()


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
