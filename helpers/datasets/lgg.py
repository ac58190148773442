"""LGG brain tumours in MR (Kaggle, mateuszbuda/lgg-mri-segmentation): three-channel slices of 110 patients."""

import re
from pathlib import Path, PurePosixPath

import numpy as np

from helpers.data import DataError, Dataset, Label, Split, Task, split_subjects
from helpers.datasets.files import Files, UnreadableError, check_paired, in_parallel, read_picture

LABELS = (Label("background", 0, "#000000"), Label("tumour", 255, "#E69F00"))
NAME = re.compile(r"(TCGA_\w+?_\d{8})_(\d+)(_mask)?\.tif", re.IGNORECASE)


def load(recipe):
    """Read Kaggle's folder or zip, split by patient 70 / 10 / 20 %.

    Channels are pre-contrast, FLAIR and post-contrast. Damaged files are left out and named in the origin.
    """
    files = Files(Path(recipe.data).expanduser())
    pairs = find_pairs(files)
    read, damaged = {}, []
    for name, patients in split_subjects([patient for patient, _ in pairs], recipe.seed).items():
        keys = [key for key in sorted(pairs) if key[0] in patients]
        slices = dict(zip(keys, in_parallel(lambda key: read_pair(files, *pairs[key]), keys)))
        damaged += [found for found in slices.values() if isinstance(found, UnreadableError)]
        read[name] = [(key, found) for key, found in slices.items() if not isinstance(found, UnreadableError)]
    left_out = f"; {len(damaged)} damaged slices left out: {' '.join(map(str, damaged))}" if damaged else ""
    task = Task("LGG brain tumours (MR)", LABELS, f"{files.path.name}, split by patient{left_out}", mirrors=(2,))
    return Dataset(*(make_split(name, whole, task) for name, whole in read.items()))


def find_pairs(files):
    """{(patient, slice): (image file, mask file)}; of Kaggle's two copies in one zip, the one with the shorter path."""
    images, masks = {}, {}
    for name in sorted(files.names, key=lambda n: (n.count("/"), n), reverse=True):
        match = NAME.fullmatch(PurePosixPath(name).name)
        if match:
            (masks if match[3] else images)[match[1], int(match[2])] = name
    check_paired(images, masks, files.path.name)
    if not images:
        raise DataError(f"No file in {files.path.name} is named like TCGA_CS_4941_19960909_11.tif. Give Kaggle's zip "
                        "or its folder kaggle_3m.")
    return {key: (images[key], masks[key]) for key in images}


def read_pair(files, image, mask):
    """One slice (H, W, 3) with its labels (H, W), or the error that tells which file is damaged."""
    try:
        picture, drawn = read_picture(files, image, ("RGB",)), read_picture(files, mask)
    except UnreadableError as error:
        return error
    if picture.shape[:2] != drawn.shape:
        raise DataError(f"{image} is {picture.shape[:2]} pixels, its mask {drawn.shape}. They must be equal.")
    strange = np.setdiff1d(drawn, [0, 255])
    if len(strange):
        raise DataError(f"{mask} has the greys {strange[:8].tolist()}; a mask has only 0 and 255.")
    return picture, drawn // 255


def make_split(name, whole, task):
    """A Split of [((patient, slice), (image, labels))]; DataError when slices differ in size."""
    shapes = {pair[0].shape for _, pair in whole}
    if len(shapes) > 1:
        raise DataError(f"Slices of {name} have different sizes: {sorted(shapes)}. Give slices of one size.")
    images, labels = (np.stack([pair[part] for _, pair in whole]) if whole else np.empty((0, 1, 1, 3)[:4 - part])
                      for part in (0, 1))
    subjects, positions = (np.array([key[part] for key, _ in whole]) for part in (0, 1))
    return Split(name, images, labels, subjects, task, positions)
