"""The course's OASIS slices: six folders of PNG files, unpacked or still in their zip."""

import re
from pathlib import PurePosixPath

import numpy as np

from helpers.data import TISSUES, DataError, Dataset, Split, Task, evenly, resize
from helpers.datasets.files import Files, in_parallel, read_grey

FOLDERS = {"train": "train", "validation": "validate", "test": "test"}  # split -> word in the folder's name
NAME = re.compile(r"(case|seg)_(\d+)_slice_(\d+)\.(?:nii\.)?png", re.IGNORECASE)


def load(path=None, size=None, limit=None, seed=0):
    """Read the three splits from a folder or zip: see `helpers.data.load`."""
    if path is None:
        raise DataError("The OASIS slices have to be on this machine: give their path, a folder or the zip "
                        "keras_png_slices_data.zip. The README says where to get them.")
    files = Files(path)
    missing = [f for f in folder_names() if not any(PurePosixPath(d).name == f for d in files.folders())]
    if missing:
        found = ", ".join(f"{folder}/ ({n} files)" for folder, n in list(files.folders().items())[:8])
        raise DataError(f"{files.path.name} lacks {', '.join(missing)}. Found: {found or 'nothing'}. "
                        "Give the folder or zip that holds all six keras_png_slices folders.")
    return Dataset(*(read_split(files, split, size, limit) for split in FOLDERS))


def folder_names():
    """The six folders of the course's copy, images before masks."""
    return [f"keras_png_slices_{kind}{word}" for word in FOLDERS.values() for kind in ("", "seg_")]


def read_split(files, split, size=None, limit=None):
    """Read one split, in anatomical order, each slice kept with its subject. `files` is a path or Files."""
    files = files if isinstance(files, Files) else Files(files)
    pairs = find_pairs(files, split)
    pairs = [pairs[i] for i in evenly(len(pairs), limit)]
    shape = read_grey(files, pairs[0][1]).shape
    side = (size, size) if size else shape
    images, labels = np.empty((len(pairs), *side, 1), np.uint8), np.empty((len(pairs), *side), np.uint8)

    def fill(index):
        _, image, mask = pairs[index]
        images[index, ..., 0] = resize(read_slice(files, image, shape), size)
        labels[index] = resize(to_labels(read_slice(files, mask, shape), mask, files), size, is_label=True)

    in_parallel(fill, range(len(pairs)))
    task = Task(f"{files.path.name} (OASIS layout)", TISSUES, files.path.name)
    return Split(split, images, labels, np.array([f"case_{case:03d}" for (case, _), _, _ in pairs]), task)


def find_pairs(files, split):
    """((case, slice), image file, mask file) of every slice of a split, by number, never by sort order."""
    images, masks = (numbered(files, f"keras_png_slices_{kind}{FOLDERS[split]}", word)
                     for kind, word in (("", "case"), ("seg_", "seg")))
    for here, there, what in ((images, masks, "mask"), (masks, images, "image")):
        alone = sorted(here.keys() - there.keys())
        if alone:
            shown = ", ".join(here[key] for key in alone[:5])
            raise DataError(f"{len(alone)} files of {split} in {files.path.name} have no {what}: {shown}"
                            f"{', ...' if len(alone) > 5 else ''}. Add what is missing or remove these.")
    if not images:
        raise DataError(f"No file in keras_png_slices_{FOLDERS[split]} of {files.path.name} is named like "
                        "case_001_slice_0.nii.png.")
    return [(key, images[key], masks[key]) for key in sorted(images)]


def numbered(files, folder, word):
    """File of every (case, slice) in a folder; DataError where two claim the same."""
    found = {}
    for name in files.names:
        match = NAME.fullmatch(PurePosixPath(name).name)
        if PurePosixPath(name).parent.name == folder and match and match[1].lower() == word:
            key = int(match[2]), int(match[3])
            if key in found:
                raise DataError(f"{files.path.name} holds {PurePosixPath(name).name} twice: {found[key]} and {name}. "
                                "Remove one of them.")
            found[key] = name
    return found


def read_slice(files, name, shape):
    """One slice, which must have the same (H, W) as the split's first."""
    image = read_grey(files, name)
    if image.shape != shape:
        raise DataError(f"{name} in {files.path.name} is {image.shape[0]}x{image.shape[1]} pixels, the slices before "
                        f"it {shape[0]}x{shape[1]}. All slices must have one size.")
    return image


def to_labels(mask, name, files):
    """Labels 0..3 from the mask's greys 0, 85, 170, 255; DataError on any other grey."""
    table = np.full(256, 255, np.uint8)
    for label, tissue in enumerate(TISSUES):
        table[tissue.grey] = label
    labels = table[mask]
    if labels.max() == 255:
        strange = np.unique(mask[labels == 255]).tolist()
        raise DataError(f"{name} in {files.path.name} has the greys {strange[:8]}; a mask has only "
                        f"{[t.grey for t in TISSUES]}. Was it resized, or saved as JPEG?")
    return labels
