"""Every picture in images/, as README and notebook show them.

    python tests/make_images.py RUN

RUN is the folder of a finished run on practice brains (synthetic), such as runs/practice-3f9c2a.
"""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from benchmarks import ingredients  # noqa: E402

from helpers import backend, datasets, evaluate, model, show  # noqa: E402
from helpers.predict import Predictor  # noqa: E402
from helpers.run import Run  # noqa: E402


def pictures(folder):
    """{name: Picture} of all, from the folder of a run."""
    run = Run.open(folder)
    run.dataset = brains = datasets.load(run.recipe)
    if run.identity()["data"] != run.state["identity"]["data"]:
        raise SystemExit(f"{folder} was trained on other slices than are made now: train anew.")
    labels = Predictor(run).labels(brains.test)
    scores = evaluate.score(brains.test, labels)
    print(evaluate.verdict(scores))
    return {"network": show.network(model.build(run.recipe, brains)),
            "curves": show.curves(run, run.network()),
            "comparison": show.comparison(brains.test, labels, scores),
            "ingredients": ingredients.figure(pd.read_csv(HERE / "benchmarks" / "ingredients_practice.csv"),
                                              "validation")}


if __name__ == "__main__":
    backend.set_up()
    for name, picture in pictures(sys.argv[1]).items():
        picture.save(HERE.parent / "images" / f"{name}.png")
        print(f"images/{name}.png: {picture.alt}")
