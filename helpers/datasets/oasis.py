"""OASIS slices: the course's six folders of PNG files, unpacked or still in their zip, or OASIS-1 discs."""

import base64
import hashlib
import json
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from helpers.data import FRAME, OASIS_BOX, TISSUES, DataError, Dataset, Split, Task, thin
from helpers.datasets import discs
from helpers.datasets.files import Files, find_pairs, in_parallel, read_pairs

FOLDERS = {"train": "train", "validation": "validate", "test": "test"}  # split -> word in the folder's name
REFERENCE = Path(__file__).with_name("oasis_reference.json")  # folder -> case -> 4 characters for each of 32 files
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
        cases = json.loads(REFERENCE.read_text())
        return discs.load(files, recipe.seed, {split: cases[f"keras_png_slices_{word}"] for split, word in FOLDERS.items()})
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
                f"{files.path.name}: {finding}", greys=not genuine)  # the course's greys are all scaled alike
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
    """Whether all slices are the course's own, and what to say: what is missing or differs, are scores comparable."""
    reference = json.loads(REFERENCE.read_text())
    keys = {name: key for own in pairs.values() for key, pair in own.items() for name in pair}

    def state(name):
        """Whether a file is the course's, one of its names with other bytes, or none of its names."""
        case, number = keys[name]
        known = reference.get(PurePosixPath(name).parent.name, {}).get(case, "")[4 * number:4 * number + 4]
        found = base64.b64encode(hashlib.sha256(files.read(name)).digest()[:3]).decode()
        return "same" if known == found else "with other bytes than the course's" if known else "the course has not"

    states, said = dict(zip(keys, in_parallel(state, keys))), []
    for kind in sorted({*states.values()} - {"same"}):
        own = [name for name in states if states[name] == kind]
        said.append(f"{len(own):,} file(s) {kind}, such as {', '.join(own[:3])}")
    genuine = not said
    for split, word in FOLDERS.items():
        cases = reference[f"keras_png_slices_{word}"]
        here = Counter(key[0] for key, pair in pairs[split].items() if {states[name] for name in pair} == {"same"})
        if lacking := [case for case in cases if here[case] < 32]:
            which = f", incomplete cases: {spans(lacking)}" if len(lacking) < len(cases) else ""
            said.append(f"{here.total():,} of the course's {32 * len(cases):,} {split} slices{which}")
    can = "can" if not lacking and len(pairs["test"]) == 32 * len(cases) else "cannot"  # the test comes last
    said = "; ".join(said) or "all of the course's slices, byte by byte"
    return genuine, f"{said}. Scores on its test {can} be compared with those of others."


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
