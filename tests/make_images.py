"""Every picture in images/, as README and notebook show them.

    python tests/make_images.py [RUN]

RUN is the folder of a finished run on practice brains (synthetic), such as runs/practice-3f9c2a, whose pictures are
made too. What is measured on OASIS is drawn from tests/benchmarks/*.csv: no pixels, numbers only.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

HERE = Path(__file__).resolve().parent
MEASURED = HERE / "benchmarks"
sys.path.insert(0, str(HERE.parent))
from benchmarks import context, ingredients, people  # noqa: E402

from helpers import backend, datasets, evaluate, model, show  # noqa: E402
from helpers.data import TISSUES, Task  # noqa: E402
from helpers.predict import Predictor  # noqa: E402
from helpers.run import Run  # noqa: E402


def practice(folder):
    """{name: Picture} of a run on practice brains."""
    run = Run.open(folder)
    run.dataset = brains = datasets.load(run.recipe)
    if run.identity()["data"] != run.state["identity"]["data"]:
        raise SystemExit(f"{folder} was trained on other slices than are made now: train anew.")
    labels = Predictor(run).labels(brains.test)
    scores = evaluate.score(brains.test, labels)
    print(evaluate.verdict(scores))
    return {"network": show.network(model.build(run.recipe, brains)),
            "comparison": show.comparison(brains.test, labels, scores)}


def measured():
    """{name: Picture} of what is in the CSV files: the graded run on OASIS, context, learning curve, ingredients."""
    history = pd.read_csv(MEASURED / "oasis_history.csv", index_col="epoch")
    task = Task("OASIS", TISSUES, "")
    run = SimpleNamespace(history=history, best=history["val_worst dice"].idxmax(), task=task)
    each = pd.read_csv(MEASURED / "oasis_people.csv", index_col="subject")
    title = "OASIS, the task's test, three networks with context"
    return {"oasis_curves": show.curves(run),
            "oasis_people": show.boxes(SimpleNamespace(title=title, per_subject=each), task),
            "oasis_context": context.figure(pd.read_csv(MEASURED / "context_oasis.csv")),
            "people": people.figure(pd.read_csv(MEASURED / "people_oasis.csv")),
            "ingredients": ingredients.figure(pd.read_csv(MEASURED / "ingredients_oasis.csv"))}


if __name__ == "__main__":
    backend.set_up()
    for name, picture in (measured() | (practice(sys.argv[1]) if sys.argv[1:] else {})).items():
        picture.figure.savefig(HERE.parent / "images" / f"{name}.png")
        print(f"images/{name}.png: {picture.alt}")
