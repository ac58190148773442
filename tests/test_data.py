import numpy as np
import pytest

from helpers import data
from helpers.data import FRAME, OASIS_BOX, TISSUES, Box, DataError, Dataset, Split, Task

TASK = Task("toy", TISSUES, "made here")


def split(name, subjects, labels=0, side=4):
    n = len(subjects)
    return Split(name, np.zeros((n, side, side, 1), np.uint8), np.full((n, side, side), labels, np.uint8),
                 np.array(subjects), TASK)


def test_positions_are_counted_and_take_keeps_what_belongs_together():
    whole = split("test", list("abaab"))
    assert whole.positions.tolist() == [0, 0, 1, 2, 1]
    whole.images[:, 0, 0, 0] = whole.labels[:, 0, 0] = range(5)
    some = whole.take([4, 2])
    assert some.subjects.tolist() == ["b", "a"] and some.positions.tolist() == [1, 1]
    assert some.images[:, 0, 0, 0].tolist() == some.labels[:, 0, 0].tolist() == [4, 2]
    assert (len(some), some.whole, some.name, some.task) == (2, 5, "test", TASK)


def test_label_shares_by_hand():
    one = split("train", ["a", "b"])
    one.labels[0, :2] = 1  # 8 of 32 pixels
    one.labels[1, 0, 0] = 3
    assert one.label_shares().tolist() == [23 / 32, 8 / 32, 0, 1 / 32]


def test_table_and_print():
    made = Dataset(split("train", ["a", "b", "b"]).take([0, 2]), split("validation", ["c"]), split("test", ["d"]))
    assert made.table()[["slices", "of", "subjects"]].to_numpy().tolist() == [[2, 3, 2], [1, 1, 1], [1, 1, 1]]
    assert ("toy: 1-channel slices in a frame of 4x4 pixels, of which networks see rows -6 to 9 and columns -6 to 9 "
            "(16x16). Source: made here") in repr(made) and "<table" in made._repr_html_()
    assert repr(made.test) == "toy, test: 1 slices 4x4x1 of 1 subjects"


def test_a_table_says_that_the_network_sees_less():
    splits = (split(name, [name], side=64) for name in ("train", "validation", "test"))
    assert "(64x64, shrunk to 32x32; they are scored in the whole frame)" in repr(Dataset(*splits, size=32))


@pytest.mark.parametrize("splits, complaint", [
    ((split("train", ["a"]), split("validation", ["b"]), split("test", ["a"])), "Subject a in test is the same as Subject a in train"),
    ((split("train", ["a"]), split("validation", []), split("test", ["c"])), "validation split of toy is empty"),
    ((split("train", ["a"]), split("validation", ["b"], labels=4), split("test", ["c"])), "a label is 4"),
    ((split("train", ["a"]), split("validation", ["b"]), split("test", ["c"], side=8)), "All must have one size"),
])
def test_unsound_sets_are_refused(splits, complaint):
    with pytest.raises(DataError, match=complaint):
        Dataset(*splits)


@pytest.mark.parametrize("part", data.PARTS)
def test_shapes_must_agree(part):
    odd = split("test", ["c", "d"])
    parts = {name: getattr(odd, name) for name in data.PARTS}
    with pytest.raises(DataError, match="do not go together"):
        Dataset(split("train", ["a"]), split("validation", ["b"]),
                Split("test", **parts | {part: parts[part][:1]}, task=TASK))


@pytest.mark.parametrize("shape, seen, box", [
    ((64, 64), (slice(10, 21), slice(60, 64)), Box(7, 48, 16, 16)),  # in the middle; moved inside the frame
    ((64, 48), (slice(0, 17), slice(0, 48)), Box(0, 0, 32, 48)),
    ((40, 100), (slice(0, 40), slice(0, 100)), Box(-4, -6, 48, 112)),  # as far beyond the frame on either side
    ((20, 32), (slice(3, 4), slice(31, 32)), Box(0, 16, 16, 16)),
    ((32, 32), (slice(0), slice(0)), Box(0, 0, 32, 32))])  # nothing seen: all of it
def test_box_around(shape, seen, box):
    drawn = np.zeros(shape, bool)
    drawn[seen] = True
    assert Box.around(drawn) == box


def test_box_of_a_data_set_holds_images_and_labels_of_all_splits():
    train, validation, test = (split(name, [name], side=64) for name in ("train", "validation", "test"))
    train.images[0, 20, 20] = validation.labels[0, 30, 20] = test.labels[0, 20, 40] = 1
    assert Dataset(train, validation, test).box == Box(17, 14, 16, 32)  # of rows 20..30, columns 20..40
    assert Dataset(train, validation, test, OASIS_BOX).box == OASIS_BOX


def test_cut_and_paste_by_hand():
    box, frame = Box(-1, 1, 3, 4), np.arange(1, 10).reshape(1, 3, 3)
    assert box.cut(frame).tolist() == [[[0, 0, 0, 0], [2, 3, 0, 0], [5, 6, 0, 0]]]
    assert box.paste(np.arange(1, 13).reshape(1, 3, 4), (3, 3)).tolist() == [[[0, 5, 6], [0, 9, 10], [0, 0, 0]]]


@pytest.mark.parametrize("box, shape", [(OASIS_BOX, (FRAME, FRAME)), (Box(-4, -6, 48, 112), (40, 100)),
                                        (Box(16, -6, 16, 112), (40, 100))])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_what_is_inside_comes_back_where_it_was(box, shape, channels):
    pictures = np.random.default_rng(0).integers(1, 256, (2, *shape, *channels), np.uint8)
    inside = np.zeros(shape, bool)
    inside[max(box.top, 0):box.top + box.height, max(box.left, 0):box.left + box.width] = True
    back = box.paste(box.cut(pictures), shape)
    assert box.cut(pictures).shape == (2, *box.shape, *channels) and back.dtype == np.uint8
    assert np.array_equal(back[:, inside], pictures[:, inside]) and not back[:, ~inside].any()


@pytest.mark.parametrize("row, column, inside", [(10, 10, True), (41, 25, True), (9, 10, False), (10, 26, False)])
def test_a_box_holds_what_lies_inside_it(row, column, inside):
    pictures = np.zeros((2, 64, 64, 1), np.uint8)
    pictures[1, row, column] = 1
    assert Box(10, 10, 32, 16).holds(pictures) == inside


@pytest.mark.parametrize("size, seen", [(None, (176, 208)), (208, (176, 208)), (4096, (176, 208)), (112, (96, 112)),
                                        (48, (48, 48)), (16, (16, 16))])
def test_what_a_network_sees_of_a_box(size, seen):
    assert OASIS_BOX.seen(size) == seen  # half of 176x208 is 96x112, in multiples of 16


def test_evenly():
    assert data.evenly(5, None).tolist() == [0, 1, 2, 3, 4] == data.evenly(5, 9).tolist()
    assert data.evenly(9, 3).tolist() == [0, 4, 8] and data.evenly(9, 3, ends=False).tolist() == [2, 4, 6]


def test_thin_by_hand():
    # a has 1 of 3, its first; b's 2 of 4 begin .618 of a step later: at .618 * 2 and 1.618 * 2
    assert data.thin(list("aabbbb"), 3).tolist() == [0, 3, 5]
    assert data.thin(list("aabbbb"), 1, people=1).tolist() == [0]


@pytest.mark.parametrize("n", [1, 5, 7, 12, 25, 39, 40])
def test_thin_takes_exactly_as_many_from_all_alike(n):
    people = np.repeat(["e", "d", "c", "b", "a"], 8)
    chosen = data.thin(people, n)
    counts = [sum(people[chosen] == person) for person in "abcde"]
    assert len(set(chosen.tolist())) == n and chosen.tolist() == sorted(chosen) and np.ptp(counts) <= 1
    assert data.thin(people[chosen], n).tolist() == list(range(n))  # thinned already: nothing more to take away


def test_thin_covers_all_positions_alike():
    people, positions = np.repeat(np.arange(302), 32), np.tile(np.arange(32), 302)  # OASIS's training slices
    each = np.bincount(positions[data.thin(people, 2416)], minlength=32)
    assert each.sum() == 2416 and each.min() >= 72 and each.max() <= 79  # 75.5 on average
    assert sorted(set(positions[data.thin(people, 302)].tolist())) == list(range(32))  # with one slice each, too


def test_thin_takes_people_evenly_and_no_more_than_there_are():
    people = np.repeat(list("abcde"), 4)
    assert people[data.thin(people, people=3)].tolist() == [*"aaaacccceeee"]
    assert people[data.thin(people, 6, 3)].tolist() == [*"aaccee"]
    for many in ((None, None), (20, 5), (21, 6), (None, 9)):
        assert data.thin(people, *many).tolist() == list(range(20))


def test_thin_takes_more_from_those_with_more():
    people = np.repeat(list("abc"), (2, 10, 20))
    assert np.unique(people[data.thin(people, 16)], return_counts=True)[1].tolist() == [1, 5, 10]


def test_shrink_by_hand():
    image = np.array([[0, 30, 60], [90, 120, 150]], np.uint8)[..., None]
    assert data.shrink(image, (1, 3))[..., 0].tolist() == [[45, 75, 105]]
    # three pixels on two: each covers one and a half
    assert data.shrink(image, (2, 2))[..., 0].tolist() == [[10, 50], [100, 140]]
    assert data.shrink(np.array([[[0, 1], [1, 2]]], np.uint8), (1, 1)).tolist() == [[[1, 2]]]  # halves are rounded up


def test_shrink_labels_by_hand():
    labels = np.array([[0, 0, 3, 3], [0, 1, 1, 2]], np.uint8)
    assert data.shrink_labels(labels, (1, 2), 4).tolist() == [[0, 3]]
    assert data.shrink_labels(labels, (1, 4), 4).tolist() == [[0, 0, 1, 2]]  # of equals the lower
    assert data.shrink_labels(np.array([[1, 2, 2]], np.uint8), (1, 2), 3).tolist() == [[1, 2]]


@pytest.mark.parametrize("old, new", [((176, 208), (96, 112)), ((176, 224), (96, 112)), ((256, 256), (96, 96))])
def test_a_mirror_image_shrinks_to_the_mirror_image(old, new):
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (*old, 1), np.uint8), rng.integers(0, 4, old, np.uint8)
    for axis in (0, 1):
        assert np.array_equal(data.shrink(np.flip(image, axis), new), np.flip(data.shrink(image, new), axis))
        assert np.array_equal(data.shrink_labels(np.flip(labels, axis), new, 4),
                              np.flip(data.shrink_labels(labels, new, 4), axis))


def test_a_network_sees_image_and_labels_alike():
    whole = split("train", ["a"], side=64)
    whole.images[0, 20:30, 40:46, 0], whole.labels[0, 20:30, 40:46] = 200, 3
    box = Box(10, 20, 32, 32)
    for size, (rows, columns) in {None: ((10, 20), (20, 26)), 16: ((5, 10), (10, 13))}.items():
        seen = whole.seen(box, size)
        for part in (seen.images[0, ..., 0] == 200, seen.labels[0] == 3):
            found = np.argwhere(part)
            assert [found.min(0).tolist(), (found.max(0) + 1).tolist()] == [*map(list, zip(rows, columns))]
            assert part.shape == box.seen(size) and part.sum() == len(found) == np.ptp(rows) * np.ptp(columns)
        assert len(np.unique(seen.images)) == len(np.unique(seen.labels)) == 2  # no border is mixed here


def test_split_subjects():
    subjects = [f"s{i:02d}" for i in range(20)]
    chosen = data.split_subjects(subjects * 3, seed=1)
    assert [len(chosen[name]) for name in ("train", "validation", "test")] == [14, 2, 4]
    assert set.union(*chosen.values()) == set(subjects) and chosen == data.split_subjects(subjects, seed=1)
    assert chosen != data.split_subjects(subjects, seed=2)
    kinds = {name: name > "s09" for name in subjects}
    assert sum(kinds[name] for name in data.split_subjects(subjects, 0, kinds)["test"]) == 2  # half of 4
    with pytest.raises(DataError, match="at least 3"):
        data.split_subjects(["a", "b"], 0)
