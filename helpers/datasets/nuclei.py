"""Cell nuclei (2018 Data Science Bowl, BBBC038): colour pictures with one mask per nucleus, merged to one."""

from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from helpers.data import DataError, Dataset, Label, Split, Task, has_bright_background, split_subjects
from helpers.datasets.files import Files, in_parallel, read_picture

LABELS = (Label("background", 0, "#000000"), Label("nuclei", 255, "#56B4E9"))
SIDE = 128  # pixels, as in the brief: pictures come in many sizes


def load(recipe):
    """Read Kaggle's folder or zip, pictures brought to 128x128, split 70 / 10 / 20 % by picture and background."""
    files = Files(Path(recipe.data).expanduser())
    found = find_pictures(files)
    read = dict(zip(found, in_parallel(lambda item: read_one(files, item[0], *item[1]), found.items())))
    kinds = {name: has_bright_background(image) for name, (image, _) in read.items()}
    task = Task("nuclei (2018 Data Science Bowl)", LABELS, f"{files.path.name}, every picture brought to "
                f"{SIDE}x{SIDE} pixels, split by picture and background", mirrors=(1, 2))
    splits = []
    for name, pictures in split_subjects(list(found), recipe.seed, kinds).items():
        chosen = sorted(pictures)
        images, labels = (np.stack([read[picture][part] for picture in chosen]) for part in (0, 1))
        splits.append(Split(name, images, labels, np.array(chosen), task))
    return Dataset(*splits)


def find_pictures(files):
    """{ImageId: (image file, mask files)} of everything laid out as ImageId/images/*.png and ImageId/masks/*.png."""
    images, masks = {}, {}
    for name in files.names:
        parts = PurePosixPath(name).parts
        if name.lower().endswith(".png") and len(parts) >= 3:
            if parts[-2] == "images":
                images[parts[-3]] = name
            elif parts[-2] == "masks":
                masks.setdefault(parts[-3], []).append(name)
    missing = sorted(images.keys() ^ masks.keys())
    if missing:
        raise DataError(f"{len(missing)} pictures of {files.path.name} lack their image or their masks: "
                        f"{', '.join(missing[:5])}. Copy them again, or remove their folders. (Pictures that have no "
                        "masks cannot be used: give stage1_train.)")
    if not images:
        raise DataError(f"{files.path.name} has no pictures laid out as ImageId/images/*.png with ImageId/masks/*.png.")
    return {name: (images[name], masks[name]) for name in images}


def read_one(files, name, image, masks):
    """One picture (128, 128, 3) and its merged labels (128, 128), 1 wherever any nucleus is: by nearest neighbour."""
    picture = read_picture(files, image, ("RGBA", "RGB", "L"))
    merged = np.zeros(picture.shape[:2], np.uint8)
    for mask in masks:
        drawn = read_picture(files, mask)
        if drawn.shape != merged.shape:
            raise DataError(f"{mask} is {drawn.shape} pixels, its picture {merged.shape}. They must be equal.")
        merged |= (drawn > 0).astype(np.uint8)
    return tuple(np.asarray(Image.fromarray(array).resize((SIDE, SIDE), Image.Resampling.NEAREST))
                 for array in (picture, merged))
