"""Predictor: images in, labels out, in the images' own frame."""

from itertools import combinations

import numpy as np
from scipy import ndimage, stats

from helpers import fast
from helpers.backend import keras
from helpers.data import shrink
from helpers.run import Run, RunError

CHUNK = 64  # slices whose probabilities are in memory at once
BATCH = 16  # slices predicted in one step


class Predictor:
    """Everything that decides a label: networks, mirror images, box, size, largest component, context.

    `Predictor(run, ...)` takes the recipe of the first run; a run with `others` brings these along. Of a network it
    asks for `predict_on_batch` only. Context is the data set's, of slices whose position is known: a Split's.
    """

    def __init__(self, *runs, mirrors=None, largest=None, context=None):
        first = runs[0]
        runs = [one for run in runs for one in (run, *run.others)]
        kinds = [dict(labels=run.task.labels, box=run.box, frame=run.frame, channels=run.channels,
                      size=run.box.seen(run.recipe.size)) for run in runs]
        for run, kind in zip(runs, kinds):
            if differing := [name for name in kind if kind[name] != kinds[0][name]]:
                raise RunError(f"{first.folder} and {run.folder} cannot be averaged: {', '.join(differing)} differ.")
        self.networks = [run.network() for run in runs]
        self.task, self.box, self.frame, self.channels = first.task, first.box, first.frame, first.channels
        self.mirrors = self.task.mirrors if (first.recipe.mirrors if mirrors is None else mirrors) else ()
        self.size, self.largest = first.recipe.size, first.recipe.largest if largest is None else largest
        self.context = {}
        if first.recipe.context if context is None else context:
            if first.dataset is None:
                print(f"{first.folder} is opened without its data: each slice is predicted by itself, without context.")
            else:
                self.context = tissue_shares(first.dataset.train.seen(self.box))

    @classmethod
    def open(cls, *folders, **options):
        """The predictor of the runs in some folders, without the data they were trained on."""
        return cls(*(Run.open(folder) for folder in folders), **options)

    def probabilities(self, images):
        """Probability of every label at every pixel, float32 (N, H, W, L), of images uint8 (N, H, W, C).

        Outside the box background has 1.
        """
        found = self.box.paste(self.in_box(images), images.shape[1:3])
        found[..., 0] += found.sum(-1) == 0
        return found

    def labels(self, split):
        """The most probable label of every pixel, uint8 (N, H, W), of a Split or of images (N, H, W, C)."""
        images, positions, parts = getattr(split, "images", split), getattr(split, "positions", ()), []
        for at in range(0, len(images), CHUNK):
            found = self.in_box(images[at:at + CHUNK])
            for one, position in zip(found, positions[at:at + CHUNK]):
                if position in self.context:
                    share = self.context[position]
                    one[..., 0] = np.where(share == 0, 2, np.where(share == 1, -1, one[..., 0]))
            parts.append(found.argmax(-1).astype(np.uint8))
        labels = self.box.paste(np.concatenate(parts), images.shape[1:3])
        return largest_component(labels, split.subjects) if self.largest and images is not split else labels

    def doubt(self, images):
        """How unsure the networks are of every pixel, float32 (N, H, W): entropy, 0 sure to 1 no idea."""
        return entropy(self.probabilities(images))

    def in_box(self, images):
        """Probabilities inside the box, (N, h, w, L), averaged over networks and mirror images."""
        cut = self.box.cut(images)
        shape = self.box.seen(self.size)
        if shape != self.box.shape:
            cut = np.stack([shrink(image, shape) for image in cut])
        ways = [axes for n in range(len(self.mirrors) + 1) for axes in combinations(self.mirrors, n)]
        total = sum(np.flip(fast.probabilities(network, np.flip(cut, axes), BATCH), axes)
                    for network in self.networks for axes in ways)
        mean = total / (len(ways) * len(self.networks))
        if shape != self.box.shape:
            mean = keras.ops.convert_to_numpy(keras.ops.image.resize(mean, self.box.shape, "bilinear"))
        return np.asarray(mean, np.float32)


def tissue_shares(split):
    """{position: at each pixel (h, w), the share of a split's people who have tissue there}."""
    return {n: (split.labels[split.positions == n] > 0).mean(0) for n in np.unique(split.positions)}


def largest_component(labels, subjects):
    """Labels (N, H, W) of which only the largest connected component of each subject's foreground is left.

    A subject's slices are stacked in their order; pixels touch across faces, edges and corners. For what comes in one
    piece, such as a tumour; not for tissues or cells.
    """
    kept = np.zeros_like(labels)
    for subject in np.unique(subjects):
        own = np.flatnonzero(subjects == subject)
        pieces, n = ndimage.label(labels[own] > 0, np.ones((3, 3, 3)))
        if n:
            largest = 1 + np.bincount(pieces.ravel())[1:].argmax()
            kept[own] = np.where(pieces == largest, labels[own], 0)
    return kept


def entropy(probabilities):
    """Entropy of label probabilities (..., L) as a share of its largest value, log L: 0 sure, 1 no idea."""
    return (stats.entropy(probabilities, axis=-1) / np.log(probabilities.shape[-1])).astype(np.float32)
