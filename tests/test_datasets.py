import os

import numpy as np
import pytest
from PIL import Image

from helpers import datasets
from helpers.data import PARTS, TISSUES, Box, DataError, Dataset, Split, Task
from helpers.datasets import oasis
from helpers.recipe import Recipe

TASK = Task("toy", TISSUES, "made here", mirrors=(1, 2))


def toy_set(grey=0, counts=(8, 4, 4)):
    """Two people a split; only the second slice of each split has anything, at another place in each."""
    splits = []
    for number, (name, n) in enumerate(zip(("train", "validation", "test"), counts)):
        images, labels = np.zeros((n, 64, 64, 1), np.uint8), np.zeros((n, 64, 64), np.uint8)
        images[1, 20 + number, 30], labels[1, 30, 20 + number] = grey, number + 1
        splits.append(Split(name, images, labels, np.repeat([f"{name} a", f"{name} b"], n // 2), TASK))
    return Dataset(*splits)


def nothing_lost(dataset):
    """Assert that every pixel of images and labels lies in the box: none is lost by cutting, none made by pasting."""
    for split in dataset.splits:
        for part in (split.images, split.labels):
            assert np.array_equal(dataset.box.paste(dataset.box.cut(part), dataset.image_shape[:2]), part)


def same(a, b):
    return all(np.array_equal(getattr(x, part), getattr(y, part))
               for x, y in zip(a.splits, b.splits) for part in PARTS)


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match="Nothing is at nowhere"):
        datasets.load(Recipe("oasis", "nowhere"))


def test_as_many_as_the_recipe_takes(course):
    whole = datasets.load(Recipe("oasis", str(course)))
    few = datasets.load(Recipe("oasis", str(course), slices=3, people=1, validation_slices=2, test_slices=1, size=32))
    assert [(len(s), s.whole) for s in whole.splits] == [(8, 8), (4, 4), (4, 4)]
    assert [(len(s), s.whole) for s in few.splits] == [(3, 8), (2, 4), (1, 4)] and (few.size, whole.size) == (32, None)
    assert few.train.subjects.tolist() == ["case_001"] * 3 and few.train.positions.tolist() == [0, 1, 2]
    assert few.train.images[:, 0, 0, 0].tolist() == [20, 21, 22]  # the grey of case c, slice s is c * 20 + s
    assert few.validation.positions.tolist() == [0, 2] and few.test.positions.tolist() == [0]


def test_the_box_is_that_of_all_slices():
    whole = toy_set(9)
    thinned = datasets.thinned(whole, Recipe("oasis", slices=2, validation_slices=2, test_slices=2))
    assert [len(split) for split in thinned.splits] == [2, 2, 2] and thinned.box == whole.box == Box(17, 17, 16, 16)
    assert not any(split.labels.any() for split in thinned.splits)
    nothing_lost(whole)
    with pytest.raises(AssertionError):
        nothing_lost(Dataset(*whole.splits, Box(21, 17, 16, 16)))


def test_the_cache_knows_what_decides_the_data(course, monkeypatch):
    calls, load = [], oasis.load
    monkeypatch.setattr(oasis, "load", lambda recipe: calls.append(1) or load(recipe))
    for options, made in (({}, 1), ({"epochs": 3, "size": 32, "mirrors": False}, 1), ({"slices": 3}, 2),
                          ({"seed": 1}, 3), ({"people": 1}, 4), ({"validation_slices": 1}, 5), ({"test_slices": 1}, 6),
                          ({"slices": 3}, 6), ({}, 6)):
        datasets.load(Recipe("oasis", str(course), **options))
        assert len(calls) == made, options


def test_the_cache_gives_all_back_and_is_remade_when_damaged():
    calls, whole = [], datasets.thinned(toy_set(7), Recipe("oasis", slices=3))

    def make():
        calls.append(1)
        return whole

    for _ in range(2):
        again = datasets.cached(("key", 1), make)
        assert same(again, whole) and (again.task, again.box, again.train.whole) == (TASK, whole.box, 8)
    assert len(calls) == 1
    [file] = datasets.CACHE.iterdir()
    intact = file.read_bytes()
    for damaged in (intact[:50], intact[:-30], b"", intact[:1000] + bytes([7] * 50) + intact[1050:]):
        file.write_bytes(damaged)
        assert same(datasets.cached(("key", 1), make), whole)
    assert len(calls) == 5
    datasets.cached(("key", 2), make)
    assert len(calls) == 6 and len(list(datasets.CACHE.iterdir())) == 2


def test_a_crash_while_caching_leaves_nothing(monkeypatch):
    def crash(*arrays, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", crash)
        with pytest.raises(KeyboardInterrupt):
            datasets.cached("key", toy_set)
    assert not list(datasets.CACHE.iterdir()) and datasets.cached("key", toy_set).n_labels == 4


def test_what_nobody_read_for_a_month_goes():
    made = []

    def read(key):
        datasets.cached(key, lambda: made.append(key) or toy_set())

    read("a")
    read("b")
    (datasets.CACHE / "part-crashed.npz").write_bytes(b"half")
    for file in datasets.CACHE.iterdir():
        os.utime(file, (0, 0))
    read("a")
    read("c")
    assert len(list(datasets.CACHE.iterdir())) == 2 and made == ["a", "b", "c"]
    read("a")
    read("b")
    assert made == ["a", "b", "c", "b"]


def test_a_full_disk_only_costs_the_cache(monkeypatch):
    def full(*arrays, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert datasets.cached("key", toy_set).n_labels == 4 and not list(datasets.CACHE.iterdir())


def test_the_cache_lies_with_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("OASIS_RUNS", str(tmp_path / "elsewhere"))
    datasets.cached("key", toy_set)
    assert len(list((tmp_path / "elsewhere" / "cache").glob("*.npz"))) == 1 and not datasets.CACHE.exists()


def test_a_file_corrected_within_its_size_and_time_is_read_again(course):
    files = [course / "keras_png_slices_seg_train" / f"seg_001_slice_{n}.nii.png" for n in (0, 1)]
    small, large = sorted((0, 1), key=lambda n: files[n].stat().st_size)
    before, times = datasets.load(Recipe("oasis", str(course))), files[large].stat()
    files[large].write_bytes(files[small].read_bytes().ljust(times.st_size, b"\0"))
    os.utime(files[large], ns=(times.st_atime_ns, times.st_mtime_ns))
    after = datasets.load(Recipe("oasis", str(course)))
    assert np.array_equal(after.train.labels[large], before.train.labels[small])


def test_changed_files_are_read_again(course):
    first = datasets.load(Recipe("oasis", str(course)))
    file = course / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    Image.fromarray(np.full((16, 16), 99, np.uint8)).save(file)
    again = datasets.load(Recipe("oasis", str(course)))
    assert first.train.images[0, 0, 0, 0] == 20 and again.train.images[0, 0, 0, 0] == 99
