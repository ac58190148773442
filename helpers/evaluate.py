"""Predictions, and how good they are: Dice and its relatives, pooled, per subject and per image; the verdict."""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage, stats

from helpers.backend import keras
from helpers.data import Captioned, Table

NEEDED = 0.9  # the task's threshold, for every label
CHUNK = 512  # pictures whose probabilities are in memory at once


def predict(network, images, mirrors=(), batch_size=32):
    """Label of every pixel, uint8 (N, H, W): the most probable one. `images` is uint8 (N, H, W, C).

    With `mirrors`, axes of `helpers.data.Task`, mirror images are predicted too and the probabilities averaged.
    """
    return np.concatenate([probabilities(network, images[at:at + CHUNK], mirrors, batch_size).argmax(-1)
                           for at in range(0, len(images), CHUNK)]).astype(np.uint8)


def probabilities(network, images, mirrors=(), batch_size=32):
    """Probability of every label at every pixel, float32 (N, H, W, L), averaged over mirror images along `mirrors`."""
    ways = list(chain.from_iterable(combinations(mirrors, n) for n in range(len(mirrors) + 1)))
    total = 0
    for axes in ways:
        guess = network.predict(np.flip(images, axes), batch_size=batch_size, verbose=0)
        total = total + np.flip(guess, axes) / len(ways)
    return total


def largest_component(guesses, subjects):
    """Predictions (N, H, W) of which only the largest connected piece of each subject's foreground is left.

    A subject's slices are stacked in their order; pixels touch across faces, edges and corners. For what comes in one
    piece, such as a tumour; not for tissues or cells.
    """
    kept = np.zeros_like(guesses)
    for subject in np.unique(subjects):
        own = np.flatnonzero(subjects == subject)
        pieces, n = ndimage.label(guesses[own] > 0, np.ones((3, 3, 3)))
        if n:
            largest = 1 + np.bincount(pieces.ravel())[1:].argmax()
            kept[own] = np.where(pieces == largest, guesses[own], 0)
    return kept


def gains(network, split, ensemble=None):
    """What each switch of prediction brings: a Table of every label's pooled Dice, a row a way of predicting.

    As it is; averaged with mirror images; with `ensemble`, which averages several networks, in its place; and, where
    a subject's slices have one foreground label, such as a tumour, only its largest piece. A row keeps those before it.
    """
    guesses = {"as it is": predict(network, split.images),
               "with mirror images": predict(network, split.images, split.task.mirrors)}
    if ensemble not in (None, network):
        guesses["and all networks"] = predict(ensemble, split.images, split.task.mirrors)
    if len(split.task.labels) == 2 and split.n_subjects < len(split):
        guesses["and only the largest piece"] = largest_component(list(guesses.values())[-1], split.subjects)
    table = pd.DataFrame({way: score(split, guess).pooled for way, guess in guesses.items()}).T
    return Table(f"{split.task.title}, {split.name}: Dice (hard, pooled)", table.round(4))


def uncertainty(network, images, samples=16, batch_size=32):
    """How unsure a network is of every pixel, float32 (N, H, W), 0 to 1, by Monte-Carlo dropout.

    The network predicts `samples` times with its dropout on (Gal and Ghahramani 2016, arXiv 1506.02142); the entropy
    of the mean probabilities is the uncertainty.
    """
    found = []
    for at in range(0, len(images), batch_size):
        batch = images[at:at + batch_size]  # called, not `predict`ed: that would turn dropout off
        mean = sum(keras.ops.convert_to_numpy(network(batch, training=True)) for _ in range(samples)) / samples
        found.append(entropy(mean))
    return np.concatenate(found)


def entropy(probabilities):
    """Entropy of label probabilities (..., L) as a share of its largest value, log L: 0 sure, 1 no idea."""
    return stats.entropy(probabilities, axis=-1) / np.log(probabilities.shape[-1])


def dice(truth, guess, n_labels):
    """Hard Dice of each label (L,) over two arrays of labels: 2 |A and B| / (|A| + |B|), NaN where both are empty."""
    return measure("Dice", confusion(truth, guess, n_labels))


def confusion(truth, guess, n_labels):
    """Pixels by label in truth (rows) and prediction (columns): (L, L)."""
    pairs = n_labels * np.ravel(truth).astype(np.int64) + np.ravel(guess)
    return np.bincount(pairs, minlength=n_labels**2).reshape(n_labels, n_labels)


def measure(name, counts):
    """One measure of each label (..., L) from confusion matrices (..., L, L); NaN where it is 0 / 0."""
    both = np.diagonal(counts, axis1=-2, axis2=-1).astype(float)
    truth, guess = counts.sum(-1), counts.sum(-2)
    above, below = {"Dice": (2 * both, truth + guess), "IoU": (both, truth + guess - both),
                    "precision": (both, guess), "recall": (both, truth), "volume error": (guess - truth, truth)}[name]
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


@dataclass(frozen=True, repr=False)
class Scores(Captioned):
    """What a prediction is worth: every measure follows from one confusion matrix for each image.

    `confusion` is (N, L, L), truth by prediction; `subjects` (N,) says who each image is from. A label in neither
    truth nor prediction has no Dice (NaN): it is left out of means, not counted as right or wrong.
    """

    title: str
    labels: list[str]
    subjects: np.ndarray
    confusion: np.ndarray

    @cached_property
    def by_subject(self):
        """Names of the subjects, and a confusion matrix for each: (S,), (S, L, L)."""
        names, whose = np.unique(self.subjects, return_inverse=True)
        counts = np.zeros((len(names), *self.confusion.shape[1:]), np.int64)
        np.add.at(counts, whose, self.confusion)
        return names, counts

    @cached_property
    def pooled(self):
        """Hard Dice of each label over the pixels of all images: the grade."""
        return pd.Series(measure("Dice", self.confusion.sum(0)), self.labels)

    @cached_property
    def per_subject(self):
        """Hard Dice of each subject, over all its images: one row a subject, one column a label."""
        names, counts = self.by_subject
        return pd.DataFrame(measure("Dice", counts), names, self.labels)

    @cached_property
    def per_image(self):
        """Hard Dice of each image, with its subject as index."""
        return pd.DataFrame(measure("Dice", self.confusion), pd.Index(self.subjects, name="subject"), self.labels)

    @property
    def baseline(self):
        """Pooled Dice of calling everything background."""
        truth = self.confusion.sum((0, 2))
        nothing = np.zeros((len(truth), len(truth)))
        nothing[:, 0] = truth
        return pd.Series(measure("Dice", nothing), self.labels)

    @property
    def ranking(self):
        """Subjects from worst to best by their mean Dice without background; those without any label left out."""
        means = self.per_subject.iloc[:, 1:].mean(axis=1)
        return means.fillna(1.0 if means.isna().all() else np.nan).dropna().sort_values().index.tolist()

    @property
    def worst(self):
        """The subject with the lowest mean Dice without background."""
        return self.ranking[0]

    @property
    def median(self):
        """The subject in the middle of the ranking."""
        return self.ranking[len(self.ranking) // 2]

    @property
    def best(self):
        """The subject with the highest mean Dice without background."""
        return self.ranking[-1]

    def table(self):
        """One row per label: pooled Dice; mean, SD and worst per subject and per image; the baseline."""
        columns = {"pooled": self.pooled}
        for name, scores in (("subject", self.per_subject), ("image", self.per_image)):
            columns |= {f"{name} mean": scores.mean(), f"{name} SD": scores.std(), f"{name} worst": scores.min()}
        return pd.DataFrame(columns | {"all background": self.baseline})

    def measures(self):
        """A Table, a row a label: pooled Dice with its 95 % interval, IoU, precision, recall; volume error of subjects.

        The volume error is the mean over subjects of (predicted - true) / true, with its sign and without.
        """
        low, high = self.interval()
        pooled = {name: measure(name, self.confusion.sum(0)) for name in ("IoU", "precision", "recall")}
        volume = 100 * pd.DataFrame(measure("volume error", self.by_subject[1]), columns=self.labels)
        return Table(f"{self.title}: pooled over all slices; volume error per subject", pd.DataFrame({
            "Dice": self.pooled, "95 % interval, low": low, "high": high, **pooled,
            "volume error, %": volume.mean(), "absolute volume error, %": volume.abs().mean()}).round(
                {"volume error, %": 2, "absolute volume error, %": 2}).round(4))

    def interval(self, seed=0):
        """95 % bootstrap interval of the pooled Dice over subjects, two arrays (L,); NaN with fewer than 3 subjects."""
        counts = self.by_subject[1]
        if len(counts) < 3:
            return np.full((2, len(self.labels)), np.nan)
        found = stats.bootstrap((np.arange(len(counts)),), lambda drawn: measure("Dice", counts[drawn].sum(0)),
                                vectorized=False, n_resamples=2000, method="percentile", random_state=seed)
        return np.array(found.confidence_interval)

    def confusion_table(self):
        """Where the pixels of each label went, in per cent of the label's own: truth in rows, prediction in columns."""
        counts = pd.DataFrame(self.confusion.sum(0), pd.Index(self.labels, name="truth"), self.labels)
        return 100 * counts.div(counts.sum(axis=1), axis=0)

    def captioned(self):
        """How many slices of how many subjects; the table of Dice."""
        return (f"{self.title}: hard Dice of {len(self.confusion)} slices of {len(self.per_subject)} subjects",
                self.table().round(4))


def score(split, guesses):
    """What predictions (N, H, W) of a split are worth, as Scores."""
    names = [label.name for label in split.task.labels]
    counts = np.stack([confusion(t, g, len(names)) for t, g in zip(split.labels, guesses, strict=True)])
    return Scores(f"{split.task.title}, {split.name}", names, split.subjects, counts)


def surface_distances(split, guesses):
    """How far prediction and truth lie apart, in pixels, slice by slice: a Table, a row a label without background.

    The surface of a label is its pixels with a neighbour of another label. `95 %` is the 95th-percentile Hausdorff
    distance (the larger of both directions), `mean` the mean surface distance over both directions; each averaged
    over the `slices` in which truth and prediction have the label. The last column counts slices where one of them has.
    """
    rows = {}
    for number, label in enumerate(split.task.labels[1:], start=1):
        found, alone = [], 0
        for masks in zip(split.labels == number, np.asarray(guesses) == number):
            truth, guess = (surface(mask) for mask in masks)
            if truth.any() and guess.any():
                there, back = (ndimage.distance_transform_edt(~b)[a] for a, b in ((truth, guess), (guess, truth)))
                found.append((max(np.percentile(there, 95), np.percentile(back, 95)),
                              np.concatenate([there, back]).mean()))
            alone += truth.any() != guess.any()
        hausdorff, mean = np.mean(found, axis=0) if found else (np.nan, np.nan)
        rows[label.name] = {"Hausdorff 95 %": round(hausdorff, 2), "mean": round(mean, 2), "slices": len(found),
                            "slices where only one has it": alone}
    return Table(f"{split.task.title}, {split.name}: distance between surfaces, in pixels",
                 pd.DataFrame.from_dict(rows, orient="index"))


def surface(mask):
    """The pixels of a mask (H, W) that have a neighbour outside it; what lies beyond the picture is not known."""
    return mask & ~ndimage.binary_erosion(mask, border_value=1)


@dataclass(frozen=True, repr=False)
class Verdict(Captioned):
    """The grade: whether the pooled hard Dice of every label reaches what is needed."""

    title: str
    table: pd.DataFrame
    needed: float

    @property
    def passed(self):
        """True when every label that occurs reaches the needed Dice, and at least one occurs."""
        return set(self.table["verdict"]) - {"absent"} == {"pass"}

    @property
    def sentence(self):
        """The verdict in one sentence."""
        if self.passed:
            absent = ", ".join(self.table.index[self.table["verdict"] == "absent"])
            which = f"every label that occurs (not {absent})" if absent else "every label"
            return f"PASS: {which} reaches Dice {self.needed} on {self.title}."
        short = self.table.index[self.table["verdict"] == "FAIL"].tolist()
        return f"FAIL: {', '.join(short) or 'every label'} below Dice {self.needed} on {self.title}."

    def captioned(self):
        """The verdict in one sentence; its table."""
        return self.sentence, self.table


def verdict(scores, needed=NEEDED):
    """Grade pooled hard Dice per label against `needed`; a label that never occurs is not graded."""
    words = ["absent" if np.isnan(d) else "pass" if d >= needed else "FAIL" for d in scores.pooled]
    table = pd.DataFrame({"Dice (hard, pooled)": scores.pooled.round(4), "needed": needed,
                          "worst subject": scores.per_subject.min().round(4),
                          "all background": scores.baseline.round(4), "verdict": words})
    return Verdict(scores.title, table, needed)


def side_by_side(results):
    """A Table of what was trained, {name: (scores, histories)}, a row each: pooled Dice per label, seconds per epoch.

    Several networks that predict together have a history each; their seconds are added.
    """
    rows = {name: {**scores.pooled.round(4),
                   "seconds an epoch (median)": round(sum(h["seconds"].median() for h in histories), 1)}
            for name, (scores, histories) in results.items()}
    scores = next(iter(results.values()))[0]
    return Table(f"{scores.title}: Dice (hard, pooled)", pd.DataFrame.from_dict(rows, orient="index"))


def ingredients(results, split="test"):
    """Mean and spread over seeds, a Table, a row a variant and budget: Dice of each label, epochs, seconds, weights.

    `results` is what tests/benchmark_ingredients.py writes, a row a run.
    """
    names = [column for column in results if column.startswith(f"{split} ")]
    groups = results.groupby(["budget", "variant"], sort=False)
    table = groups[names].agg(lambda dice: f"{dice.mean():.4f} ± {dice.std():.4f}")
    table.columns = [name.removeprefix(f"{split} ") for name in names]
    table = table.join(groups[["epochs", "seconds per epoch", "weights"]].median()).astype(
        {"epochs": int, "weights": int}).join(groups.size().rename("runs"))
    table["seconds per epoch"] = table["seconds per epoch"].round(1)
    return Table(f"{results['data'].iloc[0]}, {split}: Dice (hard, pooled), mean ± standard deviation", table)


def save(scores, grade, run, **about):
    """Write `dice.csv` (pooled, every subject, every image) and `verdict.json` into the folder `run`.

    `about` goes into the latter as well: what predicted, and how.
    """
    run = Path(run)
    run.mkdir(parents=True, exist_ok=True)
    pooled = scores.pooled.to_frame().T.assign(averaging="pooled", subject="all")
    subjects = scores.per_subject.rename_axis("subject").reset_index().assign(averaging="subject")
    images = scores.per_image.reset_index().assign(averaging="image")
    rows = pd.concat([pooled, subjects, images])
    rows[["averaging", "subject", *scores.pooled.index]].to_csv(run / "dice.csv", index=False, float_format="%.6f")
    content = {"set": scores.title, **about, "averaging": "hard, pooled", "needed": grade.needed,
               "passed": grade.passed,
               "dice": {name: None if np.isnan(d) else round(d, 6) for name, d in scores.pooled.items()}}
    (run / "verdict.json").write_text(json.dumps(content, indent=2) + "\n")
