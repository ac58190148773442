"""From a split to batches: uint8 all the way, augmented on training batches only."""

from functools import cache

import numpy as np
from scipy import ndimage

from helpers.backend import keras

FLIP = 0.5  # chance of a mirror image, along each axis of the task
MOVED = 0.7  # chance of rotation, scale and shift; the others stay as sharp as test images are
ROTATION = 10  # degrees, standard deviation
ZOOM = 0.08  # of the size, standard deviation
SHIFT = 0.03  # of the frame, standard deviation
BEND = 0.01  # of the frame, standard deviation
KNOTS = 5  # along each side, of what bends and what shades
SHADING = 0.1  # standard deviation of its logarithm: coils see some places brighter
GAIN, GAMMA = 0.15, 0.2  # standard deviations of their logarithms
NOISE = 0.08  # of the image's own standard deviation, at most: what is faint must not drown


class Batches(keras.utils.PyDataset):
    """Batches of (images (B, H, W, C), labels (B, H, W)), both uint8, for `keras.Model.fit`.

    `shuffle` puts slices in a new order each epoch and leaves a short last batch out; `augment` changes each at
    random. Every batch has a random generator of its own, made from seed, epoch and position, so threads cannot
    change the result.
    """

    def __init__(self, split, batch_size, augment=False, shuffle=False, seed=0, **options):
        super().__init__(**options)
        self.split, self.batch_size, self.augment, self.shuffle = split, batch_size, augment, shuffle
        self.seed, self.epoch = seed, 0

    def __len__(self):
        # a short last batch would make the compiled training step again, and weigh its few slices more
        n = len(self.split) / self.batch_size
        return max(1, int(n)) if self.shuffle else int(np.ceil(n))

    def __getitem__(self, index):
        order = np.arange(len(self.split))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        chosen = order[index * self.batch_size:(index + 1) * self.batch_size]
        images, labels = self.split.images[chosen], self.split.labels[chosen]
        if self.augment:
            rng = np.random.default_rng([self.seed, self.epoch, index])
            images, labels = augment(images, labels, rng, self.split.task.mirrors)
        return images, labels

    def on_epoch_end(self):
        """Let the next epoch shuffle and augment differently."""
        self.epoch += 1


def augment(images, labels, rng, mirrors):
    """Change a batch at random: move image and label together, then change the image's greys.

    `mirrors` are the axes along which a mirror image is natural, as in `helpers.data.Task`.
    """
    where = random_coordinates(len(images), *images.shape[1:3], rng, mirrors)
    return change_greys(move(images, where, order=1), rng), move(labels, where, order=0)


def random_coordinates(n, height, width, rng, mirrors):
    """Where in the old picture each pixel of n new ones comes from, (n, 2, H, W), rows before columns.

    Mirror images; and, for a share of them, rotation and scale about the middle, shift and a smooth bending.
    """
    moved = rng.random(n) < MOVED
    angle = np.deg2rad(rng.normal(0, ROTATION, n)) * moved
    zoom = np.exp(rng.normal(0, ZOOM, n) * moved)
    turn = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # (2, 2, n)
    mirror = np.stack([np.where((rng.random(n) < FLIP) & (axis in mirrors), -1, 1) for axis in (1, 2)])  # (2, n)
    grid = np.indices((height, width), "float32")
    middle = (np.array([height, width], "float32") - 1) / 2
    shift = middle + rng.normal(0, SHIFT, (n, 2)) * moved[:, None] * (height, width)
    matrix = (turn * mirror).transpose(2, 0, 1).astype("float32")  # mirrored first, then turned
    turned = np.einsum("nij,jhw->nihw", matrix, grid - middle[:, None, None])
    bent = [smooth_fields(2, height, width, rng) * BEND * height if bends else 0 for bends in moved]
    return turned + shift.astype("float32")[:, :, None, None] + np.stack(np.broadcast_arrays(*bent, turned[0])[:-1])


def smooth_fields(n, height, width, rng):
    """n smooth random fields (n, H, W) of mean about 0 and standard deviation about 1: a few knots, joined smoothly."""
    knots = rng.standard_normal((n, KNOTS, KNOTS)).astype("float32")
    return spline(height) @ knots @ spline(width).T


@cache
def spline(length):
    """Matrix (length, KNOTS) that joins knots to a cubic spline: what scipy's zoom does, worked out once."""
    return ndimage.zoom(np.eye(KNOTS, dtype="float32"), (length / KNOTS, 1), order=3, mode="nearest", grid_mode=True)


def move(pictures, where, order):
    """Pictures (n, H, W) or (n, H, W, C) read off at coordinates (n, 2, H, W): order 1 bilinear, 0 nearest neighbour.

    Zeros come in from outside the frame.
    """
    moved = np.empty_like(pictures)
    for new, old, place in zip(moved, pictures, where):
        for channel in np.ndindex(old.shape[2:]):
            new[(..., *channel)] = ndimage.map_coordinates(old[(..., *channel)], place, order=order)
    return moved


def change_greys(images, rng):
    """Give every image (n, H, W, C) its own gain, gamma, shading and noise."""
    each = (len(images), 1, 1, 1)
    gain, gamma = np.exp(rng.normal(0, GAIN, each)), np.exp(rng.normal(0, GAMMA, each))
    top = np.maximum(images.max(axis=(1, 2, 3), keepdims=True), 1)  # gamma against 255 would swallow faint images
    table = top * gain * (np.arange(256) / top) ** gamma  # (n, 1, 1, 256): 256 powers instead of one per pixel
    changed = np.stack([t.ravel()[image] for t, image in zip(table, images)])
    changed *= np.exp(SHADING * smooth_fields(len(images), *images.shape[1:3], rng))[..., None]
    strength = rng.uniform(0, NOISE, each) * images.std(axis=(1, 2, 3), keepdims=True)
    noise = rng.standard_normal(images.shape, "float32") * strength.astype("float32")
    return np.clip(changed + noise, 0, 255).round().astype("uint8")
