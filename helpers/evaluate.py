"""Predictions, and the hard Dice of every label: pooled, per subject and per image; then the verdict."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

NEEDED = 0.9  # the task's threshold, for every label


def predict(network, images, batch_size=32):
    """Label of every pixel, uint8 (N, H, W): the most probable one. `images` is uint8 (N, H, W, C)."""
    chunks = [network.predict(images[at:at + 16 * batch_size], batch_size=batch_size, verbose=0).argmax(-1)
              for at in range(0, len(images), 16 * batch_size)]  # probabilities of all slices would not fit
    return np.concatenate(chunks).astype(np.uint8)


def dice(truth, guess, n_labels):
    """Hard Dice of each label (L,) over two arrays of labels: 2 |A and B| / (|A| + |B|), NaN where both are empty."""
    return dice_of_counts(*overlap(truth, guess, n_labels))


def overlap(truth, guess, n_labels):
    """Pixels of each label in truth and guess at once, in truth, and in guess: three arrays (L,)."""
    truth, guess = np.ravel(truth), np.ravel(guess)
    return tuple(np.bincount(labels, minlength=n_labels) for labels in (truth[truth == guess], truth, guess))


def dice_of_counts(both, truth, guess):
    """Dice from pixel counts of any shape; NaN where the label is in neither."""
    both, total = np.asarray(both, float), np.asarray(truth, float) + np.asarray(guess, float)
    return np.divide(2 * both, total, out=np.full(total.shape, np.nan), where=total > 0)


@dataclass(frozen=True)
class Scores:
    """Hard Dice per label of one split: pooled (L,), per subject and per image (tables, one column a label).

    `baseline` is the pooled Dice of calling everything background. A label in neither truth nor prediction
    is NaN: it is left out of means, not counted as right or wrong.
    """

    title: str
    pooled: pd.Series
    per_subject: pd.DataFrame
    per_image: pd.DataFrame
    baseline: pd.Series

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

    def __repr__(self):
        return f"{self._caption()}\n{self.table().round(4).to_string()}"

    def _repr_html_(self):
        return f"<p><b>{self._caption()}</b></p>{self.table().round(4).to_html()}"

    def _caption(self):
        return (f"{self.title}: hard Dice of {len(self.per_image)} slices of {len(self.per_subject)} subjects")


def score(split, guesses):
    """Hard Dice of predictions (N, H, W) against a split, as Scores."""
    names = [label.name for label in split.task.labels]
    counts = np.array([overlap(t, g, len(names)) for t, g in zip(split.labels, guesses, strict=True)])  # (N, 3, L)
    counts = {part: pd.DataFrame(counts[:, k], columns=names) for k, part in enumerate(("both", "truth", "guess"))}

    def table(rows):
        """Dice of each row of counts, one column a label."""
        return pd.DataFrame(dice_of_counts(*rows.values()), next(iter(rows.values())).index, names)

    images = table(counts)
    images.insert(0, "subject", split.subjects)
    per_image = images.set_index("subject")
    per_subject = table({part: rows.groupby(split.subjects).sum() for part, rows in counts.items()})
    pooled = pd.Series(dice_of_counts(*(rows.sum() for rows in counts.values())), names)
    baseline = pd.Series(dice(split.labels, np.zeros_like(split.labels), len(names)), names)
    return Scores(f"{split.task.title}, {split.name}", pooled, per_subject, per_image, baseline)


@dataclass(frozen=True)
class Verdict:
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
            return f"PASS: every label reaches Dice {self.needed} on {self.title}."
        short = self.table.index[self.table["verdict"] == "FAIL"].tolist()
        return f"FAIL: {', '.join(short) or 'every label'} below Dice {self.needed} on {self.title}."

    def __repr__(self):
        return f"{self.sentence}\n{self.table.to_string()}"

    def _repr_html_(self):
        return f"<p><b>{self.sentence}</b></p>{self.table.to_html()}"


def verdict(scores, needed=NEEDED):
    """Grade pooled hard Dice per label against `needed`; a label that never occurs is not graded."""
    words = ["absent" if np.isnan(d) else "pass" if d >= needed else "FAIL" for d in scores.pooled]
    table = pd.DataFrame({"Dice (hard, pooled)": scores.pooled.round(4), "needed": needed,
                          "worst subject": scores.per_subject.min().round(4),
                          "all background": scores.baseline.round(4), "verdict": words})
    return Verdict(scores.title, table, needed)


def side_by_side(results):
    """Table of several trained networks, {name: (scores, history)}: pooled Dice per label, seconds per epoch."""
    rows = {name: [*scores.pooled.round(4), round(history["seconds"].median(), 1)]
            for name, (scores, history) in results.items()}
    scores = next(iter(results.values()))[0]
    names = [f"{label}: Dice (hard, pooled)" for label in scores.pooled.index]
    return pd.DataFrame(rows, [*names, "median seconds of an epoch"]).rename_axis(scores.title)


def save(scores, grade, run):
    """Write `dice.csv` (pooled, every subject, every image) and `verdict.json` into the folder `run`."""
    run = Path(run)
    run.mkdir(parents=True, exist_ok=True)
    pooled = scores.pooled.to_frame().T.assign(averaging="pooled", subject="all")
    subjects = scores.per_subject.rename_axis("subject").reset_index().assign(averaging="subject")
    images = scores.per_image.reset_index().assign(averaging="image")
    rows = pd.concat([pooled, subjects, images])
    rows[["averaging", "subject", *scores.pooled.index]].to_csv(run / "dice.csv", index=False, float_format="%.6f")
    content = {"set": scores.title, "needed": grade.needed, "passed": grade.passed, "averaging": "hard, pooled",
               "dice": {name: None if np.isnan(d) else round(d, 6) for name, d in scores.pooled.items()}}
    (run / "verdict.json").write_text(json.dumps(content, indent=2) + "\n")
