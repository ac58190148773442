"""OASIS slices: the course's six folders of PNG files, unpacked or still in their zip, or OASIS-1 discs."""

import hashlib
import json
from collections import Counter
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np

from helpers.data import FRAME, OASIS_BOX, TISSUES, DataError, Dataset, Split, Task, thin
from helpers.datasets import discs
from helpers.datasets.files import Files, find_pairs, in_parallel, read_pairs

FOLDERS = {"train": "train", "validation": "validate", "test": "test"}  # split -> word in the folder's name
REFERENCE = Path(__file__).with_name("oasis_reference.json")  # folder -> case -> digest of its 32 files
NAME = (r"(?:.*/)?keras_png_slices_(?P<mask>seg_)?{}/"  # then seg in a folder of masks, else case
        r"(?(mask)seg|case)_(?P<subject>\d+)_slice_(?P<number>\d+)\.(?:nii\.)?png")


def load(recipe):
    """The three splits from a folder or zip of course slices, or from unpacked OASIS-1 discs.

    Of the course's own slices, whose box is known, only those that the recipe takes are read; of others all.
    """
    if (name := Path(recipe.data).name).endswith((".tar.gz", ".tgz", ".tar")):
        raise DataError(f"{name} is packed. Unpack it, tar xzf {name}, and give the folder.")
    files = Files(recipe.data)
    if files.path.is_dir() and any("OAS1_" in name for name in files.names):
        return discs.load(files, recipe.seed)
    folders = Counter(str(PurePosixPath(name).parent) for name in files.names)
    missing = {f"keras_png_slices_{kind}{word}" for word in FOLDERS.values() for kind in ("", "seg_")} - {
        PurePosixPath(folder).name for folder in folders}
    if missing:
        found = ", ".join(f"{folder}/ ({n} files)" for folder, n in list(folders.items())[:8])
        raise DataError(f"{files.path.name} lacks {', '.join(sorted(missing))}. Found: {found or 'nothing'}. "
                        "Give the folder or zip that holds all six keras_png_slices folders.")
    pairs = {split: find_slices(files, split) for split in FOLDERS}
    genuine, finding = compare_with_reference(files, pairs)
    task = Task("OASIS brain slices" if genuine else f"{files.path.name} (OASIS layout)", TISSUES,
                f"{files.path.name}: {finding}")
    splits = [read_split(files, split, pairs[split], task, *(recipe.taken(split) if genuine else ()))
              for split in FOLDERS]
    of_atlas = genuine or splits[0].labels.shape[1:] == (FRAME, FRAME) and all(
        OASIS_BOX.holds(part) for split in splits for part in (split.images, split.labels))
    return Dataset(*splits, OASIS_BOX if of_atlas else None)


def find_slices(files, split):
    """{(case, slice): (image file, mask file)} of a split, by number, wherever its two folders lie."""
    return find_pairs(files.names, NAME.format(FOLDERS[split]), f"{split} in {files.path.name}",
                      "case_001_slice_0.nii.png")


def compare_with_reference(files, pairs):
    """Whether all slices are the course's own, and a sentence: identical, a subset, or what differs."""
    reference, cases = json.loads(REFERENCE.read_text()), {}
    for (case, _), pair in chain(*(own.items() for own in pairs.values())):
        for name in pair:
            cases.setdefault((PurePosixPath(name).parent.name, case), []).append(name)

    def digest(names):
        """Eight digits of one case's files in one folder, as the reference has them."""
        digests = [hashlib.sha256(files.read(name)).hexdigest() for name in names]
        return hashlib.sha256("".join(digests).encode()).hexdigest()[:8]

    known = {(folder, case): value for folder, own in reference.items() for case, value in own.items()}
    found = dict(zip(cases, in_parallel(digest, cases.values())))
    unknown = {case for _, case in found.keys() - known.keys()}
    incomplete = {case for (_, case), names in cases.items() if len(names) < 32}
    changed = {key[1] for key, value in found.items() if known.get(key) != value} - unknown - incomplete
    other = "; ".join(f"{words} {spans(of)}" for words, of in (
        ("cases that the reference copy does not have", unknown),
        ("incomplete cases, which cannot be compared", incomplete),
        ("same names, other bytes in cases", changed)) if of)
    if other:
        return False, f"not the course's slices: {other}"
    if found.keys() == known.keys():
        return True, "identical to the reference copy of the course's slices"
    return True, f"a subset of the reference copy: cases {spans(case for _, case in found)}"


def spans(cases):
    """Numbers as text, runs joined: 1-3, 7."""
    numbers = np.unique([int(case) for case in cases])
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def read_split(files, split, pairs, task, n=None, people=None):
    """Read one split, in anatomical order, each slice with its subject and position; `n` slices of `people` people."""
    keys = list(pairs)
    taken = {keys[i]: pairs[keys[i]] for i in thin([case for case, _ in keys], n, people)}
    images, labels, cases, numbers, damaged = read_pairs(files, taken, TISSUES)
    if damaged:
        raise damaged[0]
    return Split(split, images, labels, np.char.add("case_", cases), task, numbers, len(pairs))
