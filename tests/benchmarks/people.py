"""How many labelled people does it take? Test Dice by people to learn from, with random and with synthetic first weights.

    python tests/benchmarks/people.py --data PATH
    python tests/benchmarks/people.py --draw tests/benchmarks/people_oasis.csv images/people.png

Every network sees about as many slices; fewer people are seen more often. Synthetic first weights are those of
the network that comes along. All validation people choose the epoch.
A row is written as soon as it is there, and its test is not evaluated again: what was stopped goes on.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]
from ingredients import afresh  # noqa: E402
from pack import on_oasis  # noqa: E402

from helpers import backend, datasets, evaluate, show  # noqa: E402
from helpers.predict import Predictor  # noqa: E402
from helpers.recipe import Recipe  # noqa: E402
from helpers.run import Run  # noqa: E402

PEOPLE = (3, 10, 30, 100, 302)
STARTS = {"random weights": None, "synthetic brains": "synthetic"}
SHOWN, EACH = 2416, 32  # slices: in all epochs together, and of a person


def points(recipe, people=PEOPLE):
    """(name of the start, recipe) of every network; each shows about as many slices."""
    for n in people:
        slices = min(EACH * n, SHOWN)
        for name, start in STARTS.items():
            yield name, recipe.change(people=n, slices=slices, epochs=max(1, round(SHOWN / slices)), start=start)


def measure(recipe, runs, csv):
    """Train what is not in the CSV yet, score it on the test, and add its row."""
    rows = pd.read_csv(csv).to_dict("records") if csv.exists() else []
    csv.parent.mkdir(parents=True, exist_ok=True)
    for name, own in points(recipe):
        afresh()
        brains = datasets.load(own)
        run = Run(runs, own, brains)
        if brains.train.n_subjects < own.people or any(row["run"] == run.name for row in rows):
            continue
        print(f"\n{own.people} people, from {name}, {own.slices} slices, {own.epochs} epochs", flush=True)
        if not run.train().finished:
            raise KeyboardInterrupt
        scores = evaluate.score(brains.test, Predictor(run).labels(brains.test))
        rows.append({"data": brains.task.title, "run": run.name, "start": name, "people": own.people, "seed": own.seed,
                     "slices": own.slices, "epochs": own.epochs, **scores.pooled,
                     **scores.per_subject.min().add_prefix("worst person, ")})
        pd.DataFrame(rows).round(5).to_csv(csv, index=False)
    return pd.DataFrame(rows)


def figure(rows):
    """Dice of every tissue against the number of people, a Picture: solid from synthetic brains, dashed from random."""
    tissues = rows.columns[list(rows.columns).index("background") + 1:list(rows.columns).index("worst person, background")]
    drawn, axes = show.axes_of(1, len(tissues), 3.6, 3.7, f"{rows['data'].iloc[0]}: test Dice by people to learn from")
    for ax, tissue in zip(axes[0], tissues):
        for name, style in zip(STARTS, ("o--", "o-")):
            own = rows[rows["start"] == name].sort_values("people")
            colour = "#0072B2" if style == "o-" else "#D55E00"
            ax.plot(own["people"], own[tissue], style, color=colour, label=f"OASIS, from {name}")
        ax.axhline(float(on_oasis()[tissue]), color="#0072B2", linestyle="-.", label="synthetic brains alone")
        ax.axhline(evaluate.NEEDED, color="#888888", linestyle=":", label="asked")
        ax.set(title=tissue, xlabel="people", xscale="log")
        ax.set_xticks(sorted({*rows["people"]}), sorted({*rows["people"]}))
        ax.minorticks_off()
    axes[0, 0].set_ylabel("test Dice (hard, pooled)")
    drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return show.Picture(drawn, f"Dice of {', '.join(tissues)} against people, one training a point; the dotted line is the "
                        "Dice that the task asks for.")


def main(words=None):
    """Read the command line; measure, or draw what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in (("dataset", "oasis", "as in the notebook"), ("data", "", "path of the data"),
                                ("options", "validation_slices=70", "more, as in the notebook"),
                                ("to", "runs/people", "folder of the results")):
        parser.add_argument(f"--{name}", default=default, help=text)
    parser.add_argument("--draw", nargs=2, metavar=("CSV", "PNG"), help="draw results that are there already")
    chosen = parser.parse_args(words)
    if chosen.draw:
        figure(pd.read_csv(chosen.draw[0])).figure.savefig(chosen.draw[1])
        return
    backend.set_up()
    recipe = Recipe.choose(chosen.dataset, chosen.options, chosen.data, backend.has_gpu)
    print(measure(recipe, chosen.to, Path(chosen.to) / "people.csv").to_string())


if __name__ == "__main__":
    main()
