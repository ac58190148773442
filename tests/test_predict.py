from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from test_run import made_by_hand, toy

from helpers import predict
from helpers.data import TISSUES, Box, Split, Task
from helpers.predict import Predictor
from helpers.recipe import Recipe
from helpers.run import RunError

TASK = Task("toy", TISSUES, "made here")


class ByGrey:
    """In a network's place: the label is the grey value's quarter, whichever way the slice is mirrored."""

    def predict_on_batch(self, images):
        greys = images.mean(-1)
        return np.eye(4, dtype=np.float32)[np.digitize(greys, [42, 127, 212])]


class Position:
    """A network that knows only where a pixel is: label 1 grows more probable downwards, label 2 to the right."""

    def predict_on_batch(self, images):
        rows, columns = np.indices(images.shape[1:3]) / 10
        return np.tile(np.stack([0.5 + 0 * rows, rows, columns, 0 * rows], -1), (len(images), 1, 1, 1))


def predictor_of(network, box, frame=None, channels=1, task=TASK, others=(), **options):
    """The predictor of a run that needs no folder."""
    return Predictor(run_of(network, box, frame, channels=channels, task=task, others=others, **options))


def run_of(network, box, frame=None, dataset="lgg", channels=1, task=TASK, others=(), **options):
    """What a predictor asks of a run."""
    return SimpleNamespace(network=lambda: network, task=task, box=box, frame=frame or box.shape, others=others,
                           recipe=Recipe(dataset, **{"mirrors": False} | options), channels=channels, folder="a folder",
                           dataset=None)


def greys(*shape):
    """Random pictures of the four labels' greys, and their labels."""
    labels = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    return 85 * labels[..., None], labels


def test_the_frame_comes_back_whole_and_outside_the_box_is_background():
    images, labels = greys(3, 40, 48)
    predictor = predictor_of(ByGrey(), Box(8, 16, 16, 32), (40, 48))
    expected = np.zeros_like(labels)
    expected[:, 8:24, 16:48] = labels[:, 8:24, 16:48]
    found = predictor.probabilities(images)
    assert found.dtype == np.float32 and np.array_equal(found, np.eye(4)[expected])
    assert np.array_equal(predictor.labels(images), expected) and predictor.labels(images).dtype == np.uint8
    assert np.array_equal(predictor.doubt(images), np.zeros((3, 40, 48)))


def test_a_frame_that_is_no_multiple_of_16():
    images, labels = greys(2, 20, 30)
    seen = []

    class Watched(ByGrey):
        def predict_on_batch(self, images):
            seen.append(images)
            return super().predict_on_batch(images)

    predictor = predictor_of(Watched(), Box(-6, -1, 32, 32), (20, 30))
    assert np.array_equal(predictor.labels(images), labels)
    assert seen[0].shape[1:] == (32, 32, 1) and np.array_equal(seen[0][:2, 6:26, 1:31], images)
    assert not seen[0][:, :6].any() and not seen[0][:, :, 31].any()


@pytest.fixture
def course():
    """A run on slices of two training people at positions 7 and 8, and three test slices of two people."""
    images, labels = greys(4, 24, 32)
    tissue = np.zeros((4, 24, 32), np.uint8)
    tissue[:2, 4:20, 8:12] = [[[3]], [[1]]]  # at position 7 both have tissue here
    tissue[0, 4:20, 12:16] = 2  # and one of them here
    train = Split("train", np.zeros((4, 24, 32, 1), np.uint8), tissue, np.array(["a", "b", "a", "b"]), TASK,
                  np.array([7, 7, 8, 8]))  # at position 8 none has any
    run = run_of(ByGrey(), Box(4, 8, 16, 16), (24, 32), "oasis")
    run.dataset = SimpleNamespace(train=train)
    return run, Split("test", images, labels, np.array(["c", "d", "c", "c"]), TASK, np.array([9, 8, 7, 6]))


def test_the_mask_is_background_where_all_training_people_have_it_and_tissue_where_none_has(course, monkeypatch):
    run, test = course
    monkeypatch.setattr(predict, "ENOUGH", 2)
    found, alone = Predictor(run, context="mask").labels(test), Predictor(run).labels(test)
    assert np.array_equal(alone, run.box.paste(run.box.cut(test.labels), (24, 32)))
    assert np.array_equal(found[[0, 3]], alone[[0, 3]]) and not found[1].any()  # nobody was seen at position 9 or 6
    assert np.array_equal(found[2, :, 12:16], alone[2, :, 12:16]) and not found[2, :, 16:].any()
    was = alone[2, 4:20, 8:12]
    assert np.array_equal(found[2, 4:20, 8:12], np.where(was > 0, was, 1))
    assert np.array_equal(Predictor(run, context="mask").labels(test.images), alone)  # no positions, no context
    monkeypatch.setattr(predict, "ENOUGH", 3)  # of two people nothing is concluded
    assert np.array_equal(Predictor(run, context="mask").labels(test), alone)
    run.dataset = None
    without = Predictor(run, context="mask")
    assert without.probabilities(test.images).shape == (4, 24, 32, 4)  # a scan's
    with pytest.raises(RunError, match="a folder is opened without its data, thus without the mask"):
        without.labels(test)


def test_neighbours_of_one_person_have_a_say(course):
    run, test = course
    predictor = Predictor(run, context="neighbours")
    found = np.tile(np.float32([0.5, 0.3, 0.2, 0]), (4, 16, 16, 1))
    found[1, 0, 0], found[2, 0, 0] = [0, 1, 0, 0], [0, 0.9, 0.1, 0]
    scores = predictor.in_context(found.copy(), np.array([3, 7, 5, 4]))  # neighbours are 3 and 4, 4 and 5
    assert np.allclose(scores[1], np.log(found[1] + 1e-4)) and np.allclose(
        scores[3, 0, 0], np.log(found[3, 0, 0] + 1e-4) + found[0, 0, 0] + found[2, 0, 0])
    assert scores[3, 0, 0].argmax() == 1 and scores[3, 1, 1].argmax() == 0  # outvoted: .5 + .5 here, .3 + 1.2 there
    assert np.array_equal(predictor.labels(test), Predictor(run).labels(test))  # where the network is sure, none has


def test_scans_of_one_person_are_no_neighbours_of_each_other(course, monkeypatch):
    run, test = course
    predictor, asked = Predictor(run, context="neighbours"), []
    monkeypatch.setattr(predictor, "in_context", lambda found, positions: asked.append(positions.tolist()) or found)
    predictor.labels(replace(test, subjects=np.array(["c", "c", "c", "d"]), positions=np.array([0, 1, 0, 1])))
    assert asked == [[0, 1], [0], [1]]


def test_all_context_at_once_keeps_to_the_mask(course, monkeypatch):
    run, test = course
    monkeypatch.setattr(predict, "ENOUGH", 2)
    both, mask = (Predictor(run, context=context).labels(test) for context in ("mask+neighbours", "mask"))
    assert np.array_equal(both > 0, mask > 0) and (both[2, 4:20, 8:12] > 0).all()


def test_soft_dice_of_every_image_of_a_split(monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 2)
    images, labels = greys(3, 16, 16)
    split = Split("test", images, np.where(labels == 3, 0, labels), np.array(list("abc")), TASK)
    n = np.array([np.bincount(one.ravel(), minlength=4) for one in labels])
    expected = 2 * n[:, 0] / (2 * n[:, 0] + n[:, 3])  # of background, of which label 3 is another part
    found = predictor_of(ByGrey(), Box(0, 0, 16, 16)).soft_dice(split)
    assert np.allclose(found[:, 0], expected) and np.allclose(found[:, 1:3], 1) and np.isnan(found[:, 3]).all()


@pytest.mark.parametrize("mirrors, rows, columns", [(False, False, False), (True, True, False)])
def test_mirror_images_are_mirrored_back_and_averaged(mirrors, rows, columns):
    images = np.zeros((2, 4, 4, 1), np.uint8)
    found = predictor_of(Position(), Box(0, 0, 4, 4), mirrors=mirrors).probabilities(images)
    line = [0, 0.1, 0.2, 0.3]
    assert np.allclose(found[1, :, 2, 1], 0.15 if rows else line) and np.allclose(found[1, 2, :, 2], line)
    both = predictor_of(Position(), Box(0, 0, 4, 4), task=Task("cells", TISSUES, "made", (1, 2)), mirrors=mirrors)
    found = both.probabilities(images)
    assert np.allclose(found[..., 1:3], 0.15) == mirrors and np.allclose(found[..., 0], 0.5)


def test_networks_are_averaged_and_options_win_over_the_recipe():
    class Sure(Position):
        def predict_on_batch(self, images):
            return np.broadcast_to(np.float32([0, 0, 0, 1]), (*images.shape[:3], 4))

    images, box = np.zeros((1, 4, 4, 1), np.uint8), Box(0, 0, 4, 4)
    second = run_of(Sure(), box)
    for predictor in (Predictor(run_of(Position(), box), second), predictor_of(Position(), box, others=(second,))):
        found = predictor.probabilities(images)[0]
        assert np.allclose(found[3, 0], [0.25, 0.15, 0, 0.5])
    assert Predictor(second, mirrors=True).ways == [[(), (1,)]] and Predictor(second).ways == [[()]]


def test_each_run_is_mirrored_as_its_own_recipe_says():
    images, box = np.zeros((1, 4, 4, 1), np.uint8), Box(0, 0, 4, 4)
    alone, mirrored = run_of(Position(), box), run_of(Position(), box, mirrors=True)
    along = run_of(Position(), box, mirrors=True, others=(run_of(Position(), box),))  # asked as the first is
    line, flipped = np.array([0, 0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1, 0])
    for runs, share in (((alone, mirrored), 1 / 3), ((mirrored, alone, alone), 1 / 4), ((alone, along), 2 / 5)):
        found = Predictor(*runs).probabilities(images)[0, :, 2, 1]
        assert np.allclose(found, (1 - share) * line + share * flipped)


@pytest.mark.parametrize("other, said", [
    (dict(box=Box(0, 0, 16, 32)), "box, size"), (dict(frame=(40, 64)), "frame"), (dict(channels=3), "channels"),
    (dict(task=Task("cells", TISSUES[:2], "made")), "labels"), (dict(size=32), "size")])
def test_runs_that_differ_are_not_averaged(other, said):
    first, second = (run_of(ByGrey(), **dict(box=Box(0, 0, 32, 64), frame=(40, 80)) | more) for more in ({}, other))
    second.folder = "another"
    with pytest.raises(RunError, match=f"a folder and another cannot be averaged: {said} differ"):
        Predictor(first, second)
    with pytest.raises(RunError):
        Predictor(run_of(ByGrey(), first.box, first.frame, others=(second,)))


def test_what_was_shrunk_is_enlarged_in_place():
    images = np.zeros((1, 72, 40, 1), np.uint8)
    images[:, 20:52, 12:28] = 255
    predictor = predictor_of(ByGrey(), Box(4, 4, 64, 32), (72, 40), size=32)
    found = predictor.probabilities(images)[0, ..., 3]
    assert np.array_equal(predictor.labels(images)[0], 3 * (images[0, ..., 0] > 0))
    assert np.array_equal(found, found[::-1]) and np.array_equal(found, found[:, ::-1])
    # a pixel of 2 x 2: linearly between middles, 3/4 from its own and 1/4 from the next
    assert found[36, 10:14].tolist() == [0, 0.25, 0.75, 1] and found[18:22, 20].tolist() == [0, 0.25, 0.75, 1]


def test_labels_come_in_chunks(monkeypatch):
    sizes = []

    class Counted(ByGrey):
        def predict_on_batch(self, images):
            sizes.append(np.count_nonzero(images.any((1, 2, 3))))  # the rest fills the batch
            return super().predict_on_batch(images)

    images, labels = greys(5, 16, 16)
    monkeypatch.setattr(predict, "CHUNK", 2)
    assert np.array_equal(predictor_of(Counted(), Box(0, 0, 16, 16)).labels(images), labels) and sizes == [2, 2, 1]


def test_doubt_is_entropy_as_a_share_of_the_largest():
    each = np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    network = SimpleNamespace(predict_on_batch=lambda images: np.broadcast_to(each, (len(images), 1, 3, 4)))
    doubt = predictor_of(network, Box(0, 0, 1, 3)).doubt(np.zeros((1, 1, 3, 1), np.uint8))
    assert np.allclose(doubt, [1, 0, 0.5]) and doubt.dtype == np.float32
    doubt = predictor_of(Position(), Box(0, 0, 4, 4)).doubt(np.zeros((1, 4, 4, 1), np.uint8))
    assert doubt[0, 3, 1] == pytest.approx(stats.entropy([0.5, 0.3, 0.1, 0], base=4), rel=1e-5)


def test_a_finished_run_predicts_without_its_data(tmp_path):
    run = made_by_hand(tmp_path)
    predictor = Predictor.open(run.folder, mirrors=False)
    images = toy().test.images
    assert (predictor.task, predictor.box, predictor.frame) == (run.task, Box(0, 0, 32, 32), (32, 32))
    expected = np.asarray(run.network()(images))
    assert expected.std() > 0.01 and np.allclose(predictor.probabilities(images), expected, atol=1e-5)
    assert (predictor.labels(toy().test) == expected.argmax(-1)).mean() > 0.999
