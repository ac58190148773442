"""From a split to batches: uint8 all the way, augmented on training batches only."""

import numpy as np
from scipy import ndimage

from helpers.backend import keras
from helpers.data import has_bright_background

FLIP = 0.5  # chance of a mirror image, along each axis of the task
ROTATION = 10  # degrees, standard deviation
ZOOM = 0.08  # of the size, standard deviation
SIZES = 0.2  # the same, beyond that, where pictures have no natural orientation
SHIFT = 0.03  # of the frame, standard deviation
GAIN, GAMMA = 0.15, 0.2  # standard deviations of their logarithms
NOISE = 0.08  # of the image's own standard deviation, at most: what is faint must not drown


class Batches(keras.utils.PyDataset):
    """Batches of (images (B, H, W, C), labels (B, H, W)), both uint8, for `keras.Model.fit`.

    `shuffle` puts slices in a new order each epoch and leaves a short last batch out; `augment` is the share of slices
    that `augment` below rotates, scales and shifts too, or None for no augmentation; `oversample` is how often an
    epoch has each picture of the rarer background; `part` is this process's number and how many share each batch. Every
    batch has a random generator of its own, made from seed, epoch and position, so threads cannot change the result.
    """

    def __init__(self, split, batch_size, augment=None, shuffle=False, seed=0, oversample=1, part=(0, 1), **options):
        super().__init__(**options)
        self.split, self.batch_size, self.augment, self.shuffle = split, batch_size, augment, shuffle
        self.seed, self.epoch, self.part, self.order = seed, 0, part, np.arange(len(split))
        if oversample > 1:
            self.order = self.order.repeat(np.where(rarer_background(split.images), oversample, 1))

    def __len__(self):
        # a short last batch would make the compiled training step again, and weigh its few slices more
        return max(1, len(self.order) // self.batch_size) if self.shuffle else -(-len(self.order) // self.batch_size)

    def __getitem__(self, index):
        order = self.order
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        chosen = order[index * self.batch_size:(index + 1) * self.batch_size]
        images, labels = self.split.images[chosen], self.split.labels[chosen]
        if self.augment is not None:
            rng = np.random.default_rng([self.seed, self.epoch, index])
            images, labels = augment(images, labels, rng, self.split.task, self.augment)
        own = slice(self.part[0], None, self.part[1])
        return images[own], labels[own]

    def on_epoch_end(self):
        """Let the next epoch shuffle and augment differently."""
        self.epoch += 1


def rarer_background(images):
    """Which images (N, H, W, C) have the background, bright or dark, that fewer of them have: (N,) of True or False.

    Such as stained tissue among fluorescing cells: few, and hard. Where all are alike, as heads are, none is rarer.
    """
    bright = np.array([has_bright_background(image) for image in images])
    return bright if bright.mean() < 0.5 else ~bright


def augment(images, labels, rng, task, affine_share):
    """Change a batch at random: move image and label together, then change the image's greys.

    The `helpers.data.Task` says which mirror images are natural, and whether greys differ; `affine_share`, 0 to 1, is
    the share of slices that are rotated, scaled and shifted too. The others stay as sharp as test images are.
    """
    moves = random_moves(len(images), *images.shape[1:3], rng, task.mirrors, affine_share)
    outside = "mirror" if len(task.mirrors) == 2 else "constant"  # cells go on beyond the border, heads do not
    images, labels = move(images, *moves, 1, outside), move(labels, *moves, 0, outside)
    return change_greys(images, rng) if task.greys else images, labels


def random_moves(n, height, width, rng, mirrors, affine_share):
    """Mirror images, small rotations, scales and shifts: n affine maps from new to old pixels (row, column).

    Where both mirror images are natural (cells), pictures are turned by quarters as well, and scaled further.
    Matrices (n, 2, 2) and offsets (n, 2), as `scipy.ndimage.affine_transform` takes them.
    """
    moved = rng.random(n) < affine_share
    angle = np.deg2rad(rng.normal(0, ROTATION, n)) * moved
    zoom = np.exp(rng.normal(0, ZOOM, n) * moved)
    if len(mirrors) == 2:
        angle = angle + np.pi / 2 * rng.integers(4, size=n)
        zoom = zoom * np.exp(rng.normal(0, SIZES, n) * moved)
    turn = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # (2, 2, n)
    mirror = np.stack([np.where((rng.random(n) < FLIP) & (axis in mirrors), -1, 1) for axis in (1, 2)])  # (2, n)
    matrices = (turn * mirror).transpose(2, 0, 1)  # mirrored first, then turned
    middle = (np.array([height, width]) - 1) / 2  # turn about the middle
    shift = rng.normal(0, SHIFT, (n, 2)) * moved[:, None] * (height, width)
    return matrices, middle - matrices @ middle + shift


def move(pictures, matrices, offsets, order, outside="constant"):
    """Apply affine maps to pictures (n, H, W) or (n, H, W, C): order 1 bilinear, 0 nearest.

    What comes from `outside` the picture is 0, or with "mirror" its mirror image (modes of `scipy.ndimage`).
    """
    moved = np.empty_like(pictures)
    for new, old, matrix, offset in zip(moved, pictures, matrices, offsets):
        flip = np.diag(matrix)
        if (np.diag(flip) == matrix).all() and (abs(flip) == 1).all() and (
                offset == (1 - flip) / 2 * np.subtract(old.shape[:2], 1)).all():  # mirrored only: the same pixels
            new[:] = old[::int(flip[0]), ::int(flip[1])]
            continue
        for channel in np.ndindex(old.shape[2:]):
            new[(..., *channel)] = ndimage.affine_transform(old[(..., *channel)], matrix, offset, order=order,
                                                            mode=outside)
    return moved


def change_greys(images, rng):
    """Give every image (n, H, W, C) its own gamma and noise, and each of its channels its own gain."""
    each = (len(images), 1, 1, 1)
    gain = np.exp(rng.normal(0, GAIN, (len(images), 1, 1, images.shape[-1])))
    gamma = np.exp(rng.normal(0, GAMMA, each))
    top = np.maximum(images.max(axis=(1, 2, 3), keepdims=True), 1)  # gamma against 255 would swallow faint images
    table = top * (np.arange(256) / top) ** gamma  # (n, 1, 1, 256): 256 powers instead of one per pixel
    changed = gain * np.stack([t.ravel()[image] for t, image in zip(table, images)])
    strength = rng.uniform(0, NOISE, each) * images.std(axis=(1, 2, 3), keepdims=True)
    noise = rng.standard_normal(images.shape, "float32") * strength.astype("float32")
    return np.clip(changed + noise, 0, 255).round().astype("uint8")
