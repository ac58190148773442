import inspect

import nibabel as nib
import numpy as np
import pytest
from test_datasets import nothing_lost

from helpers import datasets
from helpers.data import FRAME, OASIS_BOX
from helpers.datasets import practice
from helpers.recipe import Recipe

FEW = Recipe("practice", people=3, slices=6, validation_slices=1, test_slices=2)


@pytest.fixture(scope="module")
def made():
    """Images and labels (60, 256, 256), five slices of twelve subjects."""
    images, labels = practice.make_slices(np.repeat(range(12), 5), np.tile([0, 8, 16, 24, 31], 12))
    return images[..., 0], labels


def test_every_subject_has_the_same_brain_mask_as_in_the_real_ones(made):
    masks = made[1].reshape(12, 5, FRAME, FRAME) > 0
    assert (masks == masks[0]).all() and masks[0].any((1, 2)).all()


def test_two_greys_of_a_slice_part_its_labels_nearly(made):
    images, labels = made
    right = []
    for image, label in zip(images, labels):
        marks = [(image[label == k].mean() + image[label == k + 1].mean()) / 2 for k in (1, 2)]
        right.append((np.digitize(image[label > 0], marks) + 1 == label[label > 0]).mean())
    assert np.mean(right) > 0.94 and min(right) > 0.91


def test_label_shares_are_near_the_real_ones(made):
    shares = np.bincount(made[1].ravel(), minlength=4) / made[1].size
    assert np.allclose(100 * shares, [71.9, 5.7, 11.8, 10.6], atol=2)  # of the course's training slices 0, 8, 16, 24


def test_mean_greys_are_near_the_real_ones(made):
    images, labels = made
    greys = [images[labels == label].mean() for label in range(4)]
    assert np.allclose(greys, [14.2, 34.9, 77.0, 116.5], atol=6)  # of the same


def test_the_brightest_pixel_of_every_slice_is_255_as_in_the_real_ones(made):
    assert (made[0].max((1, 2)) == 255).all()


def test_brain_lies_sideways_inside_a_bright_scalp_called_background(made):
    images, labels = made
    rows, columns = np.ptp(np.argwhere(labels[0] > 0), axis=0)
    assert 120 < rows < 155 and 155 < columns < 190  # the real slice's: 136 and 170
    assert 0.018 < (images[labels == 0] > 150).mean() < 0.030 and images[labels > 0].max() < 200  # the real share: 0.023


def test_nothing_lies_outside_the_box_and_nothing_in_it_is_lost(made):
    for slices, part in zip(made, practice.make_subject(0, [0, 8, 16, 24, 31])):
        assert slices.shape[1:] == (FRAME, FRAME) and slices.dtype == np.uint8
        assert np.array_equal(slices[:5, 40:216, 24:232], part)  # where the atlas lies in the course's frame
        assert np.count_nonzero(slices[:5]) == np.count_nonzero(part)


def test_same_seed_same_bytes_and_another_seed_another_brain():
    first, again, other = (practice.make_subject(3, [5], seed) for seed in (0, 0, 1))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert (first[1] != other[1]).mean() > 0.05


@pytest.mark.parametrize("spread", [practice.COURSE, practice.VARIED])
def test_a_slice_is_the_same_whatever_others_are_made(spread):
    for number in (0, 1):
        alone, among = (practice.make_subject(number, slices, spread=spread) for slices in ([16], [4, 16, 20]))
        assert all(np.array_equal(a[0], b[1]) for a, b in zip(alone, among))


def test_only_the_slices_that_the_recipe_takes_are_made(monkeypatch):
    calls, make = {}, practice.make_subject

    def record(number, slices, *options):
        calls[int(number)] = list(slices)
        return make(number, slices, *options)

    monkeypatch.setattr(practice, "make_subject", record)
    few = practice.load(FEW)
    # of person k in the row, from k * .618 of a step, without its whole part: 0, .618, .236; .09; .854, .326
    assert calls == {0: [0, 16], 300: [9, 25], 599: [3, 19], 605: [2], 609: [27], 613: [10]}
    assert [(len(s), s.whole, s.n_subjects) for s in few.splits] == [(6, 19200, 3), (1, 192, 1), (2, 256, 2)]
    assert few.test.subjects.tolist() == ["practice_609", "practice_613"] and few.test.positions.tolist() == [27, 10]
    assert few.box == OASIS_BOX and few.image_shape == (FRAME, FRAME, 1)
    nothing_lost(few)


def test_load_reads_its_cache(monkeypatch):
    first = datasets.load(FEW)
    monkeypatch.delattr(practice, "make_slices")
    again = datasets.load(FEW)
    assert np.array_equal(first.train.images, again.train.images) and first.box == again.box
    assert [s.whole for s in again.splits] == [19200, 192, 256]


def test_full_size():
    assert {name: len(numbers) for name, numbers in practice.SUBJECTS.items()} == {
        "train": 600, "validation": 6, "test": 8}
    numbers = [number for split in practice.SUBJECTS.values() for number in split]
    unseen = inspect.signature(practice.write_scan).parameters["number"].default
    assert numbers == list(range(614)) and unseen not in numbers and practice.SLICES == 32


def test_varied_brains_differ_more_and_some_have_no_skull():
    course, varied = ([practice.make_subject(number, [4, 16, 28], spread=spread) for number in range(12)]
                      for spread in (practice.COURSE, practice.VARIED))
    greys = [np.std([image[labels == 3].mean() for image, labels in made if (labels == 3).any()])
             for made in (course, varied)]
    assert greys[1] > 2 * greys[0]
    uneven = [np.mean([image[labels == 3].std() / image[labels == 3].mean() for image, labels in made])
              for made in (course, varied)]
    assert uneven[1] > 2 * uneven[0]
    places = [np.std([np.argwhere(labels[1] > 0).mean(0) for _, labels in made], axis=0) for made in (course, varied)]
    assert (places[0] < 1e-9).all() and (places[1] > 2).all()
    bare = [not image[labels == 0].any() for image, labels in varied]
    assert 2 <= sum(bare) <= 10 and all(image[labels == 0].max() > 100 for image, labels in course)


def test_varied_is_a_data_set():
    made = datasets.load(Recipe("varied", people=1, slices=1, validation_slices=1, test_slices=1))
    assert made.task.title == "varied practice brains (synthetic)"
    assert np.array_equal(made.box.cut(made.train.labels), practice.make_subject(0, [0], spread=practice.VARIED)[1])


def test_a_scan_is_the_subject_whichever_way_it_lies(tmp_path):
    files = practice.write_scan(tmp_path / "new" / "scan.nii.gz", number=2, seed=1)
    assert [file.name for file in files] == ["scan.nii.gz", "scan_seg.nii.gz"]
    for file, slices in zip(files, practice.make_subject(2, range(32), seed=1)):
        written = nib.load(file)
        assert nib.aff2axcodes(written.affine) == ("P", "S", "R")
        assert np.array_equal(nib.as_closest_canonical(written).get_fdata().transpose(2, 0, 1), slices)
