"""The data type everything speaks, the checks every data set passes, and `load`."""

import hashlib
import importlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

CACHE = Path("runs/cache")
SOURCES = {  # name -> module of helpers.datasets, each with one function load(path, size, limit, seed)
    "practice": "practice",
    "oasis": "oasis",
}


class DataError(Exception):
    """Something is wrong with the data given: the message names the file and says what to do."""


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
    """What a data set asks for: its title in every table and figure, its labels, where it came from."""

    title: str
    labels: tuple[Label, ...]
    origin: str


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

    @property
    def n_subjects(self):
        """How many people the slices are from."""
        return len(set(self.subjects.tolist()))

    def label_shares(self):
        """Share of all pixels that each label covers, (L,), summing to 1."""
        counts = sum(np.bincount(labels.ravel(), minlength=len(self.task.labels)) for labels in self.labels)
        return counts / self.labels.size


@dataclass(frozen=True)
class Dataset:
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

    def __repr__(self):
        return f"{self._caption()}\n{self.table().to_string()}"

    def _repr_html_(self):
        return f"<p><b>{self._caption()}</b></p>{self.table().to_html()}"

    def _caption(self):
        h, w, c = self.image_shape
        return f"{self.task.title}: images {h}x{w}x{c}, {self.n_labels} labels. Source: {self.task.origin}"


def load(name, path=None, size=None, limit=None, seed=0):
    """Load a data set: `practice` (made here, no download) or `oasis` (the course's folder or zip).

    `path` is where the data lies; `size` resizes every slice to size x size pixels (None keeps it as it
    is); `limit` keeps at most so many slices of each split, evenly spread; `seed` fixes what is random.
    Raises DataError, naming the file, on anything that is not as it should be.
    """
    if name not in SOURCES:
        raise DataError(f"There is no data set {name!r}. Choose one of: {', '.join(SOURCES)}.")
    for what, value in (("size", size), ("limit", limit)):
        if value is not None and value < 1:
            raise DataError(f"{what} is {value}; it must be 1 or more, or None.")
    if path is not None and not Path(path).expanduser().exists():
        raise DataError(f"Nothing is at {path} (looked from {Path.cwd().name}/). Check the path; "
                        "in Colab, is Drive mounted?")
    module = importlib.import_module(f"helpers.datasets.{SOURCES[name]}")
    return module.load(path and Path(path).expanduser(), size, limit, seed)


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


def resize(image, size, is_label=False):
    """Resize one uint8 image (H, W) to size x size: nearest for labels, area-aware bilinear for greys."""
    if size is None or image.shape == (size, size):
        return image
    how = Image.Resampling.NEAREST if is_label else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size, size), how))


def cached(key, make):
    """Return `make()`, a dict of arrays, from `runs/cache` if an earlier call with this `key` left it there.

    The file appears under its name only when whole; one that does not read back is made again.
    """
    file = CACHE / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npz"
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile):
        arrays = make()
    CACHE.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as stream:
        np.savez(stream, **arrays)
    part.replace(file)
    return arrays
