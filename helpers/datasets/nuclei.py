"""Cell nuclei (2018 Data Science Bowl, BBBC038): colour pictures with one mask per nucleus, merged to one."""

from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from helpers.data import DataError, Label, Split, Task, has_bright_background, split_dataset
from helpers.datasets.files import Files, find, in_parallel, read_mask, read_picture

LABELS = (Label("background", 0, "#000000"), Label("nuclei", 255, "#56B4E9"))
SIDE = 128  # pixels, as in the brief: pictures come in many sizes
NAME = r"(?:.*/)?(?P<subject>[^/]+)/(?:images|(?P<mask>masks))/[^/]+\.png"


def load(recipe):
    """Read Kaggle's folder or zip, pictures brought to 128x128, split 70 / 10 / 20 % by picture and background."""
    files = Files(recipe.data)
    found = find_pictures(files)
    images, labels = map(np.stack, zip(*in_parallel(lambda pair: read_one(files, *pair), found.values())))
    kinds = dict(zip(found, map(has_bright_background, images)))
    task = Task("nuclei (2018 Data Science Bowl)", LABELS, f"{files.path.name}, every picture brought to "
                f"{SIDE}x{SIDE} pixels, split by picture and background", mirrors=(1, 2))
    return split_dataset(Split("all", images, labels, np.array(list(found)), task), recipe.seed, kinds=kinds)


def find_pictures(files):
    """{ImageId: (image file, mask files)} of everything laid out as ImageId/images/*.png and ImageId/masks/*.png."""
    found = {name: pair for (name, _), pair in find(files.names, NAME).items()}
    missing = [name for name, pair in found.items() if not all(pair)]
    if not found:
        raise DataError(f"{files.path.name} has no pictures laid out as ImageId/images/*.png with ImageId/masks/*.png.")
    if missing:
        raise DataError(f"{len(missing)} pictures of {files.path.name} lack their image or their masks: "
                        f"{', '.join(missing[:5])}. Copy them again or remove them; only stage1_train has masks.")
    for images, masks in found.values():
        if len(images) > 1 or len({PurePosixPath(mask).parent for mask in masks}) > 1:
            raise DataError(f"{files.path.name} has one picture, or its masks, twice: {images[0]}, {images[-1]}, "
                            f"{masks[0]}, {masks[-1]}. Remove one copy.")
    return {name: (image, masks) for name, ([image], masks) in found.items()}


def read_one(files, image, masks):
    """One picture (128, 128, 3) and its merged labels (128, 128), 1 wherever any nucleus is: by nearest neighbour."""
    picture = read_picture(files, image, ("RGBA", "RGB", "L"))
    drawn = [read_mask(files, mask, image, picture) for mask in masks]
    for mask, one in zip(masks, drawn):
        if not ((one == 0) | (one == max(one.max(), 1))).all() or one.all():
            raise DataError(f"{mask} has the greys {np.unique(one)[:8].tolist()}; a nucleus's mask has 0, and one other "
                            "grey where it is. Was it resized, saved as JPEG, or painted all over?")
    merged = np.any(drawn, axis=0).astype(np.uint8)
    return tuple(np.asarray(Image.fromarray(array).resize((SIDE, SIDE), Image.Resampling.NEAREST))
                 for array in (picture, merged))
