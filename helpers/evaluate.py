"""How good labels are: Dice and its relatives, pooled, per subject and per image; the verdict. Sees no network."""

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import ndimage, stats

from helpers.data import Shown, Table, evenly

NEEDED = 0.9  # the task's threshold, for every label


def dice(truth, guess, n_labels):
    """Hard Dice of each label (L,) over two arrays of labels: 2 |A and B| / (|A| + |B|), NaN where both are empty."""
    return ratio("Dice", confusion(truth, guess, n_labels))


def confusion(truth, guess, n_labels):
    """Pixels by label in truth (rows) and prediction (columns): (L, L)."""
    pairs = n_labels * np.ravel(truth).astype(np.int64) + np.ravel(guess)
    return np.bincount(pairs, minlength=n_labels**2).reshape(n_labels, n_labels)


def ratio(name, counts):
    """One measure of each label (..., L) from confusion matrices (..., L, L); NaN where it is 0 / 0."""
    both = np.diagonal(counts, axis1=-2, axis2=-1).astype(float)
    truth, guess = counts.sum(-1), counts.sum(-2)
    above, below = {"Dice": (2 * both, truth + guess), "IoU": (both, truth + guess - both),
                    "precision": (both, guess), "recall": (both, truth), "volume error": (guess - truth, truth)}[name]
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


@dataclass(frozen=True, repr=False)
class Scores(Shown):
    """What a prediction is worth: every measure follows from one confusion matrix for each image.

    `confusion` is (N, L, L), truth by prediction; `subjects` (N,) says who each image is from. A label in neither
    truth nor prediction has no Dice (NaN): it is left out of means, not counted as right or wrong.
    """

    title: str
    labels: list[str]
    subjects: np.ndarray
    confusion: np.ndarray
    whole: int = None  # slices of the split before it was thinned

    @cached_property
    def by_subject(self):
        """Names of the subjects, and a confusion matrix for each: (S,), (S, L, L)."""
        names = np.unique(self.subjects)
        return names, np.stack([self.confusion[self.subjects == name].sum(0) for name in names])

    @cached_property
    def pooled(self):
        """Hard Dice of each label over the pixels of all images: the grade."""
        return pd.Series(ratio("Dice", self.confusion.sum(0)), self.labels)

    @cached_property
    def per_subject(self):
        """Hard Dice of each subject, over all its images: one row a subject, one column a label."""
        names, counts = self.by_subject
        return pd.DataFrame(ratio("Dice", counts), names, self.labels)

    @cached_property
    def per_image(self):
        """Hard Dice of each image, with its subject as index."""
        return pd.DataFrame(ratio("Dice", self.confusion), pd.Index(self.subjects, name="subject"), self.labels)

    @property
    def baseline(self):
        """Pooled Dice of calling everything background."""
        truth = self.confusion.sum((0, 2))
        return pd.Series(ratio("Dice", np.outer(truth, np.arange(len(truth)) == 0)), self.labels)

    @property
    def ranking(self):
        """Subjects from worst to best by their mean Dice without background; those without any label are left out."""
        means = self.per_subject.iloc[:, 1:].mean(axis=1)
        return means.fillna(1.0 if means.isna().all() else np.nan).dropna().sort_values().index.tolist()

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
        pooled = {name: ratio(name, self.confusion.sum(0)) for name in ("IoU", "precision", "recall")}
        volume = 100 * pd.DataFrame(ratio("volume error", self.by_subject[1]), columns=self.labels)
        table = pd.DataFrame({"Dice": self.pooled, "95 % interval, low": low, "high": high, **pooled}).round(4)
        table["volume error, %"], table["absolute volume error, %"] = volume.mean().round(2), volume.abs().mean().round(2)
        return Table(f"{self.title}: pooled over all slices; volume error per subject", table)

    def interval(self, seed=0):
        """95 % bootstrap interval of the pooled Dice over subjects, two arrays (L,); NaN with fewer than 3 subjects."""
        counts = self.by_subject[1]
        if len(counts) < 3:
            return np.full((2, len(self.labels)), np.nan)
        found = stats.bootstrap((np.arange(len(counts)),), lambda drawn: ratio("Dice", counts[drawn].sum(0)),
                                vectorized=False, n_resamples=2000, method="percentile", random_state=seed)
        return np.array(found.confidence_interval)

    def files(self):
        """{"dice.csv": text}: pooled, of every subject, of every image."""
        pooled = self.pooled.to_frame().T.assign(averaging="pooled", subject="all")
        subjects = self.per_subject.rename_axis("subject").reset_index().assign(averaging="subject")
        images = self.per_image.reset_index().assign(averaging="image")
        rows = pd.concat([pooled, subjects, images])[["averaging", "subject", *self.labels]]
        return {"dice.csv": rows.to_csv(index=False, float_format="%.6f")}

    def as_table(self):
        """How many slices of how many subjects; the table of Dice."""
        return (f"{self.title}: hard Dice of {len(self.confusion)} slices of {len(self.per_subject)} subjects",
                self.table().round(4))


def soft_dice(truth, probabilities):
    """Soft Dice of each image and label (N, L), of labels (N, H, W) and probabilities (N, H, W, L); NaN where absent."""
    wanted = truth[..., None] == np.arange(probabilities.shape[-1])
    total = (wanted + probabilities).sum((1, 2))
    there = wanted.any((1, 2))
    return np.divide(2 * (wanted * probabilities).sum((1, 2)), total, out=np.full(total.shape, np.nan), where=there)


def like_with_like(reports, scores, soft=None):
    """What others report, a Table, each beside the same averaging of these scores; None where labels are others.

    `reports` is a CSV file with columns averaging, network and one for each label; `soft` is soft Dice (N, L), without
    which nothing is set beside them.
    """
    table = pd.read_csv(reports)
    if table.columns[2:2 + len(scores.labels)].tolist() != scores.labels:
        return None
    own = {} if soft is None else {"hard, pooled": scores.pooled, "hard, per image, absent = 1":
                                   scores.per_image.fillna(1).mean(), "soft, per image": np.nanmean(soft, axis=0)}
    mine = pd.DataFrame([{"averaging": way, "network": f"this one, {scores.title}", **dict(zip(scores.labels, dice))}
                         for way, dice in own.items()])
    rows = pd.concat([mine, table]).sort_values("averaging", kind="stable").set_index(["averaging", "network"])
    return Table("OASIS, the course's 544 test slices: Dice, by how it is averaged (soft: without context)", rows.round(4))


def score(split, guesses):
    """What predictions (N, H, W) of a split are worth, in the whole frame, as Scores."""
    counts = np.stack([confusion(*one, len(split.task.labels)) for one in zip(split.labels, guesses, strict=True)])
    return Scores(f"{split.task.title}, {split.name}", split.task.names, split.subjects, counts, split.whole)


def baselines(dataset, n=100):
    """What needs no network, a Table: everything called background, and each pixel given the nearest mean grey.

    On at most `n` validation slices; the labels' mean greys are of the training slices.
    """
    split = dataset.validation.take(evenly(len(dataset.validation), n))
    grey, train = split.images.mean(-1, dtype="float32"), dataset.train
    means = [train.images[own].mean() if (own := train.labels == label).any() else np.inf
             for label in range(dataset.n_labels)]
    ways = {"everything background": np.zeros_like(split.labels),
            "nearest mean grey": np.argmin([abs(grey - mean) for mean in means], axis=0)}
    rows = {way: {"right pixels, %": round(100 * (guess == split.labels).mean(), 1),
                  **score(split, guess).pooled.add_prefix("Dice, ").round(3)} for way, guess in ways.items()}
    return Table(f"{split.task.title}, {split.name}: without any network", pd.DataFrame.from_dict(rows, orient="index"))


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
            truth, guess = map(surface, masks)
            if truth.any() and guess.any():
                ways = [ndimage.distance_transform_edt(~b)[a] for a, b in ((truth, guess), (guess, truth))]
                found.append((max(np.percentile(way, 95) for way in ways), np.concatenate(ways).mean()))
            alone += truth.any() != guess.any()
        hausdorff, mean = np.mean(found, axis=0).round(2) if found else (np.nan, np.nan)
        rows[label.name] = {"Hausdorff 95 %": hausdorff, "mean": mean, "slices": len(found),
                            "slices where only one has it": alone}
    return Table(f"{split.task.title}, {split.name}: distance between surfaces, in pixels",
                 pd.DataFrame.from_dict(rows, orient="index"))


def surface(mask):
    """The pixels of a mask (H, W) that have a neighbour outside it; what lies beyond the picture is not known."""
    return mask & ~ndimage.binary_erosion(mask, border_value=1)


@dataclass(frozen=True, repr=False)
class Verdict(Shown):
    """The grade: whether the pooled hard Dice of every label reaches what is needed, on all test slices."""

    title: str
    table: pd.DataFrame
    needed: float
    slices: tuple[int, int]  # scored, of how many

    @property
    def passed(self):
        """True when every label that occurs reaches the needed Dice; None, no grade, where slices are left out or no
        label occurs but background."""
        if self.slices[0] < self.slices[1] or set(self.table["verdict"][1:]) == {"absent"}:
            return None
        return set(self.table["verdict"]) - {"absent"} == {"pass"}

    @property
    def sentence(self):
        """The verdict in one sentence."""
        if self.passed is None:
            there = " and have nothing but background" if self.slices[0] == self.slices[1] else ""
            return f"NO GRADE: {self.slices[0]} of {self.slices[1]} test slices were scored on {self.title}{there}."
        if self.passed:
            absent = ", ".join(self.table.index[self.table["verdict"] == "absent"])
            which = f"every label that occurs (not {absent})" if absent else "every label"
            return f"PASS: {which} reaches Dice {self.needed} on {self.title}, {self.slices[0]} slices."
        short = self.table.index[self.table["verdict"] == "FAIL"].tolist()
        return f"FAIL: {', '.join(short) or 'every label'} below Dice {self.needed} on {self.title}."

    def as_table(self):
        """The verdict in one sentence; its table."""
        return self.sentence, self.table

    def files(self):
        """{"verdict.json": text}."""
        dice = {name: None if np.isnan(d) else d for name, d in self.table["Dice (hard, pooled)"].items()}
        return {"verdict.json": json.dumps({"set": self.title, "averaging": "hard, pooled", "needed": self.needed,
                                            "slices": self.slices, "passed": self.passed, "dice": dice}, indent=2) + "\n"}


def verdict(scores, needed=NEEDED):
    """Grade pooled hard Dice per label against `needed`; a label that never occurs is not graded."""
    words = ["absent" if np.isnan(d) else "pass" if d >= needed else "FAIL" for d in scores.pooled]
    table = pd.DataFrame({"Dice (hard, pooled)": scores.pooled.round(4), "needed": needed,
                          "worst subject": scores.per_subject.min().round(4),
                          "all background": scores.baseline.round(4), "verdict": words})
    return Verdict(scores.title, table, needed, (len(scores.confusion), scores.whole or len(scores.confusion)))


def side_by_side(scores, beside=None):
    """A Table of Scores, {name: scores}, a row each: pooled Dice per label; `beside` {name: {column: value}} adds more."""
    rows = {name: {**found.pooled.round(4), **(beside or {}).get(name, {})} for name, found in scores.items()}
    first = next(iter(scores.values()))
    return Table(f"{first.title}: Dice (hard, pooled)", pd.DataFrame.from_dict(rows, orient="index"))
