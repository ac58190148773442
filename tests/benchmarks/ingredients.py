"""What each ingredient buys: one thing at a time taken from the network or its training, on the same data and budget.

    python tests/benchmarks/ingredients.py --help
    python tests/benchmarks/ingredients.py --draw tests/benchmarks/ingredients_practice.csv images/ingredients.png

Each variant is trained for the same epochs and, where its epochs take longer or shorter, anew for the same seconds.
Scores are of networks without mirror images.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from helpers import backend, data, datasets, evaluate, model, show  # noqa: E402
from helpers.backend import keras  # noqa: E402
from helpers.predict import Predictor  # noqa: E402
from helpers.recipe import Recipe  # noqa: E402
from helpers.run import Run  # noqa: E402

REFERENCE = "Improved U-Net"
STARTED = "starting from another run"
DROPOUT = "dropout=0.1"  # of the whole recipe, on any data: without dropout is then one thing less
GENTLE = 1e-3  # learning rate of networks without normalisation: a second change in those rows, not a measured need


def variants(recipe, start=None):
    """{name: (recipe, function that builds its network)}, the whole recipe first.

    With `start`, the folder of a run, a variant starts from that run's best weights.
    """
    whole, plain = model.of_recipe, recipe.plain().change(loss="cross_entropy")
    started = {STARTED: (recipe.change(start=start), whole)} if start else {}
    return {
        REFERENCE: (recipe, whole),
        "without normalisation": (recipe.change(learning_rate=GENTLE), without_normalisation),
        "without residuals": (recipe, without_residuals),
        "without deep supervision": (recipe, without_deep_supervision),
        "without dropout": (recipe.change(dropout=0.0), whole),
        "dropout 0.3 (of whole maps)": (recipe.change(dropout=0.3), whole),
        "without rotation, scale and shift": (recipe.change(augment=0.0), whole),
        "without augmentation": (recipe.change(augment=None), whole),
        "loss: cross-entropy alone": (recipe.change(loss="cross_entropy"), whole),
        "loss: Dice alone": (recipe.change(loss="dice"), whole),
        "plain U-Net, cross-entropy": (plain, whole),
    } | started


def without_normalisation(recipe, channels, n_labels):
    """The recipe's network without any normalisation but the input's."""
    return with_others(model.of_recipe(recipe, channels, n_labels), "-norm_",
                       lambda layer: keras.layers.Identity(name=layer.name))


def without_residuals(recipe, channels, n_labels):
    """The recipe's network, whose context modules are not added to what comes into them."""
    return with_others(model.of_recipe(recipe, channels, n_labels), "context_", lambda layer: (
        keras.layers.Lambda(lambda both: both[1], name=layer.name) if isinstance(layer, keras.layers.Add)
        else layer.__class__.from_config(layer.get_config())))


def without_deep_supervision(recipe, channels, n_labels):
    """The recipe's network, whose top level alone draws a segmentation."""
    return model.improved_unet((None, None, channels), n_labels, recipe.filters, recipe.dropout, supervised=1)


def with_others(network, part, make):
    """A new copy of a network, in which `make(layer)` stands for each layer whose name holds `part`."""
    return keras.models.clone_model(network, clone_function=lambda layer: make(layer) if part in layer.name
                                    else layer.__class__.from_config(layer.get_config()))


def predict_as_built():
    """Keep TensorFlow from joining layers before it predicts.

    On a processor TensorFlow 2.21 joins a convolution, a sum and the leaky ReLU after it, and loses the slope on the
    way: the network without normalisation, where those follow one another, then predicts other than it learned.
    """
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf
        tf.config.optimizer.set_experimental_options({"remapping": False})


def set_aside(dataset, people):
    """The last `people` people of the training split moved into validation, so that tests need not be read."""
    old, validation = dataset.train, dataset.validation
    moved = np.isin(old.subjects, np.unique(old.subjects)[-people:])
    more = {part: np.concatenate([getattr(validation, part), getattr(old, part)[moved]]) for part in data.PARTS}
    return replace(dataset, train=old.take(~moved), validation=replace(validation, **more, whole=None))


def measure(recipe, dataset, seeds, folder, only=(), read_test=True, start=None):
    """Train every variant with every seed and write `results.csv` into `folder`, a row as soon as it is there.

    `only` names the variants besides the whole recipe and, with `start`, the start; none means all. A run that is
    finished is read back, so what was interrupted goes on where it was.
    """
    folder, rows = Path(folder), []
    predict_as_built()

    def row_of(name, recipe, build, budget):
        """One row: train, score validation and test."""
        keras.utils.clear_session()
        print(f"\n{name}, seed {recipe.seed}, {recipe.epochs} epochs", flush=True)
        run = Run(folder, recipe, dataset, build).train()
        if not run.finished:
            raise KeyboardInterrupt
        predictor = Predictor(run, mirrors=False)
        row = {"data": dataset.task.title, "variant": name, "seed": recipe.seed, "budget": budget,
               "epochs": recipe.epochs, "weights": run.network().count_params(),
               "seconds per epoch": run.history["seconds"].median()}
        for split in dataset.splits[1:2 + read_test]:
            pooled = evaluate.score(split, predictor.labels(split)).pooled
            row |= {f"{split.name} {label}": dice for label, dice in pooled.items()}
        rows.append(row)
        pd.DataFrame(rows).round(5).to_csv(folder / "results.csv", index=False)
        return row

    each = [(name, own.change(seed=seed), build) for seed in range(seeds)
            for name, (own, build) in variants(recipe, start).items()
            if not only or name in (REFERENCE, STARTED, *only)]
    same_epochs = [row_of(*one, "epochs") for one in each]
    seconds = pd.DataFrame(rows).groupby("variant")["seconds per epoch"].median()
    for row, (name, own, build) in zip(same_epochs, each):
        same_time = max(1, round(own.epochs * seconds[REFERENCE] / seconds[name]))
        if same_time == own.epochs:
            rows.append(row | {"budget": "seconds"})
        else:
            row_of(name, own.change(epochs=same_time), build, "seconds")
    pd.DataFrame(rows).round(5).to_csv(folder / "results.csv", index=False)


def table(results, split="test"):
    """Mean and spread over seeds, a Table, a row a variant and budget: Dice of each label, epochs, seconds, weights.

    `results` is what `measure` writes, a row a run.
    """
    names = [column for column in results if column.startswith(f"{split} ")]
    groups = results.groupby(["budget", "variant"], sort=False)
    found = groups[names].agg(lambda dice: f"{dice.mean():.4f} ± {dice.std():.4f}")
    found.columns = [name.removeprefix(f"{split} ") for name in names]
    found = found.join(groups[["epochs", "seconds per epoch", "weights"]].median()).astype(
        {"epochs": int, "weights": int}).join(groups.size().rename("runs"))
    found["seconds per epoch"] = found["seconds per epoch"].round(1)
    return data.Table(f"{results['data'].iloc[0]}, {split}: Dice (hard, pooled), mean ± standard deviation", found)


def figure(results, split="test"):
    """Mean Dice without background of each variant: a point a run, a bar at their mean, a dotted line at the first's.

    A Picture. Runs that count for both budgets are drawn once; those that only the same seconds allow say their epochs.
    """
    names = [column for column in results if column.startswith(f"{split} ") and column != f"{split} background"]
    labels = [name.removeprefix(f"{split} ") for name in names]
    runs = results.drop_duplicates(["variant", "seed", "epochs"]).assign(dice=results[names].mean(axis=1))
    groups = list(runs.groupby(["variant", "budget", "epochs"], sort=False)["dice"])[::-1]
    drawn, axes = show.axes_of(1, 1, 10, 1.2 + 0.36 * len(groups),
                               f"{results['data'].iloc[0]}: what each ingredient buys")
    ax = axes[0, 0]
    for place, (_, dice) in enumerate(groups):
        ax.plot(dice, np.full(len(dice), place), "o", color="#0072B2", alpha=0.6)
        ax.plot(dice.mean(), place, "|", color="black", markersize=18, markeredgewidth=2)
    ax.axvline(groups[-1][1].mean(), color="#888888", linestyle=":")
    ax.set_yticks(range(len(groups)), [variant + (budget != "epochs") * f", {epochs} epochs (the same seconds)"
                                       for (variant, budget, epochs), _ in groups])
    ax.set(xlabel=f"{split} Dice (hard, pooled),\nmean of {', '.join(labels)}")
    return show.Picture(drawn, f"{split.capitalize()} Dice of {len(groups)} variants of the network and its training, a point "
                        "a run.")


def arguments(words):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in (
            ("dataset", "practice", "as in the notebook"), ("data", "", "path of the data"),
            ("options", "", f"as in the notebook; {DROPOUT} unless another is given"),
            ("seeds", 3, "runs of each variant"),
            ("aside", 0, "people moved from training to validation; with any, the test split is not read"),
            ("start", "", "folder of a run: measure a start from its best weights too"),
            ("to", "runs/ingredients", "folder of the results")):
        parser.add_argument(f"--{name}", default=default, type=type(default), help=text)
    parser.add_argument("--only", nargs="+", default=[], choices=list(variants(Recipe("practice"))), metavar="VARIANT",
                        help="names of the variants to train besides the whole recipe")
    parser.add_argument("--draw", nargs=2, metavar=("CSV", "PNG"), help="print and draw results that are there already")
    chosen = parser.parse_args(words)
    if chosen.aside < 0:
        parser.error(f"--aside is {chosen.aside}; it must be 0 or more.")
    return chosen


def main(words=None):
    """Read the command line, load the data, measure and print the summary; or draw one that is there."""
    chosen = arguments(words)
    if chosen.draw:
        results = pd.read_csv(chosen.draw[0])
        print(table(results, "validation"))
        figure(results, "validation").figure.savefig(chosen.draw[1])
        return
    backend.set_up()
    options = chosen.options if "dropout=" in chosen.options else f"{DROPOUT} {chosen.options}"
    recipe = Recipe.choose(chosen.dataset, options, chosen.data, backend.has_gpu)
    brains = datasets.load(recipe)
    if chosen.aside:
        brains = set_aside(brains, chosen.aside)
    print(recipe, brains, sep="\n")
    measure(recipe, brains, chosen.seeds, chosen.to, chosen.only, not chosen.aside, chosen.start or None)
    print(table(pd.read_csv(Path(chosen.to) / "results.csv"), "validation" if chosen.aside else "test"))


if __name__ == "__main__":
    main()
