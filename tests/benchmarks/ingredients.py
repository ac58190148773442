"""What each ingredient buys: one thing at a time changed in the network or its training, the same slices shown to all.

    python tests/benchmarks/ingredients.py --data PATH
    python tests/benchmarks/ingredients.py --draw tests/benchmarks/ingredients_oasis.csv images/ingredients.png

Scores are of validation people, without mirror images: the test is not read. A row is written as soon as it is there;
what was stopped goes on.
"""

import argparse
import sys
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
GENTLE = 1e-3  # learning rate of networks without normalisation: a second change in those rows, not a measured need
SCORED = ["CSF", "grey matter", "white matter"]


def variants(recipe):
    """{name: (recipe, function that builds its network)}, the recipe as it is first."""
    whole, plain = model.of_recipe, recipe.plain().change(loss="cross_entropy")
    return {
        REFERENCE: (recipe, whole),
        "without normalisation": (recipe.change(learning_rate=GENTLE), without_normalisation),
        "without residuals": (recipe, without_residuals),
        "without deep supervision": (recipe, without_deep_supervision),
        "with dropout 0.3 (of whole maps)": (recipe.change(dropout=0.3), whole),
        "with mirroring": (recipe.change(augment=0.0), whole),
        "with rotation, scale, shift": (recipe.change(augment=0.7), whole),
        "loss: cross-entropy alone": (recipe.change(loss="cross_entropy"), whole),
        "loss: Dice alone": (recipe.change(loss="dice"), whole),
        "plain U-Net, cross-entropy": (plain, whole),
    }


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


def afresh():
    """Forget earlier networks, but not the precision, which Keras would forget with them."""
    policy = keras.mixed_precision.dtype_policy()
    keras.utils.clear_session()
    keras.mixed_precision.set_dtype_policy(policy)


def measure(recipe, dataset, seeds, runs, csv):
    """Train every variant with every seed that the CSV lacks, score it on validation people, and add its row."""
    predict_as_built()
    rows = pd.read_csv(csv).to_dict("records") if csv.exists() else []
    csv.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for name, (own, build) in variants(recipe.change(seed=seed)).items():
            row = {"data": dataset.task.title, "variant": name, "seed": seed, "slices": len(dataset.train),
                   "epochs": own.epochs}
            if any(row.items() <= there.items() for there in rows):
                continue
            afresh()
            print(f"\n{name}, seed {seed}", flush=True)
            run = Run(runs, own, dataset, build).train()
            if not run.finished:
                raise KeyboardInterrupt
            pooled = evaluate.score(dataset.validation, Predictor(run, mirrors=False).labels(dataset.validation)).pooled
            rows.append(row | {"weights": run.network().count_params(), **pooled[SCORED]})
            pd.DataFrame(rows).round(4).to_csv(csv, index=False)
    return pd.DataFrame(rows)


def table(rows):
    """Mean and spread over seeds, a Table with a line a variant; `rows` is what `measure` gives, a row a run."""
    groups = rows.groupby("variant", sort=False)
    found = groups[SCORED].agg(lambda dice: f"{dice.mean():.4f} ± {dice.std():.4f}")
    return data.Table(f"{rows['data'].iloc[0]}, validation: Dice (hard, pooled), mean ± standard deviation",
                      found.join(groups["weights"].first()).join(groups.size().rename("runs")))


def figure(rows):
    """Dice of each tissue by every variant, a Picture: a point a run, a bar the mean, a dotted line the first's mean."""
    groups = list(rows.groupby("variant", sort=False))[::-1]
    drawn, axes = show.axes_of(1, len(SCORED), 3.6, 1.2 + 0.32 * len(groups),
                               f"{rows['data'].iloc[0]}: what each ingredient buys")
    for ax, tissue in zip(axes[0], SCORED):
        for place, (_, runs) in enumerate(groups):
            ax.plot(runs[tissue], np.full(len(runs), place), "o", color="#0072B2", alpha=0.6)
            ax.plot(runs[tissue].mean(), place, "|", color="black", markersize=16, markeredgewidth=2)
        ax.axvline(groups[-1][1][tissue].mean(), color="#888888", linestyle=":")
        ax.set(title=tissue)
        ax.locator_params("x", nbins=4)
        ax.set_yticks(range(len(groups)), [name for name, _ in groups] if tissue == SCORED[0] else [])
    axes[0, 1].set_xlabel("validation Dice (hard, pooled); bar: mean, dotted: mean of the first row")
    return show.Picture(drawn, f"Validation Dice of {len(groups)} variants of network and training, a point a run.")


def main(words=None):
    """Read the command line; measure, or draw what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in (("dataset", "oasis", "as in the notebook"), ("data", "", "path of the data"),
                                ("options", "slices=2416 epochs=1 start=random", "as in the notebook"),
                                ("seeds", 3, "runs of each variant"),
                                ("to", "runs/ingredients", "folder of the results")):
        parser.add_argument(f"--{name}", default=default, type=type(default), help=text)
    parser.add_argument("--draw", nargs=2, metavar=("CSV", "PNG"), help="print and draw results that are there already")
    chosen = parser.parse_args(words)
    if chosen.draw:
        rows = pd.read_csv(chosen.draw[0])
        figure(rows).figure.savefig(chosen.draw[1])
    else:
        backend.set_up()
        recipe = Recipe.choose(chosen.dataset, chosen.options, chosen.data, backend.has_gpu)
        rows = measure(recipe, datasets.load(recipe), chosen.seeds, chosen.to, Path(chosen.to) / "ingredients.csv")
    print(table(rows))


if __name__ == "__main__":
    main()
