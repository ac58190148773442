"""Predictor: images in, labels out, in the images' own frame."""

from itertools import combinations

import numpy as np
from scipy import stats

from helpers import fast
from helpers.backend import keras
from helpers.data import shrink
from helpers.evaluate import soft_dice
from helpers.run import Run, RunError

CHUNK = 64  # slices whose probabilities are in memory at once
BATCH = 16  # slices predicted in one step
ENOUGH = 10  # training people, to say where tissue is at a position


class Predictor:
    """Everything that decides a label: networks, mirror images, box, size, context.

    `Predictor(run, ...)` takes size and context of the first run, and mirror images of each that is given; a run with
    `others` brings these along. Of a network it asks for `predict_on_batch` only. `context`, "" for none, is used where
    positions are known: for the labels of a Split. `ways` has, for each network, the axes of its mirror images.
    """

    def __init__(self, *runs, mirrors=None, context=None):
        mirrored = [run.recipe.mirrors if mirrors is None else mirrors for run in runs for _ in (run, *run.others)]
        first, runs = runs[0], [one for run in runs for one in (run, *run.others)]
        kinds = [dict(labels=run.task.labels, box=run.box, frame=run.frame, channels=run.channels,
                      size=run.box.seen(run.recipe.size)) for run in runs]
        for run, kind in zip(runs, kinds):
            if differing := [name for name in kind if kind[name] != kinds[0][name]]:
                raise RunError(f"{first.folder} and {run.folder} cannot be averaged: {', '.join(differing)} differ.")
        self.task, self.box, self.frame, self.channels = first.task, first.box, first.frame, first.channels
        every = [axes for n in range(len(self.task.mirrors) + 1) for axes in combinations(self.task.mirrors, n)]
        self.networks, self.ways = [run.network() for run in runs], [every if asked else [()] for asked in mirrored]
        self.size = first.recipe.size
        self.context, self.run, self.tissue = str((first.recipe.context if context is None else context) or ""), first, {}

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
        images = getattr(split, "images", split)
        groups = [slice(at, at + CHUNK) for at in range(0, len(images), CHUNK)]
        if in_context := self.context and images is not split:
            self.learn_tissue()
            new = (split.subjects[1:] != split.subjects[:-1]) | (np.diff(split.positions) <= 0)  # another scan begins
            groups = np.split(np.arange(len(split)), np.flatnonzero(new) + 1)
        parts = np.empty((len(images), *self.box.shape), np.uint8)
        for own in groups:
            found = self.in_box(images[own])
            parts[own] = (self.in_context(found, split.positions[own]) if in_context else found).argmax(-1)
        return self.box.paste(parts, images.shape[1:3])

    def learn_tissue(self):
        """Where training people have tissue, at each position that enough of them have slices of."""
        if "mask" not in self.context or self.tissue:
            return
        if self.run.dataset is None:
            raise RunError(f"{self.run.folder} is opened without its data, thus without the mask. Give context='' instead.")
        train = self.run.dataset.train.seen(self.box)
        for position in np.unique(train.positions):
            if (own := train.positions == position).sum() >= ENOUGH:
                self.tissue[position] = (train.labels[own] > 0).mean(0)

    def in_context(self, found, positions):
        """Scores (n, h, w, L), the best label's the highest, of probabilities of one scan's slices at `positions`.

        Neighbours: one step of the mean-field iteration of a Potts model, in which a slice's pixel and those before
        and after it prefer to be alike; what is not there has no say.
        """
        at, scores = {position: index for index, position in enumerate(positions)}, np.log(found + 1e-4)
        for index, position in enumerate(positions):
            for beside in {position - 1, position + 1} & at.keys() if "neighbours" in self.context else ():
                scores[index] += found[at[beside]]
            if position in self.tissue:
                share, background = self.tissue[position], scores[index, ..., 0]
                background[share == 0], background[share == 1] = np.inf, -np.inf
        return scores

    def soft_dice(self, split):
        """Soft Dice of each image and label of a Split, (N, L), without context."""
        parts = [slice(at, at + CHUNK) for at in range(0, len(split), CHUNK)]
        return np.concatenate([soft_dice(split.labels[own], self.probabilities(split.images[own])) for own in parts])

    def doubt(self, images):
        """How unsure the networks are of every pixel, float32 (N, H, W): entropy as a share of its largest value, log L."""
        return (stats.entropy(self.probabilities(images), axis=-1) / np.log(len(self.task.labels))).astype(np.float32)

    def in_box(self, images):
        """Probabilities inside the box, (N, h, w, L), averaged over all mirror images of all networks."""
        cut = self.box.cut(images)
        shape = self.box.seen(self.size)
        if shape != self.box.shape:
            cut = np.stack([shrink(image, shape) for image in cut])
        total = sum(np.flip(fast.probabilities(network, np.flip(cut, axes), BATCH), axes)
                    for network, ways in zip(self.networks, self.ways) for axes in ways)
        mean = total / sum(map(len, self.ways))
        if shape != self.box.shape:
            mean = keras.ops.convert_to_numpy(keras.ops.image.resize(mean, self.box.shape, "bilinear"))
        return np.asarray(mean, np.float32)
