import os

import numpy as np
import pytest
from PIL import Image

from helpers import data
from helpers.data import TISSUES, DataError, Dataset, Split, Task

TASK = Task("toy", TISSUES, "made here")


def split(name, subjects, labels=0, side=4):
    n = len(subjects)
    return Split(name, np.zeros((n, side, side, 1), np.uint8), np.full((n, side, side), labels, np.uint8),
                 np.array(subjects), TASK)


def test_take_keeps_what_belongs_together():
    whole = split("test", list("abc"))
    some = whole.take([2, 0])
    assert some.subjects.tolist() == ["c", "a"] and np.array_equal(some.images, whole.images[[2, 0]])
    assert np.array_equal(some.labels, whole.labels[[2, 0]]) and some.task == whole.task and some.name == "test"


def test_label_shares_by_hand():
    one = split("train", ["a", "b"])
    one.labels[0, :2] = 1  # 8 of 32 pixels
    one.labels[1, 0, 0] = 3
    assert one.label_shares().tolist() == [23 / 32, 8 / 32, 0, 1 / 32]


def test_table_and_print():
    made = Dataset(split("train", ["a", "b"]), split("validation", ["c"]), split("test", ["d"]))
    assert made.table()["subjects"].tolist() == [2, 1, 1]
    assert "toy: images 4x4x1, 4 labels. Source: made here" in repr(made) and "<table" in made._repr_html_()
    assert repr(made.test) == "toy, test: 1 slices 4x4x1 of 1 subjects"


@pytest.mark.parametrize("splits, complaint", [
    ((split("train", ["a"]), split("validation", ["b"]), split("test", ["a"])), "Subject a is in both train and test"),
    ((split("train", ["a"]), split("validation", []), split("test", ["c"])), "validation split of toy is empty"),
    ((split("train", ["a"]), split("validation", ["b"], labels=4), split("test", ["c"])), "a label is 4"),
    ((split("train", ["a"]), split("validation", ["b"]), split("test", ["c"], side=8)), "All must have one size"),
])
def test_unsound_sets_are_refused(splits, complaint):
    with pytest.raises(DataError, match=complaint):
        Dataset(*splits)


def test_shapes_must_agree():
    odd = split("test", ["c"])
    odd = Split("test", odd.images, odd.labels[:, :2], odd.subjects, TASK)
    with pytest.raises(DataError, match="do not go together"):
        Dataset(split("train", ["a"]), split("validation", ["b"]), odd)


def test_load_says_what_there_is():
    with pytest.raises(DataError, match="no data set 'oasys'.*practice, varied, oasis, volumes, lgg, nuclei"):
        data.load("oasys")
    with pytest.raises(DataError, match="size is 0"):
        data.load("practice", size=0)
    with pytest.raises(DataError, match="limit is '64'"):
        data.load("practice", limit="64")


def test_evenly():
    assert data.evenly(5, None).tolist() == [0, 1, 2, 3, 4] == data.evenly(5, 9).tolist()
    assert data.evenly(9, 3).tolist() == [0, 4, 8]


@pytest.mark.parametrize("side", [32, 64, 80, 300])
def test_image_and_mask_are_resized_by_the_same_pixels(side):
    colours = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    small = data.resize(colours, 32)
    assert small.shape == (32, 32, 3)
    for channel in range(3):  # a mask with the greys of one channel
        assert np.array_equal(data.resize(colours[..., channel], 32), small[..., channel])
    rows, columns = (np.floor((np.arange(32) + 0.5) * side / 32).astype(int),) * 2
    assert np.array_equal(small, colours[rows][:, columns])  # nearest to the middle of each new pixel
    assert data.resize(colours, None) is colours


def toy_set(grey=0):
    made = Dataset(split("train", ["a", "b"]), split("validation", ["c"]), split("test", ["d"]))
    made.train.images[:] = grey
    return made


def test_cache_is_made_once_and_remade_when_damaged():
    calls = []

    def make():
        calls.append(1)
        return toy_set(7)

    for _ in range(2):
        again = data.cached(("key", 1), make)
        assert again.train.images.max() == 7 and again.task == TASK and again.test.subjects.tolist() == ["d"]
    assert len(calls) == 1
    [file] = data.CACHE.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:50], whole[:-30], b"", whole[:1000] + bytes(50) + whole[1050:]):
        file.write_bytes(damaged)
        assert data.cached(("key", 1), make).train.images.max() == 7
    assert len(calls) == 5
    data.cached(("key", 2), make)
    assert len(calls) == 6 and not list(data.CACHE.glob("*.part"))


def test_a_crash_while_caching_leaves_nothing(monkeypatch):
    def crash(*arrays, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", crash)
        with pytest.raises(KeyboardInterrupt):
            data.cached("key", toy_set)
    assert not list(data.CACHE.glob("*.npz")) and data.cached("key", toy_set).n_labels == 4


def test_what_nobody_read_for_a_month_goes():
    made = []

    def read(key):
        data.cached(key, lambda: made.append(key) or toy_set())

    read("a")
    read("b")
    (data.CACHE / "crashed.1.part").write_bytes(b"half")
    for file in data.CACHE.iterdir():
        os.utime(file, (0, 0))
    read("a")
    read("c")
    assert len(list(data.CACHE.iterdir())) == 2 and made == ["a", "b", "c"]
    read("a")
    read("b")
    assert made == ["a", "b", "c", "b"]


def test_a_full_disk_only_costs_the_cache(monkeypatch):
    def full(*arrays, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert data.cached("key", toy_set).n_labels == 4 and not list(data.CACHE.iterdir())


def test_changed_files_are_read_again(course):
    first = data.load("oasis", course)
    file = course / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    Image.fromarray(np.full((16, 16), 99, np.uint8)).save(file)
    assert first.train.images[0, 0, 0, 0] == 20 and data.load("oasis", course).train.images[0, 0, 0, 0] == 99


def test_split_subjects():
    names = [f"s{i:02d}" for i in range(20)]
    drawn = data.split_subjects(names * 3, seed=1)
    assert [len(drawn[name]) for name in ("train", "validation", "test")] == [14, 2, 4]
    assert set.union(*drawn.values()) == set(names) and drawn == data.split_subjects(names, seed=1)
    assert drawn != data.split_subjects(names, seed=2)
    looks = {name: name > "s09" for name in names}
    assert sum(looks[name] for name in data.split_subjects(names, 0, looks)["test"]) == 2  # half of 4
    with pytest.raises(DataError, match="at least 3"):
        data.split_subjects(["a", "b"], 0)
