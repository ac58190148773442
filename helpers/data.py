"""The types everything speaks, Split, Dataset, Task and Box, and the checks every data set passes."""

import html
import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from helpers.recipe import MULTIPLE, UserError

GOLDEN = (5**0.5 - 1) / 2
PARTS = ("images", "labels", "subjects", "positions")
UNIFORM = 0.95  # share of a slice's values; if more are equal, it looks like anybody's


class DataError(UserError):
    """Something is wrong with the data given: the message names the file and says what to do."""


class Shown:
    """Shown, in a notebook and in print, as a table under a caption; subclasses define both in `as_table()`."""

    def __repr__(self):
        caption, table = self.as_table()
        return f"{caption}\n{table.to_string()}"

    def _repr_html_(self):
        caption, table = self.as_table()
        return f"<p><b>{html.escape(caption).replace(chr(10), '<br>')}</b></p>{table.to_html()}"


@dataclass(frozen=True, repr=False)
class Table(Shown):
    """A table and what it shows."""

    caption: str
    table: pd.DataFrame

    def as_table(self):
        """The two, as they are."""
        return self.caption, self.table


@dataclass(frozen=True)
class Label:
    """One label: its name, the grey value it has in mask files, and the colour it is drawn in."""

    name: str
    grey: int
    colour: str


# The one home of the tissue labels; colours are Okabe and Ito's, told apart by colour-blind readers.
TISSUES = (
    Label("background", 0, "#000000"),
    Label("CSF", 85, "#56B4E9"),
    Label("grey matter", 170, "#E69F00"),
    Label("white matter", 255, "#009E73"),
)


@dataclass(frozen=True)
class Task:
    """What a data set asks for: its title in every table and figure, its labels, where it came from.

    `mirrors` are the axes of (N, H, W) along which a mirror image is as natural as the picture itself: 1 swaps the
    left and right of a brain that lies sideways, 2 of a head that stands upright; cells have both. `greys` says whether
    pictures differ in contrast, brightness and noise, so that training changes them too.
    """

    title: str
    labels: tuple[Label, ...]
    origin: str
    mirrors: tuple[int, ...] = (1,)
    greys: bool = True

    @classmethod
    def of(cls, parts):
        """The task that `dataclasses.astuple` took apart, also after JSON."""
        title, labels, origin, mirrors, *greys = parts  # runs made before `greys` was known lack it
        return cls(title, tuple(Label(*label) for label in labels), origin, tuple(mirrors), *greys)

    @property
    def names(self):
        """The labels' names, background first."""
        return [label.name for label in self.labels]


@dataclass(frozen=True)
class Box:
    """The part of a frame in which anything is ever seen, in pixels; height and width are multiples of 16.

    Networks see the box only; outside it is background. It may reach beyond a frame that is no multiple of 16.
    """

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def around(cls, seen):
        """The smallest box around the True pixels of `seen` (H, W), inside the frame where it fits."""
        corner, shape = [], []
        for axis, length in enumerate(seen.shape):
            found = np.flatnonzero(seen.any(1 - axis))
            first, end = (int(found[0]), int(found[-1]) + 1) if len(found) else (0, length)
            size = math.ceil((end - first) / MULTIPLE) * MULTIPLE
            room = length - size
            corner.append(min(max((first + end - size) // 2, 0), room) if room >= 0 else room // 2)
            shape.append(size)
        return cls(*corner, *shape)

    @property
    def shape(self):
        """(height, width)."""
        return self.height, self.width

    def holds(self, pictures):
        """Whether pictures (N, H, W, ...) have nothing but zeros outside the box."""
        return np.count_nonzero(self.cut(pictures)) == np.count_nonzero(pictures)

    def cut(self, pictures, pad=np.pad):
        """The box of pictures (N, H, W, ...): (N, height, width, ...), zeros where it reaches beyond the frame."""
        inside, beyond = [np.s_[:]], [(0, 0)] * pictures.ndim
        for axis, (start, size) in enumerate(((self.top, self.height), (self.left, self.width)), 1):
            inside.append(np.s_[max(start, 0):max(start + size, 0)])
            beyond[axis] = max(-start, 0), max(start + size - pictures.shape[axis], 0)
        pictures = pictures[tuple(inside)]
        return pad(pictures, beyond) if np.any(beyond) else pictures  # without a copy, where it can

    def paste(self, parts, frame):
        """What lies in the box, (N, height, width, ...), brought back into new frames (N, H, W, ...) of zeros."""
        return np.array(Box(-self.top, -self.left, *frame).cut(parts))  # seen from the box, the frame is a box

    def seen(self, size=None):
        """(h, w) of what a network sees of the box: all of it, or shrunk until its longer side has `size` pixels."""
        longer = max(self.shape)
        if size is None or size >= longer:
            return self.shape
        return tuple(max(MULTIPLE, round(n * size / longer / MULTIPLE) * MULTIPLE) for n in self.shape)


FRAME = 256  # pixels of 1 mm: the frame of OASIS, practice brains and volumes
OASIS_BOX = Box(40, 24, 176, 208)  # nothing of any OASIS slice, image or label, lies outside (all 11,328 looked at)


@dataclass(frozen=True)
class Split:
    """Slices with their labels, in their own frame.

    images uint8 (N, H, W, C), labels uint8 (N, H, W), subjects (N,) text, positions (N,) the slice's number within its
    subject (counted where not given); `whole` is how many slices there were before thinning.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    task: Task
    positions: np.ndarray = None
    whole: int = None

    def __post_init__(self):
        if self.positions is None:
            own = pd.Series(self.subjects)
            object.__setattr__(self, "positions", own.groupby(own).cumcount().to_numpy())
        if self.whole is None:
            object.__setattr__(self, "whole", len(self))

    def __len__(self):
        return len(self.images)

    def __repr__(self):
        h, w, c = self.images.shape[1:]
        return f"{self.task.title}, {self.name}: {len(self)} slices {h}x{w}x{c} of {self.n_subjects} subjects"

    def take(self, indices):
        """The split's slices at `indices` only."""
        return replace(self, **{part: getattr(self, part)[indices] for part in PARTS})

    @property
    def n_subjects(self):
        """How many people the slices are from."""
        return len(set(self.subjects.tolist()))

    def label_shares(self):
        """Share of all pixels that each label covers, (L,), summing to 1."""
        return sum(np.bincount(labels.ravel(), minlength=len(self.task.labels)) for labels in self.labels) / self.labels.size

    def seen(self, box, size=None):
        """The split as a network sees it: cut to the box and, with `size`, shrunk, images and labels alike."""
        shape = box.seen(size)
        images, labels = box.cut(self.images), box.cut(self.labels)
        if shape != box.shape:
            images = np.stack([shrink(image, shape) for image in images])
            labels = np.stack([shrink_labels(label, shape, len(self.task.labels)) for label in labels])
        return replace(self, images=images, labels=labels)


@dataclass(frozen=True, repr=False)
class Dataset(Shown):
    """Train, validation and test splits of one task, and their box; checked when made, so what exists is sound.

    `size`, where it is less than the box's longer side, is what the recipe shrinks the box to for the network.
    """

    train: Split
    validation: Split
    test: Split
    box: Box = None
    size: int = None

    def __post_init__(self):
        check(self)
        if self.box is None:
            seen = [split.images.any((0, 3)) | split.labels.any(0) for split in self.splits]
            object.__setattr__(self, "box", Box.around(np.any(seen, axis=0)))

    @property
    def splits(self):
        """The three splits, in the order train, validation, test."""
        return self.train, self.validation, self.test

    @property
    def task(self):
        """Title, labels and origin, the same for every split."""
        return self.train.task

    @property
    def image_shape(self):
        """(H, W, C) of every image: the frame and the channels."""
        return self.train.images.shape[1:]

    @property
    def n_labels(self):
        """L, background included."""
        return len(self.task.labels)

    def table(self):
        """One row per split: slices, subjects, and the share of pixels of each label in per cent."""
        shares = [f"{name} (% of pixels)" for name in self.task.names]
        rows = {s.name: [len(s), s.whole, s.n_subjects, *(100 * s.label_shares()).round(1)] for s in self.splits}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["slices", "of", "subjects", *shares])

    def as_table(self):
        """Title, frame, box and source; the table of splits."""
        h, w, c = self.image_shape
        box, seen = self.box, self.box.seen(self.size)
        shrunk = "" if seen == box.shape else f", shrunk to {seen[0]}x{seen[1]}; they are scored in the whole frame"
        return (f"{self.task.title}: {c}-channel slices in a frame of {h}x{w} pixels, of which networks see rows "
                f"{box.top} to {box.top + box.height - 1} and columns {box.left} to {box.left + box.width - 1} "
                f"({box.height}x{box.width}{shrunk}). Source: {self.task.origin}", self.table())


def check(dataset):
    """Raise DataError unless shapes agree, labels are 0..L-1, no split is empty or shares a subject or slice."""
    seen = {}
    for split in dataset.splits:
        shapes = {part: getattr(split, part).shape for part in PARTS}
        if len(split) == 0:
            raise DataError(f"The {split.name} split of {split.task.title} is empty.")
        if shapes["images"][:3] != shapes["labels"] or {shape[0] for shape in shapes.values()} != {len(split)}:
            raise DataError(f"In {split.name}, these do not go together: {shapes}.")
        if (shape := split.images.shape[1:]) != dataset.image_shape:
            raise DataError(f"{split.name} has slices {shape}, train {dataset.image_shape}. All must have one size.")
        if split.labels.max() >= dataset.n_labels:
            raise DataError(f"In {split.name}, a label is {split.labels.max()}; expected 0..{dataset.n_labels - 1}.")
        for subject, image, position in zip(split.subjects.tolist(), split.images, split.positions.tolist()):
            marks = {(who := subject.lower()): f"Subject {subject}", hash(image.tobytes()): f"Slice {position} of {subject}"}
            for mark, what in marks.items():
                name, other = seen.setdefault(mark, (split.name, what))
                if name != split.name and (mark == who or np.bincount(image.ravel()).max() < UNIFORM * image.size):
                    raise DataError(f"{what} in {split.name} is the same as {other} in {name}. Remove one.")


def evenly(n, limit, ends=True):
    """Indices of at most `limit` of `n` things, evenly spread, in order; without `ends`, first and last left out."""
    if ends:
        return np.arange(n) if limit is None or limit >= n else np.linspace(0, n - 1, limit).round().astype(int)
    return np.unique(np.linspace(0, n - 1, limit + 2).round().astype(int)[1:-1])


def thin(subjects, slices=None, people=None):
    """Indices of `slices` slices of `people` people (None: all), spread evenly over people and over their slices.

    `subjects` (N,) says who each slice is from, a person's slices together. From person to person the chosen positions
    shift, so that together they cover all positions.
    """
    codes, names = pd.factorize(np.asarray(subjects))
    index = np.flatnonzero(np.isin(codes, evenly(len(names), people)))
    if slices is None or slices >= len(index):
        return index
    own = np.split(index, np.flatnonzero(np.diff(codes[index])) + 1)  # each person's
    shares = np.diff(slices * np.cumsum([0, *map(len, own)]) // len(index))
    steps = [(np.arange(share) + number * GOLDEN % 1) * len(theirs) / share
             for number, (theirs, share) in enumerate(zip(own, shares))]
    return np.concatenate([theirs[step.astype(int)] for theirs, step in zip(own, steps)])


def shrink(image, shape):
    """An image (H, W, C) shrunk to `shape`: each new pixel is the mean of what it covers, rounded."""
    means = covered(np.moveaxis(image, -1, 0), shape) / (image.shape[0] * image.shape[1])
    return np.floor(means + 0.5).astype(np.uint8).transpose(1, 2, 0)


def shrink_labels(labels, shape, n_labels):
    """Labels (H, W) shrunk to `shape`: each new pixel has the label that covers most of it; of equals the lower."""
    return covered(labels == np.arange(n_labels)[:, None, None], shape).argmax(0).astype(np.uint8)


def covered(pictures, shape):
    """Sums (C, h, w) of what each new pixel covers of pictures (C, H, W), in units in which it covers H * W.

    The sums are whole numbers, so that a mirror image shrinks to exactly the mirror image.
    """
    rows, columns = map(overlaps, pictures.shape[1:], shape)
    return rows @ pictures @ columns.T


def overlaps(old, new):
    """How much of each old pixel each new one covers, (new, old), along a line of `old` * `new` units."""
    begin, first = np.arange(new)[:, None] * old, np.arange(old) * new
    return np.maximum(np.minimum(begin + old, first + new) - np.maximum(begin, first), 0.0)


def has_bright_background(image):
    """Whether most of an image (H, W, C) is bright, as under a light microscope, and not dark."""
    return bool(np.median(image) > 127)


def split_subjects(subjects, seed, kinds=None, shares=(0.1, 0.2)):
    """{split: set of subjects}: shares of them, at least one each, for validation and test, chosen with `seed`.

    `kinds` {subject: kind} makes every split hold the kinds in the same proportion.
    """
    rest = np.random.default_rng(seed).permutation(sorted(set(subjects))).tolist()
    if len(rest) < 3:
        raise DataError(f"There are {len(rest)} subjects ({', '.join(rest)}); three splits need at least 3.")
    if kinds:
        rest.sort(key=kinds.get)  # kind by kind, at random within: every k-th is then a fair sample
    counts = [max(1, round(share * len(rest))) for share in shares]
    chosen = {"train": set()}
    for name, count in zip(("validation", "test"), counts):
        chosen[name] = {rest[int((i + 0.5) * len(rest) / count)] for i in range(count)}
        rest = [subject for subject in rest if subject not in chosen[name]]
    return chosen | {"train": set(rest)}


def split_dataset(whole, seed, shares=(0.1, 0.2), kinds=None):
    """Dataset from a Split of all slices, split by subject as `split_subjects` does."""
    parts = split_subjects(whole.subjects.tolist(), seed, kinds, shares)
    return Dataset(*(replace(whole.take(np.isin(whole.subjects, sorted(chosen))), name=name, whole=None)
                     for name, chosen in parts.items()))
