import nibabel as nib
import numpy as np
import pytest

from helpers import data
from helpers.datasets import practice


@pytest.fixture(scope="module")
def made():
    subjects = [practice.make_subject(number, [0, 8, 16, 24, 31]) for number in range(4)]
    return tuple(np.stack(arrays) for arrays in zip(*subjects))


def test_label_shares_are_near_the_real_ones(made):
    shares = np.bincount(made[1].ravel(), minlength=4) / made[1].size
    assert np.allclose(100 * shares, [72.3, 5.6, 11.4, 10.7], atol=2)  # of the course's training pixels


def test_mean_greys_are_near_the_real_ones(made):
    images, labels = made
    greys = [images[labels == label].mean() for label in range(4)]
    assert np.allclose(greys, [15.6, 35.2, 77.3, 115.1], atol=6)  # of case 001, slice 0


def test_brain_lies_sideways_inside_a_bright_scalp_called_background(made):
    images, labels = made
    rows, columns = np.ptp(np.argwhere(labels[0, 0] > 0), axis=0)
    assert 120 < rows < 155 and 155 < columns < 190  # the real slice's: 136 and 170
    outside = images[labels == 0]
    assert (outside > 150).mean() > 0.03 and images[labels > 0].max() < 200


def test_same_seed_same_bytes_and_another_seed_another_brain():
    first, again, other = (practice.make_subject(3, [5], 64, seed) for seed in (0, 0, 1))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert (first[1] != other[1]).mean() > 0.05


def test_a_subject_is_the_same_whatever_slices_are_asked_for():
    alone, among = practice.make_subject(0, [16], 64)[1], practice.make_subject(0, [4, 16, 20], 64)[1]
    assert np.array_equal(alone[0], among[1])


def test_load_splits_by_subject_and_reads_its_cache():
    first = data.load("practice", size=32, limit=12)
    assert [(len(s), s.images.shape[1:]) for s in first.splits] == [(12, (32, 32, 1))] * 3
    assert first.test.subjects[0] == "practice_046" and first.test.subjects[-1] == "practice_053"
    [file] = data.CACHE.iterdir()
    made = file.stat().st_ino  # a file made anew is another one
    again = data.load("practice", size=32, limit=12)
    assert np.array_equal(first.train.images, again.train.images) and file.stat().st_ino == made


def test_full_size():
    assert {name: len(numbers) for name, numbers in practice.numbered_subjects().items()} == {
        "train": 40, "validation": 6, "test": 8}
    assert practice.SLICES == 32 and practice.FRAME == 256


def test_varied_brains_differ_more_and_some_have_no_skull():
    course, varied = ([practice.make_subject(number, [4, 16, 28], 64, spread=spread) for number in range(12)]
                      for spread in (practice.COURSE, practice.VARIED))
    greys = [np.std([image[labels == 3].mean() for image, labels in made if (labels == 3).any()])
             for made in (course, varied)]
    assert greys[1] > 2 * greys[0]
    bare = [not image[labels == 0].any() for image, labels in varied]
    assert 2 <= sum(bare) <= 10 and all(image[labels == 0].max() > 100 for image, labels in course)


def test_varied_is_a_data_set():
    made = data.load("varied", size=32, limit=8)
    assert made.task.title == "varied practice brains (synthetic)" and made.n_labels == 4


def test_a_scan_is_the_subject_whichever_way_it_lies(tmp_path):
    files = practice.write_scan(tmp_path / "new" / "scan.nii.gz", number=2, seed=1)
    assert [file.name for file in files] == ["scan.nii.gz", "scan_seg.nii.gz"]
    for file, slices in zip(files, practice.make_subject(2, range(32), seed=1)):
        written = nib.load(file)
        assert nib.aff2axcodes(written.affine) == ("P", "S", "R")
        assert np.array_equal(nib.as_closest_canonical(written).get_fdata().transpose(2, 0, 1), slices)
    numbers = [number for split in practice.numbered_subjects().values() for number in split]
    assert practice.UNSEEN not in numbers
