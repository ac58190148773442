"""What each ingredient buys: one thing at a time taken from the network or its training, on the same data and budget.

    python tests/benchmark_ingredients.py --help

Each variant is trained for the same epochs and, where its epochs take longer or shorter, anew for the same seconds.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import backend, data, evaluate, model, train  # noqa: E402
from helpers.backend import keras  # noqa: E402

REFERENCE = "Improved U-Net"
STARTED = "starting from another run (START)"
DROPOUT = 0.1  # the notebook's for practice brains; all else of the whole recipe is what `train.fit` does unasked
GENTLE = 1e-3  # learning rate of networks without normalisation: a second change in those rows, not a measured need
CROSS_ENTROPY = "sparse_categorical_crossentropy"  # Keras's name


def variants(shape, n_labels, start=""):
    """{name: (function that builds the network, other arguments of `train.fit`)}, the whole recipe first.

    With `start`, the folder of a run, a variant starts from that run's best weights.
    """
    def build(dropout=DROPOUT, **options):
        """The Improved U-Net."""
        return model.improved_unet(shape, n_labels, dropout=dropout, **options)

    started = {STARTED: (build, {"start": start})} if start else {}
    return {
        REFERENCE: (build, {}),
        "without normalisation": (lambda: without_normalisation(build()), {"learning_rate": GENTLE}),
        "without residuals": (lambda: without_residuals(build()), {}),
        "without deep supervision": (lambda: build(supervised=1), {}),
        "without dropout": (lambda: build(dropout=0.0), {}),
        "dropout 0.3 (of whole maps)": (lambda: build(dropout=0.3), {}),
        "without rotation, scale and shift": (build, {"augment": 0.0}),
        "without augmentation": (build, {"augment": None}),
        "with averaged weights (EMA)": (build, {"average": 0.99}),
        "loss: cross-entropy alone": (build, {"loss": CROSS_ENTROPY}),
        "loss: Dice alone": (build, {"loss": dice_alone}),
        "loss: Dice without background": (build, {"loss": dice_without_background}),
        "loss: Dice and focal": (build, {"loss": dice_and_focal}),
        "plain U-Net, cross-entropy": (lambda: model.unet(shape, n_labels, filters=16),
                                       {"learning_rate": GENTLE, "loss": CROSS_ENTROPY}),
    } | started


def predict_as_built():
    """Keep TensorFlow from joining layers before it predicts.

    On a processor TensorFlow 2.21 joins a convolution, a sum and the leaky ReLU after it, and loses the slope on the
    way: the network without normalisation, where those follow one another, then predicts other than it learned.
    """
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf
        tf.config.optimizer.set_experimental_options({"remapping": False})


def one_hot(truth, probabilities):
    """Labels (B, H, W) as (B, H, W, L), float32, for Keras's own losses."""
    return keras.ops.one_hot(keras.ops.cast(truth, "int32"), probabilities.shape[-1], dtype="float32")


def dice_loss(wanted, probabilities):
    """1 - soft Dice, each label's over the whole batch, averaged over labels."""
    return keras.ops.mean(keras.losses.dice(wanted, probabilities, axis=(0, 1, 2)))


def dice_alone(truth, probabilities):
    """1 - soft Dice, averaged over labels, without cross-entropy."""
    return dice_loss(one_hot(truth, probabilities), probabilities)


def dice_without_background(truth, probabilities):
    """1 - soft Dice, averaged over all labels but background, plus cross-entropy."""
    wanted = one_hot(truth, probabilities)
    cross_entropy = keras.ops.mean(keras.losses.categorical_crossentropy(wanted, probabilities))
    return dice_loss(wanted[..., 1:], probabilities[..., 1:]) + cross_entropy


def dice_and_focal(truth, probabilities):
    """1 - soft Dice plus focal cross-entropy (Lin et al. 2017), Keras's alpha and gamma."""
    wanted = one_hot(truth, probabilities)
    focal = keras.ops.mean(keras.losses.categorical_focal_crossentropy(wanted, probabilities))
    return dice_loss(wanted, probabilities) + focal


def without_normalisation(network):
    """The same network, new, without any normalisation but the input's."""
    return with_others(network, "-norm_", lambda layer: keras.layers.Identity(name=layer.name))


def without_residuals(network):
    """The same network, new, whose context modules are not added to what comes into them."""
    return with_others(network, "context_", lambda layer: keras.layers.Lambda(lambda both: both[1], name=layer.name)
                       if isinstance(layer, keras.layers.Add) else layer.__class__.from_config(layer.get_config()))


def with_others(network, part, make):
    """A new copy of a network, in which `make(layer)` stands for each layer whose name holds `part`."""
    return keras.models.clone_model(network, clone_function=lambda layer: make(layer) if part in layer.name
                                    else layer.__class__.from_config(layer.get_config()))


def set_aside(dataset, people):
    """The last `people` people of the training split moved into validation, so that tests need not be read."""
    old, validation = dataset.train, dataset.validation
    moved = np.isin(old.subjects, np.unique(old.subjects)[-people:])
    more = {part: np.concatenate([getattr(validation, part), getattr(old, part)[moved]]) for part in data.PARTS}
    return replace(dataset, train=old.take(~moved), validation=replace(validation, **more))


def measure(dataset, epochs, batch_size, seeds, folder, only=(), read_test=True, start=""):
    """Train every variant with every seed and write `results.csv` into `folder`, a row as soon as it is there.

    `only` names the variants besides the whole recipe and, with `start`, the start; none means all. A run that is
    finished is read back, so what was interrupted goes on where it was.
    """
    folder, rows = Path(folder), []
    predict_as_built()

    def run(name, build, options, seed, budget, epochs):
        """One row: train, score validation and test."""
        keras.utils.clear_session()
        keras.utils.set_random_seed(seed)
        network = build()
        print(f"\n{name}, seed {seed}, {epochs} epochs", flush=True)
        history = train.fit(network, dataset, epochs, folder / f"{name}-{epochs}epochs-seed{seed}".replace(" ", "_"),
                            batch_size=batch_size, seed=seed, **options)
        if len(history) < epochs:
            raise KeyboardInterrupt
        row = {"data": dataset.task.title, "variant": name, "seed": seed, "budget": budget, "epochs": epochs,
               "weights": network.count_params(), "seconds per epoch": history["seconds"].median()}
        for split in dataset.splits[1:2 + read_test]:
            pooled = evaluate.score(split, evaluate.predict(network, split.images)).pooled
            row |= {f"{split.name} {label}": dice for label, dice in pooled.items()}
        rows.append(row)
        pd.DataFrame(rows).round(5).to_csv(folder / "results.csv", index=False)
        return row

    each = [(seed, name, *what) for seed in range(seeds)
            for name, what in variants(dataset.image_shape, dataset.n_labels, start).items()
            if not only or name in (REFERENCE, STARTED, *only)]
    same_epochs = [run(name, build, options, seed, "epochs", epochs) for seed, name, build, options in each]
    seconds = pd.DataFrame(rows).groupby("variant")["seconds per epoch"].median()
    for row, (seed, name, build, options) in zip(same_epochs, each):
        same_time = max(1, round(epochs * seconds[REFERENCE] / seconds[name]))
        if same_time == epochs:
            rows.append(row | {"budget": "seconds"})
        else:
            run(name, build, options, seed, "seconds", same_time)
    pd.DataFrame(rows).round(5).to_csv(folder / "results.csv", index=False)


def main(words=None):
    """Read the command line, load the data, measure and print the summary."""
    options = argparse.ArgumentParser(description=__doc__,
                                      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in (
            ("dataset", "practice", "as in the notebook"), ("data", "", "path of the data"),
            ("size", 128, "slices are SIZE x SIZE pixels"), ("limit", 320, "slices of each split, at most"),
            ("epochs", 5, "of each run"), ("batch", 8, "slices in a step"), ("seeds", 3, "runs of each variant"),
            ("aside", 0, "people moved from training to validation; with any, the test split is not read"),
            ("start", "", "folder of a run: measure a start from its best weights too"),
            ("to", "runs/ingredients", "folder of the results")):
        options.add_argument(f"--{name}", default=default, type=type(default), help=text)
    options.add_argument("--only", nargs="+", default=[], choices=variants((32, 32, 1), 2), metavar="VARIANT",
                         help="names of the variants to train besides the whole recipe, as in tests/ingredients.csv")
    chosen = options.parse_args(words)
    if chosen.aside < 0:
        options.error(f"--aside is {chosen.aside}; it must be 0 or more.")
    backend.set_up()
    brains = data.load(chosen.dataset, chosen.data or None, chosen.size, chosen.limit)
    if chosen.aside:
        brains = set_aside(brains, chosen.aside)
    print(brains)
    measure(brains, chosen.epochs, chosen.batch, chosen.seeds, chosen.to, chosen.only, not chosen.aside,
            chosen.start)
    print(evaluate.ingredients(pd.read_csv(Path(chosen.to) / "results.csv"), "validation" if chosen.aside else "test"))


if __name__ == "__main__":
    main()
