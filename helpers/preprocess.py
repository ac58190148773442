"""From a split to batches: uint8 all the way, augmented on training batches only."""

import numpy as np

from helpers.backend import keras

ops = keras.ops
FLIP = 0.5  # chance of a mirror image
MOVED = 0.7  # chance of rotation, scale and shift; the others stay as sharp as test images are
ROTATION = 10  # degrees, standard deviation
ZOOM = 0.08  # of the size, standard deviation
SHIFT = 0.03  # of the frame, standard deviation
GAIN, GAMMA = 0.15, 0.2  # standard deviations of their logarithms
NOISE = 0.08  # of the image's own standard deviation, at most: what is faint must not drown


class Batches(keras.utils.PyDataset):
    """Batches of (images (B, H, W, C), labels (B, H, W)), both uint8, for `keras.Model.fit`.

    With `augment`, slices are shuffled anew each epoch and each is changed at random. Every batch has a
    random generator of its own, made from seed, epoch and position, so threads cannot change the result.
    """

    def __init__(self, split, batch_size, augment=False, seed=0, **options):
        super().__init__(**options)
        self.split, self.batch_size, self.augment, self.seed, self.epoch = split, batch_size, augment, seed, 0

    def __len__(self):
        # a short last batch would make the compiled training step again, and weigh its few slices more
        n = len(self.split) / self.batch_size
        return max(1, int(n)) if self.augment else int(np.ceil(n))

    def __getitem__(self, index):
        order = np.arange(len(self.split))
        if self.augment:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        chosen = order[index * self.batch_size:(index + 1) * self.batch_size]
        images, labels = self.split.images[chosen], self.split.labels[chosen]
        if self.augment:
            images, labels = augment(images, labels, np.random.default_rng([self.seed, self.epoch, index]))
        return images, labels

    def on_epoch_end(self):
        """Let the next epoch shuffle and augment differently."""
        self.epoch += 1


def augment(images, labels, rng):
    """Change a batch at random: move image and label together, then change the image's greys."""
    images, labels = move(images, labels, random_moves(len(images), *images.shape[1:3], rng))
    return change_greys(images, rng), labels


def random_moves(n, height, width, rng):
    """Flip, small rotation, scale and shift as n affine maps (n, 8) from new to old pixels.

    The eight numbers are those of `keras.ops.image.affine_transform`: x' = a0 x + a1 y + a2, y' = b0 x + b1 y + b2.
    """
    moved = rng.random(n) < MOVED
    angle = np.deg2rad(rng.normal(0, ROTATION, n)) * moved
    zoom = np.exp(rng.normal(0, ZOOM, n) * moved)
    flip = np.where(rng.random(n) < FLIP, -1, 1)  # up-down: left and right of a brain lying sideways
    a0, a1 = np.cos(angle) * zoom, -np.sin(angle) * zoom * flip
    b0, b1 = np.sin(angle) * zoom, np.cos(angle) * zoom * flip
    x, y = (width - 1) / 2, (height - 1) / 2  # turn about the middle
    a2 = x - a0 * x - a1 * y + rng.normal(0, SHIFT * width, n) * moved
    b2 = y - b0 * x - b1 * y + rng.normal(0, SHIFT * height, n) * moved
    return np.stack([a0, a1, a2, b0, b1, b2, np.zeros(n), np.zeros(n)], axis=1).astype("float32")


def move(images, labels, moves):
    """Apply affine maps (n, 8) to images, bilinearly, and labels, by nearest neighbour; zeros come in from outside."""
    images = ops.image.affine_transform(images.astype("float32"), moves, "bilinear", data_format="channels_last")
    labels = ops.image.affine_transform(labels[..., None].astype("float32"), moves, "nearest",
                                        data_format="channels_last")
    images = np.rint(ops.convert_to_numpy(images)).astype("uint8")
    return images, ops.convert_to_numpy(labels)[..., 0].astype("uint8")


def change_greys(images, rng):
    """Give every image (n, H, W, C) its own gain, gamma and noise."""
    each = (len(images), 1, 1, 1)
    gain, gamma = np.exp(rng.normal(0, GAIN, each)), np.exp(rng.normal(0, GAMMA, each))
    top = np.maximum(images.max(axis=(1, 2, 3), keepdims=True), 1)  # gamma against 255 would swallow faint images
    table = top * gain * (np.arange(256) / top) ** gamma  # (n, 1, 1, 256): 256 powers instead of one per pixel
    changed = np.stack([t.ravel()[image] for t, image in zip(table, images)])
    strength = rng.uniform(0, NOISE, each) * images.std(axis=(1, 2, 3), keepdims=True)
    noise = rng.standard_normal(images.shape, "float32") * strength.astype("float32")
    return np.clip(changed + noise, 0, 255).round().astype("uint8")
