"""OASIS slices: the course's six folders of PNG files, unpacked or still in their zip, or OASIS-1 discs."""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath

import numpy as np

from helpers.data import FRAME, OASIS_BOX, TISSUES, DataError, Dataset, Split, Task, thin
from helpers.datasets import discs
from helpers.datasets.files import Files, check_paired, in_parallel, read_picture

FOLDERS = {"train": "train", "validation": "validate", "test": "test"}  # split -> word in the folder's name
REFERENCE = Path(__file__).with_name("oasis_reference.json")  # folder -> case -> digest of its 32 files
NAME = re.compile(r"(case|seg)_(\d+)_slice_(\d+)\.(?:nii\.)?png", re.IGNORECASE)


def load(recipe):
    """The three splits from a folder or zip of course slices, or from unpacked OASIS-1 discs.

    Of the course's own slices, whose box is known, only those that the recipe takes are read; of others all.
    """
    path = Path(recipe.data).expanduser()
    if path.name.endswith((".tar.gz", ".tgz", ".tar")) or path.is_dir() and discs.is_disc(path):
        return discs.load(recipe)
    files = Files(path)
    folders = {PurePosixPath(folder).name for folder in files.folders()}
    missing = [name for name in folder_names() if name not in folders]
    if missing:
        found = ", ".join(f"{folder}/ ({len(names)} files)" for folder, names in list(files.folders().items())[:8])
        raise DataError(f"{files.path.name} lacks {', '.join(missing)}. Found: {found or 'nothing'}. "
                        "Give the folder or zip that holds all six keras_png_slices folders.")
    slices = find_slices(files)
    genuine, finding = compare_with_reference(files, slices)
    task = Task("OASIS brain slices" if genuine else f"{files.path.name} (OASIS layout)", TISSUES,
                f"{files.path.name}: {finding}")
    splits = [read_split(files, split, slices, task, *(recipe.taken(split) if genuine else ())) for split in FOLDERS]
    of_atlas = genuine or splits[0].labels.shape[1:] == (FRAME, FRAME) and all(
        OASIS_BOX.holds(part) for split in splits for part in (split.images, split.labels))
    return Dataset(*splits, OASIS_BOX if of_atlas else None)


def folder_names():
    """The six folders of the course's copy, images before masks."""
    return [f"keras_png_slices_{kind}{word}" for word in FOLDERS.values() for kind in ("", "seg_")]


def compare_with_reference(files, slices):
    """Whether all slices are the course's own, and a sentence: identical, a subset, or what differs."""
    reference = json.loads(REFERENCE.read_text())
    cases = {}
    for folder, names in slices.items():
        for case, number in sorted(names):
            cases.setdefault((folder, case), []).append(names[case, number])

    def digest(names):
        """Eight digits of one case's files in one folder, as the reference has them."""
        return hashlib.sha256("".join(map(files.digest, names)).encode()).hexdigest()[:8]

    found = dict(zip(cases, in_parallel(digest, cases.values())))
    known = {(folder, int(case)): value for folder, cases in reference.items() for case, value in cases.items()}
    unknown = {case for _, case in found.keys() - known.keys()}
    incomplete = {case for (_, case), names in cases.items() if len(names) < 32}
    findings = {"cases that the reference copy does not have": unknown,
                "incomplete cases, which cannot be compared": incomplete}
    seen = unknown | incomplete
    findings["same names, other bytes in cases"] = {
        key[1] for key, value in found.items() if known.get(key) != value} - seen
    other = "; ".join(f"{words} {spans(cases)}" for words, cases in findings.items() if cases)
    if not other and found.keys() == known.keys():
        return True, "identical to the reference copy of the course's slices"
    if not other:
        return True, f"a subset of the reference copy: cases {spans(case for _, case in found)}"
    return False, f"not the course's slices: {other}"


def spans(numbers):
    """Numbers as text, runs joined: 1-3, 7."""
    runs = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def read_split(files, split, slices, task, n=None, people=None):
    """Read one split, in anatomical order, each slice with its subject and position; `n` slices of `people` people."""
    pairs = find_pairs(files, split, slices)
    whole = len(pairs)
    pairs = [pairs[i] for i in thin([case for (case, _), _, _ in pairs], n, people)]
    shape = read_picture(files, pairs[0][1]).shape
    images, labels = np.empty((len(pairs), *shape, 1), np.uint8), np.empty((len(pairs), *shape), np.uint8)

    def fill(index):
        """Read one pair into its place."""
        _, image, mask = pairs[index]
        images[index, ..., 0] = read_slice(files, image, shape)
        labels[index] = to_labels(read_slice(files, mask, shape), mask, files)

    in_parallel(fill, range(len(pairs)))
    subjects, positions = zip(*((f"case_{case:03d}", number) for (case, number), _, _ in pairs))
    return Split(split, images, labels, np.array(subjects), task, np.array(positions), whole)


def find_pairs(files, split, slices):
    """((case, slice), image file, mask file) of every slice of a split, by number, never by sort order."""
    images, masks = (slices[f"keras_png_slices_{kind}{FOLDERS[split]}"] for kind in ("", "seg_"))
    check_paired(images, masks, f"{split} in {files.path.name}")
    if not images:
        raise DataError(f"No file in keras_png_slices_{FOLDERS[split]} of {files.path.name} is named like "
                        "case_001_slice_0.nii.png.")
    return [(key, images[key], masks[key]) for key in sorted(images)]


def find_slices(files):
    """{folder: {(case, slice): file}} of the six folders, wherever they lie; DataError where two claim the same."""
    slices = {folder: {} for folder in folder_names()}
    for path, names in files.folders().items():
        folder = path.rpartition("/")[2]
        for name in names if folder in slices else ():
            match = NAME.fullmatch(name.rpartition("/")[2])
            if match and match[1].lower() == ("seg" if "_seg_" in folder else "case"):
                key = int(match[2]), int(match[3])
                if key in slices[folder]:
                    raise DataError(f"{files.path.name} holds {name.rpartition('/')[2]} twice: {slices[folder][key]} "
                                    f"and {name}. Remove one of them.")
                slices[folder][key] = name
    return slices


def read_slice(files, name, shape):
    """One slice, which must have the same (H, W) as the split's first."""
    image = read_picture(files, name)
    if image.shape != shape:
        raise DataError(f"{name} in {files.path.name} is {image.shape[0]}x{image.shape[1]} pixels, the slices before "
                        f"it {shape[0]}x{shape[1]}. All slices must have one size.")
    return image


def to_labels(mask, name, files):
    """Labels 0..3 from the mask's greys 0, 85, 170, 255; DataError on any other grey."""
    table = np.full(256, 255, np.uint8)
    for label, tissue in enumerate(TISSUES):
        table[tissue.grey] = label
    labels = table.take(mask)  # three times as fast as table[mask]
    if labels.max() == 255:
        strange = np.unique(mask[labels == 255]).tolist()
        raise DataError(f"{name} in {files.path.name} has the greys {strange[:8]}; a mask has only "
                        f"{[t.grey for t in TISSUES]}. Was it resized, or saved as JPEG?")
    return labels
