import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score
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
    assert evaluate.verdict(scored, needed=0.5).passed
    assert "toy, test" in repr(grade) and "toy, test" in grade._repr_html_()


def test_verdict_of_nothing_is_not_a_pass(scored):
    empty = evaluate.Scores("t", scored.pooled * np.nan, scored.per_subject, scored.per_image, scored.baseline)
    assert not evaluate.verdict(empty).passed


def test_files(scored, tmp_path):
    evaluate.save(scored, evaluate.verdict(scored), tmp_path / "run")
    rows = pd.read_csv(tmp_path / "run" / "dice.csv")
    assert rows["averaging"].tolist() == ["pooled", "subject", "subject", "image", "image", "image"]
    assert rows["subject"].tolist() == ["all", "a", "b", "a", "a", "b"]
    assert rows.loc[0, "CSF"] == pytest.approx(0.8) and rows["white matter"].isna().all()
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["passed"] is False and verdict["dice"]["CSF"] == 0.8 and verdict["dice"]["white matter"] is None


def test_predict_is_the_most_probable_label():
    class Network:
        def predict(self, images, batch_size, verbose):
            return np.eye(4)[images[..., 0] % 4]

    images = np.arange(2 * 9, dtype=np.uint8).reshape(2, 3, 3, 1)
    assert np.array_equal(evaluate.predict(Network(), images, batch_size=1), images[..., 0] % 4)


def test_side_by_side(scored):
    history = pd.DataFrame({"seconds": [9.0, 2.0, 4.0]})
    table = evaluate.side_by_side({"one": (scored, history), "two": (scored, history / 2)})
    assert table.loc["CSF: Dice (hard, pooled)", "one"] == 0.8
    assert table.loc["median seconds of an epoch"].tolist() == [4, 2]
