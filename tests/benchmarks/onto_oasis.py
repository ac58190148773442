"""How a network that was trained on other slices, such as practice brains, does on OASIS; nothing is trained.

    python tests/benchmarks/onto_oasis.py RUN --data PATH --split validation

RUN is the folder of a finished run. The second row has the true brain mask: what is left then are errors between tissues.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from helpers import backend, datasets, evaluate  # noqa: E402
from helpers.predict import Predictor  # noqa: E402
from helpers.recipe import Recipe  # noqa: E402


def rows_of(split, probabilities):
    """A row each for the labels as found, and within the true mask: Dice pooled, and of the worst person."""
    tissue = 1 + probabilities[..., 1:].argmax(-1)
    found = {"as found": probabilities.argmax(-1), "within the true mask": np.where(split.labels > 0, tissue, 0)}
    scores = {name: evaluate.score(split, labels) for name, labels in found.items()}
    return pd.DataFrame({name: {**one.pooled, **one.per_subject.min().add_prefix("worst ")}
                         for name, one in scores.items()}).T


def main(words=None):
    """Read the command line, score the run, print its rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("RUN", help="folder of a finished run")
    parser.add_argument("--data", required=True, help="path of the slices")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    chosen = parser.parse_args(words)
    backend.set_up()
    other = {"validation": "test", "test": "validation"}[chosen.split]
    brains = datasets.load(Recipe.choose("oasis", f"slices=302 {other}_slices=1", chosen.data))
    split = getattr(brains, chosen.split)
    print(split, rows_of(split, Predictor.open(chosen.RUN, context="").probabilities(split.images)).round(4).to_string(),
          sep="\n")


if __name__ == "__main__":
    main()
