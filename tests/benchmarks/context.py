"""What context buys on OASIS, and which errors it takes away, on all validation or test people; nothing is trained.

    python tests/benchmarks/context.py RUN [RUN ...] --data PATH
    python tests/benchmarks/context.py --draw tests/benchmarks/context_oasis.csv images/oasis_context.png

RUN is the folder of a run that is trained; several are averaged. Errors are wrong pixels, by the two labels that were
mistaken for each other. Beside the rows, in .people.csv, is the Dice of each person with all context.
"""

import argparse
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from helpers import backend, datasets, evaluate, show  # noqa: E402
from helpers.data import TISSUES  # noqa: E402
from helpers.predict import Predictor  # noqa: E402
from helpers.recipe import OPTIONS  # noqa: E402
from helpers.run import Run  # noqa: E402

NAMES = [label.name for label in TISSUES]
KINDS = [f"{one} / {two}" for one, two in combinations(NAMES, 2)]


def row_of(context, scores):
    """One row: Dice of each label, and wrong pixels a slice by the two labels that they are between."""
    counts = scores.confusion.sum(0) / len(scores.confusion)
    errors = {kind: counts[k, m] + counts[m, k] for kind, (k, m) in zip(KINDS, combinations(range(len(NAMES)), 2))}
    return {"context": context, **scores.pooled, **errors}


def measure(folders, data, split):
    """{context: Scores} for each context that a recipe can ask for, none first; the recipe is the first run's but for
    its data. And without context, soft Dice of each image (N, L).
    """
    runs = [Run.open(folder) for folder in folders]
    run = runs[0]
    run.network()  # as it was saved: with its data, it would be built anew, by the code that is here now
    run.recipe = replace(run.recipe, data=data, **{"validation_slices": 1, "test_slices": 1, f"{split}_slices": None})
    run.dataset = datasets.load(run.recipe)
    part = getattr(run.dataset, split)
    scores = {context: evaluate.score(part, Predictor(*runs, context=context).labels(part))
              for context in ("", *OPTIONS["context"]["choices"])}
    return scores, Predictor(*runs, context="").soft_dice(part)


def summary(scores):
    """Dice of each label by each of evaluate's averages: pooled with its interval, worst person, mean over images."""
    low, high = scores.interval()
    return pd.DataFrame({"pooled": scores.pooled, "low": low, "high": high, "worst person": scores.per_subject.min(),
                         "who": scores.per_subject.idxmin(), "per image": scores.per_image.fillna(1).mean()})


def figure(rows, split="validation"):
    """Wrong pixels a slice for each context, stacked by the labels that they are between: a Picture."""
    drawn, axes = show.axes_of(1, 1, 9, 2.6, f"OASIS, {split} people: wrong pixels a slice")
    ax, left, places = axes[0, 0], np.zeros(len(rows)), range(len(rows))[::-1]
    shown = [kind for kind in KINDS if rows[kind].max() > 5]
    for kind, colour in zip(shown, ("#999999", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#000000")):
        ax.barh(places, rows[kind], left=left, color=colour, label=kind)
        left = left + rows[kind]
    ax.set_yticks(places, [f"context: {name}" for name in rows["context"]])
    ax.set(xlabel="pixels of 1 mm")
    ax.legend(title="mistaken for each other", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return show.Picture(drawn, "A bar for each context, stacked by the two labels that were mistaken for each other.")


def main(words=None):
    """Read the command line; measure, or draw what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("RUN", nargs="*", help="folders of trained runs")
    parser.add_argument("--data", default="", help="path of the slices")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--to", help="file of the results; runs/context_oasis_SPLIT.csv without")
    parser.add_argument("--draw", nargs=2, metavar=("CSV", "PNG"), help="draw results that are there already")
    chosen = parser.parse_args(words)
    if chosen.draw:
        figure(pd.read_csv(chosen.draw[0]), chosen.split).figure.savefig(chosen.draw[1])
        return
    if not (chosen.RUN and chosen.data):
        parser.error("RUN and --data are needed, or --draw.")
    backend.set_up()
    to = chosen.to or f"runs/context_oasis_{chosen.split}.csv"
    Path(to).parent.mkdir(parents=True, exist_ok=True)
    scores, soft = measure(chosen.RUN, chosen.data, chosen.split)
    rows = pd.DataFrame([row_of(context or "none", one) for context, one in scores.items()]).round(5)
    rows.to_csv(to, index=False)
    best = list(scores)[-1]
    scores[best].per_subject.rename_axis("subject").round(5).to_csv(Path(to).with_suffix(".people.csv"))
    print(rows.to_string())
    for context in ("", best):
        print(f"\ncontext: {context or 'none'}", summary(scores[context]).round(5), scores[context].measures(), sep="\n")
    print("\nsoft, per image, without context:", np.nanmean(soft, 0).round(5))


if __name__ == "__main__":
    main()
