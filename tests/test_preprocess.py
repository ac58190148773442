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
        new_images, new_labels = preprocess.augment(images, labels, np.random.default_rng(seed), (1,))
        assert new_images.dtype == new_labels.dtype == np.uint8 and new_images.shape == images.shape
        assert set(np.unique(new_labels)) == {0, 1, 2, 3}
        assert (new_labels != labels).mean() > 0.02 and (new_images != images).mean() > 0.3


def coordinates(n, side, seed, mirrors=(1, 2)):
    return preprocess.random_coordinates(n, side, side, np.random.default_rng(seed), mirrors)


def test_image_and_label_move_together():
    # the label itself as the image: away from borders, where both ways of moving can only agree, they must
    labels = np.random.default_rng(0).integers(0, 4, (32, 4, 4)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    where = coordinates(len(labels), 64, 1)
    images, moved = preprocess.move(labels[..., None] * 80, where, 1), preprocess.move(labels, where, 0)
    inner = np.stack([ndimage.minimum_filter(m, 3) == ndimage.maximum_filter(m, 3, mode="constant", cval=255)
                      for m in moved])
    assert inner.mean() > 0.4 and (moved != labels).mean() > 0.2
    assert np.array_equal(images[..., 0][inner], moved[inner] * 80)


def test_unbent_coordinates_turn_scale_and_shift(monkeypatch):
    monkeypatch.setattr(preprocess, "BEND", 0)
    monkeypatch.setattr(preprocess, "MOVED", 1)
    known = np.column_stack([np.indices((32, 32)).reshape(2, -1).T - 15.5, np.ones(32 * 32)])
    angles, zooms, shifts = [], [], []
    for where in coordinates(300, 32, 2, ()):
        fitted, residual, *_ = np.linalg.lstsq(known, where.reshape(2, -1).T, rcond=None)
        assert residual.max() < 1e-5  # affine
        matrix, zoom = fitted[:2], np.sqrt(np.linalg.det(fitted[:2]))
        assert np.allclose(matrix @ matrix.T, zoom**2 * np.eye(2), atol=1e-4)  # a rotation, scaled
        angles.append(np.rad2deg(np.arctan2(matrix[0, 1], matrix[0, 0])))
        zooms.append(np.log(zoom))
        shifts.append((fitted[2] - 15.5) / 32)
    assert np.allclose([np.std(angles) / 10, np.std(zooms) / 0.08, np.std(shifts) / 0.03], 1, atol=0.15)


def test_bending_is_smooth_and_gentle():
    fields = preprocess.smooth_fields(200, 64, 48, np.random.default_rng(0))
    assert fields.shape == (200, 64, 48) and abs(fields.mean()) < 0.05 and 0.8 < fields.std() < 1
    # through the knots, and no steeper than knots a few standard deviations apart
    assert np.abs(np.diff(fields, axis=1)).max() < 8 * preprocess.KNOTS / 64


def test_a_known_flip(brain):
    where = np.repeat(np.indices((64, 64))[None, :, ::-1], 4, 0)
    for pictures in brain:
        for order in (0, 1):
            assert np.array_equal(preprocess.move(pictures, where, order), pictures[:, ::-1])


@pytest.mark.parametrize("mirrors", [(), (1,), (2,), (1, 2)])
def test_only_natural_mirrors(mirrors, monkeypatch):
    monkeypatch.setattr(preprocess, "MOVED", 0)
    grid = np.indices((32, 32))
    possible = {(): grid, (1,): grid[:, ::-1], (2,): grid[:, :, ::-1], (1, 2): grid[:, ::-1, ::-1]}
    found = {axes for where in coordinates(64, 32, 0, mirrors) for axes, expected in possible.items()
             if np.array_equal(where, expected)}
    assert found == {axes for axes in possible if set(axes) <= set(mirrors)}
    assert all(any(np.array_equal(where, p) for p in possible.values()) for where in coordinates(64, 32, 0, mirrors))


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
    training = preprocess.Batches(whole, 3, augment=True, shuffle=True, seed=5)
    first = [training[i][0] for i in range(2)]
    assert len(training) == 2 and np.array_equal(first[0], training[0][0])  # the same whenever it is asked for
    training.on_epoch_end()
    assert not np.array_equal(first[0], training[0][0])
    shuffled = preprocess.Batches(whole, 3, shuffle=True, seed=5)
    images = np.concatenate([shuffled[i][0] for i in range(2)])
    assert not np.array_equal(images, whole.images) and np.array_equal(np.sort(images, 0), whole.images)
