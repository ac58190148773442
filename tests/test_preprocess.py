from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from helpers import preprocess
from helpers.data import TISSUES, Split, Task

TASK = Task("toy", TISSUES, "made here")


def numbered(n):
    """n pictures of one grey each: 0, 40, 80 and so on."""
    images = np.broadcast_to(40 * np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 4, 1)).copy()
    return Split("train", images, images[..., 0] % 4, np.array(list("abcdefgh"[:n])), TASK)


@pytest.fixture(scope="module")
def brain():
    """Four slices of four tissues in smooth patches, brighter where the label is higher."""
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.normal(size=(4, 64, 64)), (0, 4, 4))
    labels = np.digitize(field, np.quantile(field, [0.4, 0.6, 0.8])).astype(np.uint8)
    return (labels * 70 + rng.integers(0, 20, labels.shape)).astype(np.uint8)[..., None], labels


def test_labels_stay_whole_numbers_in_range(brain):
    images, labels = (np.repeat(a, 8, 0) for a in brain)
    for seed in range(3):
        new_images, new_labels = preprocess.augment(images, labels, np.random.default_rng(seed), TASK, 0.7)
        assert new_images.dtype == new_labels.dtype == np.uint8 and new_images.shape == images.shape
        assert set(np.unique(new_labels)) == {0, 1, 2, 3}
        assert (new_labels != labels).mean() > 0.02 and (new_images != images).mean() > 0.3


def test_where_greys_are_all_alike_a_training_slice_is_mirrored_or_as_it_is(brain):
    images, labels = (np.repeat(a, 8, 0) for a in brain)
    new = preprocess.augment(images, labels, np.random.default_rng(0), replace(TASK, greys=False), 0)
    flipped = [np.array_equal(one, old[::-1]) for one, old in zip(new[0], images)]
    assert 0 < sum(flipped) < len(flipped)
    for changed, old in zip(new, (images, labels)):
        assert all(np.array_equal(one, whole[::-1 if flip else 1]) for one, whole, flip in zip(changed, old, flipped))


def random_moves(n, side, seed, mirrors=(1, 2), moved=0.7):
    return preprocess.random_moves(n, side, side, np.random.default_rng(seed), mirrors, moved)


def test_image_and_label_move_together():
    # the label itself as the image: away from borders, where both ways of moving can only agree, they must
    labels = np.random.default_rng(0).integers(0, 4, (32, 4, 4)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    moves = random_moves(len(labels), 64, 1)
    images, moved = preprocess.move(labels[..., None] * 80, *moves, 1), preprocess.move(labels, *moves, 0)
    inner = np.stack([ndimage.minimum_filter(m, 3) == ndimage.maximum_filter(m, 3, mode="constant", cval=255)
                      for m in moved])
    assert inner.mean() > 0.4 and (moved != labels).mean() > 0.2
    assert np.array_equal(images[..., 0][inner], moved[inner] * 80)


def test_moves_turn_scale_and_shift_about_the_middle():
    matrices, offsets = random_moves(1000, 33, 2, (), moved=1)
    zooms = np.sqrt(np.linalg.det(matrices))
    assert np.allclose(matrices @ matrices.transpose(0, 2, 1), zooms[:, None, None] ** 2 * np.eye(2))  # no shear
    angles = np.rad2deg(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    shifts = (matrices @ [16, 16] + offsets - 16) / 33  # of the middle pixel
    assert np.allclose([angles.std() / 10, np.log(zooms).std() / 0.08, shifts.std() / 0.03], 1, atol=0.1)


def test_a_known_flip(brain):
    for axis, matrix in ((1, np.diag([-1, 1])), (2, np.diag([1, -1]))):
        for pictures in brain:
            for order in (0, 1):
                offset = [63, 0] if axis == 1 else [0, 63]
                assert np.array_equal(preprocess.move(pictures, [matrix] * 4, [offset] * 4, order),
                                      np.flip(pictures, axis))


@pytest.mark.parametrize("mirrors", [(), (1,), (2,), (1, 2)])
def test_only_natural_mirrors(mirrors):
    matrices, offsets = random_moves(64, 32, 0, mirrors, moved=0)
    signs = np.diagonal(matrices, axis1=1, axis2=2)
    if mirrors == (1, 2):  # cells: quarter turns too
        found = {tuple(m.round(12).ravel() + 0.0) for m in matrices}
        signs = [(a, b) for a in (1, -1) for b in (1, -1)]
        assert found == {(a, 0, 0, b) for a, b in signs} | {(0, a, b, 0) for a, b in signs}
    else:
        assert {*map(tuple, signs)} == {(a, b) for a in ((1, -1) if 1 in mirrors else (1,))
                                        for b in ((1, -1) if 2 in mirrors else (1,))}
    corners = np.array([[0, 0], [0, 31], [31, 0], [31, 31]])  # each stays in the frame, on a corner
    moved = np.sort((corners @ matrices.transpose(0, 2, 1) + offsets[:, None]).round(9) @ [32, 1])
    assert np.array_equal(moved, np.broadcast_to(np.sort(corners @ [32, 1]), moved.shape))


def test_what_lies_anyhow_differs_more_in_size_and_goes_on_beyond_the_border():
    sizes = [np.log(np.abs(np.linalg.det(random_moves(1000, 33, 2, mirrors, moved=1)[0]))).std() / 2
             for mirrors in ((2,), (1, 2))]
    assert np.allclose(sizes, [0.08, np.hypot(0.08, 0.2)], rtol=0.1)
    white = np.full((200, 32, 32, 1), 255, np.uint8)
    for mirrors, black in ((2,), True), ((1, 2), False):
        _, labels = preprocess.augment(white, white[..., 0], np.random.default_rng(0), replace(TASK, mirrors=mirrors), 1)
        assert (labels == 0).any() == black


def test_a_quarter_turn_only_moves_pixels(brain):
    matrices, offsets = random_moves(64, 64, 0, moved=0)
    turned = next(k for k, m in enumerate(matrices) if abs(m[0, 1]) > 0.5)
    for pictures in brain:
        for order in (0, 1):
            new = preprocess.move(pictures, matrices[[turned] * 4], offsets[[turned] * 4], order, "mirror")
            assert np.array_equal(np.sort(new, None), np.sort(pictures, None)) and not np.array_equal(new, pictures)


def test_greys_change_but_stay_greys(brain):
    changed = preprocess.change_greys(brain[0], np.random.default_rng(0))
    assert changed.dtype == np.uint8
    for old, new in zip(brain[0], changed):  # gain and gamma keep the order of greys, noise blurs it a little
        assert np.corrcoef(old.ravel(), new.ravel())[0, 1] > 0.95


def test_every_channel_has_a_gain_of_its_own():
    grey = np.full((50, 8, 8, 3), 100, np.uint8)
    means = preprocess.change_greys(grey, np.random.default_rng(0)).mean((1, 2)) / 100  # constant pictures: no noise
    assert np.allclose(np.log(means).std(0), 0.15, atol=0.05)
    assert np.abs(np.corrcoef(means.T) - np.eye(3)).max() < 0.5


def test_batches_cover_an_epoch_and_shuffle_the_next():
    whole = numbered(6)
    plain = preprocess.Batches(whole, 4)
    assert [len(plain[i][0]) for i in range(len(plain))] == [4, 2]
    assert np.array_equal(plain[1][0], whole.images[4:])
    training = preprocess.Batches(whole, 3, augment=0.7, shuffle=True, seed=5)
    first = [training[i][0] for i in range(2)]
    assert len(training) == 2 and np.array_equal(first[0], training[0][0])  # the same whenever it is asked for
    training.on_epoch_end()
    assert not np.array_equal(first[0], training[0][0])
    shuffled = preprocess.Batches(whole, 3, shuffle=True, seed=5)
    images = np.concatenate([shuffled[i][0] for i in range(2)])
    assert not np.array_equal(images, whole.images) and np.array_equal(np.sort(images, 0), whole.images)


@pytest.mark.parametrize("common", [0, 255])
def test_pictures_of_the_rarer_background_are_shown_more_often(common):
    whole = numbered(7)
    whole.images[:] = common
    whole.images[[2, 5]] = 255 - common
    whole.images[:, 0, 0, 0] = np.arange(7)  # tells them apart, and leaves the median alone
    batches = preprocess.Batches(whole, 3, shuffle=True, seed=1, oversample=4)
    assert len(batches) == (5 + 2 * 4) // 3
    seen = np.concatenate([preprocess.Batches(whole, 3, oversample=4)[i][0][:, 0, 0, 0] for i in range(5)])
    assert np.array_equal(np.bincount(seen), [1, 1, 4, 1, 1, 4, 1])
    shown = np.concatenate([batches[i][0][:, 0, 0, 0] for i in range(4)])
    assert (np.bincount(shown, minlength=7) <= [1, 1, 4, 1, 1, 4, 1]).all() and len(shown) == 12
    assert len(preprocess.Batches(whole, 3)) == 3  # not unless asked for


def test_where_all_backgrounds_are_alike_none_is_rarer():
    assert not preprocess.rarer_background(np.zeros((4, 8, 8, 1), np.uint8)).any()
    assert not preprocess.rarer_background(np.full((4, 8, 8, 3), 255, np.uint8)).any()
