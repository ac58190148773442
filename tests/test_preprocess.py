import numpy as np
import pytest
from scipy import ndimage
from test_data import split

from helpers import preprocess
from helpers.datasets import practice


@pytest.fixture(scope="module")
def brain():
    images, labels = practice.make_subject(0, [4, 12, 20, 28], 64)
    return images[..., None], labels


def test_labels_stay_whole_numbers_in_range(brain):
    images, labels = (np.repeat(a, 8, 0) for a in brain)
    for seed in range(3):
        new_images, new_labels = preprocess.augment(images, labels, np.random.default_rng(seed))
        assert new_images.dtype == new_labels.dtype == np.uint8 and new_images.shape == images.shape
        assert set(np.unique(new_labels)) == {0, 1, 2, 3}
        assert (new_labels != labels).mean() > 0.02 and (new_images != images).mean() > 0.3


def test_image_and_label_move_together():
    # the label itself as the image: away from borders, where both ways of moving can only agree, they must
    labels = np.random.default_rng(0).integers(0, 4, (32, 4, 4)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    moves = preprocess.random_moves(len(labels), 64, 64, np.random.default_rng(1))
    images, moved = preprocess.move(labels[..., None] * 80, labels, moves)
    inner = np.stack([ndimage.minimum_filter(m, 3) == ndimage.maximum_filter(m, 3, mode="constant", cval=255)
                      for m in moved])
    assert inner.mean() > 0.4 and (moved != labels).mean() > 0.2
    assert np.array_equal(images[..., 0][inner], moved[inner] * 80)


def test_moves_agree_with_scipy(brain):
    labels = brain[1]
    moves = preprocess.random_moves(len(labels), 64, 64, np.random.default_rng(2))
    _, moved = preprocess.move(brain[0], labels, moves)
    for label, new, (a0, a1, a2, b0, b1, b2, _, _) in zip(labels, moved, moves.astype(float)):
        expected = ndimage.affine_transform(label, [[b1, b0], [a1, a0]], [b2, a2], order=0)
        assert (expected == new).mean() > 0.99  # ties between neighbours may fall either way


def test_a_known_flip(brain):
    flip = np.array([[1, 0, 0, 0, -1, 63, 0, 0]] * 4, "float32")
    images, labels = preprocess.move(*brain, flip)
    assert np.array_equal(images, brain[0][:, ::-1]) and np.array_equal(labels, brain[1][:, ::-1])


def test_greys_change_but_stay_greys(brain):
    changed = preprocess.change_greys(brain[0], np.random.default_rng(0))
    assert changed.dtype == np.uint8
    for old, new in zip(brain[0], changed):  # gain and gamma keep the order of greys, noise blurs it a little
        assert np.corrcoef(old.ravel(), new.ravel())[0, 1] > 0.95


def test_batches_cover_an_epoch_and_shuffle_the_next():
    whole = split("train", list("abcdef"))
    whole.images[:] = 40 * np.arange(6, dtype=np.uint8)[:, None, None, None]
    plain = preprocess.Batches(whole, 4)
    assert [len(plain[i][0]) for i in range(len(plain))] == [4, 2]
    assert np.array_equal(plain[1][0], whole.images[4:])
    training = preprocess.Batches(whole, 3, augment=True, seed=5)
    first = [training[i][0] for i in range(2)]
    assert len(training) == 2 and np.array_equal(first[0], training[0][0])  # the same whenever it is asked for
    training.on_epoch_end()
    assert not np.array_equal(first[0], training[0][0])
