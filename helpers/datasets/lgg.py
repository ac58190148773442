"""LGG brain tumours in MR (Kaggle, mateuszbuda/lgg-mri-segmentation): three-channel slices of 110 patients."""

import re
from pathlib import PurePosixPath

from helpers.data import DataError, Label, Split, Task, split_dataset
from helpers.datasets.files import Files, find_pairs, read_pairs

LABELS = (Label("background", 0, "#000000"), Label("tumour", 255, "#E69F00"))
NAME = r"(?:.*/)?(?P<subject>TCGA_\w+?_\d{8})_(?P<number>\d+)(?P<mask>_mask)?\.tif"


def load(recipe):
    """Read Kaggle's folder or zip, split by patient 70 / 10 / 20 %.

    Channels are pre-contrast, FLAIR and post-contrast. Damaged files are left out and named in the origin.
    """
    files, names = Files(recipe.data), {}
    for name in filter(re.compile(NAME, re.IGNORECASE).fullmatch, files.names):  # Kaggle's zip holds everything twice
        first = names.setdefault(PurePosixPath(name).name.lower(), name)
        if first != name and files.read(first) != files.read(name):
            raise DataError(f"{first} and {name} in {files.path.name} differ, but have one name. Remove the wrong one.")
    pairs = find_pairs(names.values(), NAME, files.path.name,
                       "TCGA_CS_4941_19960909_11.tif. Give Kaggle's zip or its folder kaggle_3m")
    images, labels, patients, numbers, damaged = read_pairs(files, pairs, LABELS, ("RGB",))
    left_out = f"; {len(damaged)} damaged slices left out: {' '.join(map(str, damaged))}" if damaged else ""
    task = Task("LGG brain tumours (MR)", LABELS, f"{files.path.name}, split by patient{left_out}", mirrors=(2,))
    return split_dataset(Split("all", images, labels, patients, task, numbers), recipe.seed)
