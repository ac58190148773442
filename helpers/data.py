"""The data type everything speaks, the checks every data set passes, and `load`."""

import hashlib
import html
import importlib
import json
import os
import time
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

CACHE = Path("runs/cache")
MONTH = 30 * 24 * 3600  # seconds
PARTS = ("images", "labels", "subjects")
SOURCES = ("practice", "varied", "oasis", "volumes", "lgg", "nuclei")  # modules of helpers.datasets


class DataError(Exception):
    """Something is wrong with the data given: the message names the file and says what to do."""


class Captioned:
    """Shown, in a notebook and in print, as a table under a caption; heirs say both in `captioned()`."""

    def __repr__(self):
        caption, table = self.captioned()
        return f"{caption}\n{table.to_string()}"

    def _repr_html_(self):
        caption, table = self.captioned()
        return f"<p><b>{html.escape(caption)}</b></p>{table.to_html()}"


@dataclass(frozen=True, repr=False)
class Table(Captioned):
    """A table and what it shows."""

    caption: str
    table: pd.DataFrame

    def captioned(self):
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
    left and right of a brain that lies sideways, 2 of a head that stands upright; cells have both.
    """

    title: str
    labels: tuple[Label, ...]
    origin: str
    mirrors: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Split:
    """Slices with their labels: images uint8 (N, H, W, C), labels uint8 (N, H, W), subjects (N,) text."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    task: Task

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
        counts = sum(np.bincount(labels.ravel(), minlength=len(self.task.labels)) for labels in self.labels)
        return counts / self.labels.size


@dataclass(frozen=True, repr=False)
class Dataset(Captioned):
    """Train, validation and test splits of one task; checked when made, so what exists is sound."""

    train: Split
    validation: Split
    test: Split

    def __post_init__(self):
        check(self)

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
        """(H, W, C) of every image."""
        return self.train.images.shape[1:]

    @property
    def n_labels(self):
        """L, background included."""
        return len(self.task.labels)

    def table(self):
        """One row per split: slices, subjects, and the share of pixels of each label in per cent."""
        shares = [f"{label.name} (% of pixels)" for label in self.task.labels]
        rows = [[len(s), s.n_subjects, *(100 * s.label_shares()).round(1)] for s in self.splits]
        names = [s.name for s in self.splits]
        return pd.DataFrame(rows, index=names, columns=["slices", "subjects", *shares])

    def captioned(self):
        """Title, size and source; the table of splits."""
        h, w, c = self.image_shape
        return (f"{self.task.title}: images {h}x{w}x{c}, {self.n_labels} labels. Source: {self.task.origin}",
                self.table())


def load(name, path=None, size=None, limit=None, seed=0):
    """Load a data set: `practice` or `varied` (made here, no download), `oasis`, `volumes`, `lgg` or `nuclei`.

    `path` is where the data lies; `size` resizes every slice to size x size pixels (None keeps it as it
    is); `limit` keeps at most so many slices of each split, evenly spread; `seed` fixes what is random.
    A second call with the same data and settings reads `runs/cache`. Raises DataError, naming the file,
    on anything that is not as it should be.
    """
    if name not in SOURCES:
        raise DataError(f"There is no data set {name!r}. Choose one of: {', '.join(SOURCES)}.")
    for what, value in (("size", size), ("limit", limit)):
        if value is not None and not (isinstance(value, Integral) and value > 0):
            raise DataError(f"{what} is {value!r}; it must be a whole number, 1 or more, or None.")
    path = None if path is None else Path(path).expanduser()
    if path is not None and not path.exists():
        raise DataError(f"Nothing is at {path} (looked from {Path.cwd().name}/). Check DATA; "
                        "in Colab, is Drive mounted?")
    module = importlib.import_module(f"helpers.datasets.{name}")
    return cached((name, state_of(path), size, limit, seed), lambda: module.load(path, size, limit, seed))


def state_of(path):
    """What changes when the files at a path do: name, size and time of each; and when the code that reads them does."""
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("datasets/*.[pj]*")) + [Path(__file__)]]
    files = [] if path is None else [path.resolve()]
    if path is not None and path.is_dir():
        files = sorted(os.path.join(folder, name) for folder, _, inside in os.walk(files[0]) for name in inside)
    stats = [(str(file), stat.st_size, stat.st_mtime_ns)
             for file, stat in ((file, os.stat(file)) for file in files if os.path.isfile(file))]
    return hashlib.sha256(repr(stats).encode() + b"".join(code)).hexdigest()


def check(dataset):
    """Raise DataError unless shapes agree, labels are 0..L-1, no split is empty or shares a subject."""
    for split in dataset.splits:
        if len(split) == 0:
            raise DataError(f"The {split.name} split of {split.task.title} is empty.")
        if split.images.shape[:3] != split.labels.shape or len(split.subjects) != len(split):
            raise DataError(f"In {split.name}, images {split.images.shape}, labels {split.labels.shape} and "
                            f"subjects {split.subjects.shape} do not go together.")
        if split.images.shape[1:] != dataset.image_shape:
            raise DataError(f"Slices of {split.name} are {split.images.shape[1:]}, those of train "
                            f"{dataset.image_shape}. All must have one size.")
        if split.labels.max() >= dataset.n_labels:
            raise DataError(f"In {split.name}, a label is {split.labels.max()}; expected 0..{dataset.n_labels - 1}.")
    seen = {}
    for split in dataset.splits:
        for subject in sorted(set(split.subjects.tolist())):
            if subject in seen:
                raise DataError(f"Subject {subject} is in both {seen[subject]} and {split.name}: the test would "
                                "not be of people the network never saw. Remove its slices from one of them.")
            seen[subject] = split.name


def evenly(n, limit):
    """Indices of at most `limit` of `n` things, evenly spread, in order."""
    return np.arange(n) if limit is None or limit >= n else np.linspace(0, n - 1, limit).round().astype(int)


def resize(picture, size):
    """Resize one image (H, W) or (H, W, C) or its labels (H, W) to size x size, by the same nearest neighbour.

    Every new pixel is one of the old ones. An average of greys would tell less of the label that is picked from their
    middle, and be half a pixel off it; what that did to Dice, in one seed each, is in the README (Preprocessing).
    """
    if size is None or picture.shape[:2] == (size, size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.NEAREST))


def has_bright_background(image):
    """Whether most of an image (H, W, C) is bright, as under a light microscope, and not dark."""
    return bool(np.median(image) > 127)


def split_subjects(subjects, seed, looks=None, shares=(0.1, 0.2)):
    """{split: set of subjects}: shares of them, at least one each, for validation and test, drawn with `seed`.

    `looks` {subject: kind} makes every split hold the kinds in the same proportion.
    """
    rest = np.random.default_rng(seed).permutation(sorted(set(subjects))).tolist()
    if len(rest) < 3:
        raise DataError(f"There are {len(rest)} subjects ({', '.join(rest)}); three splits need at least 3.")
    if looks:
        rest.sort(key=looks.get)  # kind by kind, at random within: every so-manieth is then a fair sample
    counts = [max(1, round(share * len(rest))) for share in shares]
    drawn = {"train": set()}
    for name, count in zip(("validation", "test"), counts):
        drawn[name] = {rest[int((i + 0.5) * len(rest) / count)] for i in range(count)}
        rest = [subject for subject in rest if subject not in drawn[name]]
    return drawn | {"train": set(rest)}


def split_dataset(made, task, size, limit, seed, shares):
    """Dataset from {subject: (images (n, H, W), labels (n, H, W))}, split by subject."""
    splits = []
    for name, chosen in split_subjects(list(made), seed, shares=shares).items():
        images, labels = (np.concatenate([made[subject][part] for subject in sorted(chosen)]) for part in (0, 1))
        subjects = np.concatenate([[subject] * len(made[subject][0]) for subject in sorted(chosen)])
        keep = evenly(len(images), limit)
        images = np.stack([resize(image, size) for image in images[keep]])[..., None]
        labels = np.stack([resize(label, size) for label in labels[keep]])
        splits.append(Split(name, images, labels, subjects[keep], task))
    return Dataset(*splits)


def cached(key, make):
    """Return the Dataset that `make()` returns, from `runs/cache` if an earlier call with this `key` left it there.

    The file appears under its name only when whole; one that does not read back is made again. Files that nobody
    read for a month go.
    """
    file = CACHE / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npz"
    try:
        with np.load(file) as arrays:
            dataset = from_arrays(arrays)
        with suppress(OSError):  # read-only
            file.touch()
        return dataset
    except Exception:  # not there, or damaged: zip and numpy raise nearly anything on a changed byte
        pass
    dataset = make()
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            np.savez(stream, **to_arrays(dataset))
        part.replace(file)
        for other in [*CACHE.glob("*.npz"), *CACHE.glob("*.part")]:
            if time.time() - other.stat().st_mtime > MONTH:
                other.unlink()
    except OSError:  # a full or read-only disk: the next load is slow again, nothing else is lost
        part.unlink(missing_ok=True)
    return dataset


def to_arrays(dataset):
    """A Dataset as named arrays, for `numpy.savez`."""
    task = dataset.task
    task = json.dumps([task.title, [astuple(label) for label in task.labels], task.origin, task.mirrors])
    return {"task": task} | {f"{s.name} {part}": getattr(s, part) for s in dataset.splits for part in PARTS}


def from_arrays(arrays):
    """The Dataset that `to_arrays` took apart."""
    title, labels, origin, mirrors = json.loads(str(arrays["task"]))
    task = Task(title, tuple(Label(*label) for label in labels), origin, tuple(mirrors))
    return Dataset(*(Split(name, *(arrays[f"{name} {part}"] for part in PARTS), task)
                     for name in ("train", "validation", "test")))
