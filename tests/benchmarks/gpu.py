"""A whole data set on a GPU: time to .90 and .95 on every validation label, slices a second, share of the card's peak, beside
PyTorch; then the test Dice of the GPU's recipe. Without a GPU it rehearses: the same, by the processor, with few slices.

    python tests/benchmarks/gpu.py pack FOLDER --dataset oasis --data PATH
    KERAS_BACKEND=jax python tests/benchmarks/gpu.py race FOLDER

`pack` writes the slices, cut to their box, into parts of at most 60 MB, that can be carried to a card one by one; `race`
reads all that are in a folder. PyTorch races where it is installed. Seconds are of training alone, compiling included.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from dataclasses import astuple
from pathlib import Path

import numpy as np

os.environ |= {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # room for PyTorch
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]
from race import GOALS, batches_of, dice_of  # noqa: E402
from speed import multiply_adds  # noqa: E402

from helpers import backend, data, datasets, evaluate, fast, model, preprocess, train  # noqa: E402
from helpers.backend import keras  # noqa: E402
from helpers.predict import Predictor  # noqa: E402
from helpers.recipe import SETS, Recipe  # noqa: E402
from helpers.run import Run  # noqa: E402

PART = 1500  # slices of 176x208 with labels, which take less than 60 MB packed
SPLITS = ("train", "validation", "test")


def pack(folder, dataset, path, options):
    """Write a data set's slices, cut to its box, into numbered parts."""
    recipe = Recipe.choose(dataset, options or "slices=all validation_slices=all test_slices=all", path)
    brains, folder = datasets.load(recipe), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = json.dumps([dataset, astuple(brains.task), astuple(brains.box), brains.image_shape[:2]])
    for name, split in zip(SPLITS, brains.splits):
        seen = split.seen(brains.box)
        for number, at in enumerate(range(0, len(split), PART)):
            part = seen.take(slice(at, at + PART))
            np.savez_compressed(folder / f"{name}-{number:03d}.npz", about=about, **{
                what: getattr(part, what) for what in data.PARTS})
    for file in sorted(folder.glob("*.npz")):
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


def unpack(folder):
    """The name of the data set in a folder of parts, and the Dataset."""
    splits = []
    for name in SPLITS:
        parts = [np.load(file) for file in sorted(Path(folder).glob(f"{name}-*.npz"))]
        dataset, task, box, frame = json.loads(str(parts[0]["about"]))
        box, arrays = data.Box(*box), {what: np.concatenate([part[what] for part in parts]) for what in data.PARTS}
        arrays |= {what: box.paste(arrays[what], frame) for what in ("images", "labels")}
        splits.append(data.Split(name, task=data.Task.of(task), **arrays))
    return dataset, data.Dataset(*splits, box)


def peak(side):
    """Multiply-adds a second of a product of matrices in the precision of networks: what the card can do."""
    kind = keras.mixed_precision.dtype_policy().compute_dtype
    one = keras.ops.cast(np.random.default_rng(0).normal(size=(side, side)), kind)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        float(keras.ops.cast(keras.ops.matmul(one, one)[0, 0], "float32"))
        times.append(time.perf_counter() - began)
    return side**3 / min(times)


class Ours:
    """The notebook's own parts: a pass of training, and labels; `many` steps are executed at once."""

    def __init__(self, recipe, split, many=1):
        self.recipe, self.passes = recipe, 0
        self.batches = preprocess.Batches(split, recipe.batch, recipe.augment, shuffle=True, seed=recipe.seed, workers=4)
        self.network = fast.quick(model.of_recipe(recipe, split.images.shape[-1], len(split.task.labels),
                                                  split.images.shape[1:3]))
        self.network.batch = recipe.batch
        train.prepare(self.network, recipe, len(self.batches))
        self.network.steps_per_execution = many

    def train(self):
        """One pass."""
        self.network.fit(self.batches, epochs=self.passes + 1, initial_epoch=self.passes, shuffle=False, verbose=0)
        self.passes += 1

    def predict(self, images):
        """Labels."""
        return fast.probabilities(self.network, images, self.recipe.batch).argmax(-1)


class Torch:
    """The same network and recipe in PyTorch, slices mirrored only where ours are augmented."""

    def __init__(self, recipe, split):
        from torch_unet import Trainer
        self.recipe, self.steps = recipe, len(split) // recipe.batch
        self.trainer = Trainer("InstanceNorm", keras.mixed_precision.dtype_policy().name, recipe.epochs * self.steps,
                               n_labels=len(split.task.labels), filters=recipe.filters, dropout=recipe.dropout,
                               learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay, seed=recipe.seed)
        self.batches = batches_of([split.images, split.labels], recipe.batch, recipe.seed,
                                  () if recipe.augment is None else split.task.mirrors)

    def train(self):
        """One pass."""
        for _ in range(self.steps):
            self.trainer.step(*next(self.batches))
        self.trainer.wait()

    def predict(self, images):
        """Labels."""
        return np.concatenate([self.trainer.predict(images[at:at + self.recipe.batch]).argmax(1)
                               for at in range(0, len(images), self.recipe.batch)])


def compete(name, contestant, splits, passes):
    """Rows of a contestant: seconds of training, slices, Dice of each validation label, after each pass."""
    rows, seconds = [], 0
    for number in range(passes):
        began = time.perf_counter()
        contestant.train()
        seconds += (taken := time.perf_counter() - began)
        dice = dice_of(splits[1].labels, contestant.predict(splits[1].images), len(splits[1].task.labels))
        rows.append({"contestant": name, "seconds": round(seconds, 2), "slices": (number + 1) * len(splits[0]),
                     "slices a second": round(len(splits[0]) / taken, 1), **dict(zip(splits[1].task.names, dice.round(4)))})
        print(*rows[-1].values(), sep=", ", flush=True)
    return rows


def race(folder, options, passes, epochs, side, to):
    """Race, then train by the GPU's recipe and evaluate the test once; figures go into a CSV file."""
    import pandas as pd

    backend.set_up()
    name, brains = unpack(folder)
    final = Recipe.choose(name, options, "packed" if "data" in SETS[name] else "", gpu=True)
    recipe = final.change(epochs=passes)
    splits = [split.seen(brains.box) for split in brains.splits[:2]]
    network, able = model.of_recipe(recipe, splits[0].images.shape[-1], brains.n_labels, brains.box.shape), peak(side)
    work = 3 * multiply_adds(network)
    print(f"{brains}\na step: {work / 1e9:.2f} G multiply-adds a slice; matrices of {side}: {able / 1e12:.3f} T a second")
    rows = compete("ours", Ours(recipe, splits[0]), splits, passes)
    rows += compete("ours, 8 steps at once", Ours(recipe, splits[0], 8), splits, min(2, passes))
    if importlib.util.find_spec("torch") and splits[0].images.shape[-1] == 1:
        rows += compete("PyTorch", Torch(recipe, splits[0]), splits, passes)
    table = pd.DataFrame(rows)
    table["share of peak"] = (table["slices a second"] * work / able).round(3)
    Path(to).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(to, index=False)
    for who, own in table.groupby("contestant", sort=False):
        reached = {goal: own.loc[own[brains.task.names].min(axis=1) > goal, "seconds"].min() for goal in GOALS}
        print(f"{who}: {own['slices a second'].max()} slices a second, {own['share of peak'].max():.1%} of the peak; "
              + ", ".join(f".{goal * 100:.0f} after {seconds} s" for goal, seconds in reached.items()))
    with tempfile.TemporaryDirectory() as runs:
        began = time.perf_counter()
        run = Run(runs, final.change(epochs=epochs or final.epochs), brains).train()
        scores = evaluate.score(brains.test, Predictor(run).labels(brains.test))
        print(evaluate.verdict(scores), f"after {time.perf_counter() - began:.0f} s in all", sep="\n")


def main(words=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "race"))
    parser.add_argument("folder", help="of the parts")
    for name, default, text in (("dataset", "oasis", "as in the notebook"), ("data", "", "path of the data"),
                                ("options", "", "as in the notebook, of what is packed or trained"),
                                ("passes", 3, "through the slices, in the race"), ("epochs", 0, "of the last training; 0: its own"),
                                ("side", 8192, "of the matrices that show the peak"), ("to", "runs/gpu.csv", "the figures")):
        parser.add_argument(f"--{name}", default=default, type=type(default), help=text)
    chosen = parser.parse_args(words)
    if chosen.what == "pack":
        pack(chosen.folder, chosen.dataset, chosen.data, chosen.options)
    else:
        race(chosen.folder, chosen.options, chosen.passes, chosen.epochs, chosen.side, chosen.to)


if __name__ == "__main__":
    main()
