"""How long it takes until every label's validation Dice passes .90 and .95: ours, PyTorch, and the brief's own way.

    python tests/benchmarks/race.py --torch PYTHON
    python tests/benchmarks/race.py --dataset oasis --data PATH --torch PYTHON

Contestants run one after the other, each a process of its own with the same slices, in the precision that suits this
processor; what they have reached goes into a CSV file as they go. Time is that of training alone, the first step's
compiling with it; validation is hard Dice, pooled over all validation slices, in the data set's box.

ours         the notebook's own parts
torch        the same network and recipe in PyTorch, slices mirrored only
torch-frame  the same on the whole frame
brief        the Improved U-Net of Keras's own layers without any normalisation, float32, one-hot float labels in
             memory, soft Dice, Adam 1e-4, on the whole frame
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from math import inf
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]
from speed import PRECISION, environment  # noqa: E402

CONTESTANTS, GOALS, FEW, STEPS = ("ours", "torch", "torch-frame", "brief"), (0.90, 0.95), 64, 32


def load(dataset, data, options, folder=None):
    """A data set and what contestants must know of it; with a folder, their slices and that are written there."""
    from dataclasses import astuple

    from helpers import datasets
    from helpers.recipe import Recipe

    recipe = Recipe.choose(dataset, options, data)
    brains = datasets.load(recipe)
    settings = {"data": f"{dataset} {len(brains.train)}/{len(brains.validation)}", "precision": PRECISION,
                "steps": recipe.epochs * (len(brains.train) // recipe.batch), "labels": brains.task.names,
                "box": astuple(brains.box), "task": astuple(brains.task),
                "recipe": {name: value for name, value in vars(recipe).items() if name != "reasons"}}
    if folder:
        Path(folder, "settings.json").write_text(json.dumps(settings))
        for split in brains.splits[:2]:
            for view, seen in (("box", split.seen(brains.box)), ("frame", split)):
                np.save(f"{folder}/{view}-{split.name}-images.npy", seen.images)
                np.save(f"{folder}/{view}-{split.name}-labels.npy", seen.labels)
    return brains, settings


def batches_of(arrays, batch, seed, mirrors=()):
    """Batch after batch of arrays, in a new order each time through, a half of the slices mirrored along each axis."""
    rng = np.random.default_rng(seed)
    while True:
        for chosen in rng.permutation(len(arrays[0]))[:len(arrays[0]) // batch * batch].reshape(-1, batch):
            some = [array[chosen] for array in arrays]
            for axis in mirrors:
                turned = rng.random(batch) < 0.5
                for part in some:
                    part[turned] = np.flip(part[turned], axis)
            yield some


def ours(settings, images, labels):
    """Functions that train on the next batch, as `Run.train` does, and that predict the labels of some images."""
    from helpers import backend, fast, model, train
    from helpers.data import Split, Task
    from helpers.preprocess import Batches
    from helpers.recipe import Recipe

    recipe, task = Recipe(**settings["recipe"]), Task.of(settings["task"])
    backend.set_up(recipe.seed, settings["precision"])
    batches = Batches(Split("train", images, labels, np.full(len(images), ""), task), recipe.batch, recipe.augment,
                      shuffle=True, seed=recipe.seed)
    network = fast.quick(model.of_recipe(recipe, images.shape[-1], len(task.labels)))
    network.batch = recipe.batch
    train.prepare(network, recipe, len(batches))

    def stream():
        """Batch after batch."""
        while True:
            yield from map(batches.__getitem__, range(len(batches)))
            batches.on_epoch_end()

    following = stream()
    return (lambda: network.train_on_batch(*next(following)),
            lambda some: fast.probabilities(network, some, recipe.batch).argmax(-1))


def brief(settings, images, labels):
    """The same of the brief's way."""
    from ingredients import predict_as_built

    from helpers import backend, model
    from helpers.recipe import Recipe

    keras, recipe = backend.keras, Recipe(**settings["recipe"])
    backend.set_up(recipe.seed, "float32")
    predict_as_built()

    def loss(truth, found):
        """Soft Dice of one-hot labels."""
        both, total = (keras.ops.sum(part, (0, 1, 2)) for part in (truth * found, truth + found))
        return 1 - keras.ops.mean((2 * both + 1) / (total + 1))

    built = model.of_recipe(recipe, images.shape[-1], len(settings["labels"]))
    network = keras.models.clone_model(built, keras.Input((None, None, images.shape[-1])), lambda layer: (
        keras.layers.Identity(name=layer.name) if layer.name.startswith("input-") or "-norm_" in layer.name else
        type(layer).from_config(layer.get_config())))
    network.compile(keras.optimizers.Adam(1e-4), loss)
    arrays = np.float32(images) / 255, np.eye(len(settings["labels"]), dtype="float32")[labels]
    following = batches_of(arrays, recipe.batch, recipe.seed)
    return (lambda: network.train_on_batch(*next(following)),
            lambda some: network.predict_on_batch(np.float32(some) / 255).argmax(-1))


def compete(enter, name, folder, csv, limit, every):
    """Train until the last goal is passed or the limit (seconds) reached; each validation is a row of the CSV."""
    settings = json.loads(Path(folder, "settings.json").read_text())
    view = "box" if name in ("ours", "torch") else "frame"
    images, labels, seen = (np.load(f"{folder}/{view}-{part}.npy")
                            for part in ("train-images", "train-labels", "validation-images"))
    truth, size = np.load(f"{folder}/box-validation-labels.npy"), images.nbytes + labels.nbytes
    top, left, height, width = settings["box"] if view == "frame" else (0, 0, *truth.shape[1:])
    batch, n_labels = settings["recipe"]["batch"], len(settings["labels"])
    step, predict = enter(settings, images, labels)
    seconds, processor, slices, dice = 0, 0, 0, [0]
    last = inf if name == "brief" else batch * settings["steps"]
    while np.nanmin(dice) <= GOALS[-1] and slices < last and seconds < float(limit):
        due = min(last, slices + int(every) * (1 if slices < 8 * int(every) else 2))
        wall, cpu = time.perf_counter(), time.process_time()
        while slices < due and seconds + time.perf_counter() - wall < float(limit):
            step()
            slices += batch
        seconds, processor = seconds + time.perf_counter() - wall, processor + time.process_time() - cpu
        found = np.concatenate([predict(seen[at:at + batch]) for at in range(0, len(seen), batch)])
        dice = dice_of(truth, found[:, top:top + height, left:left + width], n_labels)
        with open(csv, "a") as file:
            row = settings["data"], name, round(seconds, 1), round(processor, 1), slices, *dice.round(4)
            print(*row, sep=",", file=file)
        print(f"{name}: {seconds:.1f} s, {slices} slices, validation Dice {dice.round(4)}", flush=True)
    print(f"{name}: peak memory {peak() / 1e9:.2f} GB; its training slices as uint8: {size / 1e9:.3f} GB", flush=True)


def dice_of(truth, found, n_labels):
    """Hard Dice of each label, pooled over all slices; NaN where it is in neither."""
    counts = np.bincount(n_labels * truth.ravel().astype(int) + found.ravel(), minlength=n_labels**2)
    counts = counts.reshape(n_labels, n_labels)
    with np.errstate(invalid="ignore"):
        return 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))


def peak():
    """The most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(*words):
    """Print this process's peak after a few steps of ours on a data set, as the notebook holds it, and its bytes."""
    brains, settings = load(*words)
    seen = brains.train.seen(brains.box)
    step, _ = ours(json.loads(json.dumps(settings)), seen.images, seen.labels)
    for _ in range(STEPS):
        step()
    print(peak(), sum(part.nbytes for split in brains.splits for part in (split.images, split.labels)))


def time_to(rows, goal, clock="seconds"):
    """Seconds until the worst label of a contestant's rows passed a goal; infinite if it did not."""
    passed = rows.loc[rows.iloc[:, 5:].min(axis=1) > goal, clock]
    return passed.iloc[0] if len(passed) else inf


def table(rows):
    """A row a contestant: seconds to each goal by both clocks, and their ratios to those of ours."""
    import pandas as pd

    found = {name: {(f"to {goal:.2f}, s", clock): time_to(own, goal, clock) for goal in GOALS
                    for clock in ("seconds", "processor")} for name, own in rows.groupby("contestant", sort=False)}
    found = pd.DataFrame(found).T
    if "ours" in found.index:
        of_ours = (found / found.loc["ours"]).rename(columns=lambda name: name.replace(", s", ", of ours"), level=0)
        found = found.join(of_ours)
    return found.round(2).to_string()


def child(*words, python=sys.executable, file=__file__, **options):
    """This file, or another, run with some words."""
    return subprocess.run([python, file, *map(str, words)], check=True, env=environment(), text=True, **options)


def growth(sets):
    """Print how the memory of ours grows from one data set to another, for each byte of their slices."""
    found = []
    for words in sets:
        child("load", *words)  # the first time it is read and cached, which is not what is asked
        found.append([int(n) for n in child("memory", *words, stdout=subprocess.PIPE).stdout.split()[-2:]])
    (least, small), (most, size) = found
    print(f"ours: peak {least / 1e9:.3f} GB with slices of {small / 1e9:.3f} GB, {most / 1e9:.3f} GB with slices of "
          f"{size / 1e9:.3f} GB: {(most - least) / (size - small):.2f} bytes for each byte more")


def main(words=None):
    """Read the command line; run the contestants, or measure the memory of ours; print the table."""
    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in (
            ("dataset", "practice", "as in the notebook"), ("data", "", "path of the data"),
            ("slices", 2416, "to train on"), ("validation", 280, "slices to validate on"),
            ("passes", 2, "through the slices: the schedule's length"),
            ("options", "", "more, as in the notebook"), ("every", 256, "slices between validations, later twice that"),
            ("stop", 5.0, "stop others at this many times the time of ours"), ("minutes", 60.0, "stop anyone then"),
            ("torch", "", "a Python that has PyTorch"), ("csv", "runs/race.csv", "what was reached")):
        parser.add_argument(f"--{name}", default=default, type=type(default), help=text)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, metavar="CONTESTANT",
                        help=", ".join(CONTESTANTS))
    parser.add_argument("--memory", action="store_true", help="the memory of ours alone, for a byte of slices")
    chosen = parser.parse_args(words)
    options = f"validation_slices={chosen.validation} test_slices=1 epochs={chosen.passes} {chosen.options}"
    if chosen.memory:
        return growth([[chosen.dataset, chosen.data, f"slices={n} {options}"] for n in (FEW, chosen.slices)])
    with tempfile.TemporaryDirectory() as folder:
        # a child starts with its parent's peak memory, so nothing is loaded in this process
        child("load", chosen.dataset, chosen.data, f"slices={chosen.slices} {options}", folder)
        settings, csv = json.loads(Path(folder, "settings.json").read_text()), Path(chosen.csv)
        columns = ["data", "contestant", "seconds", "processor", "slices", *settings["labels"]]
        entered = [name for name in CONTESTANTS if name in chosen.only and (chosen.torch or "torch" not in name)]
        rows = pd.read_csv(csv) if csv.exists() else pd.DataFrame(columns=columns)
        csv.parent.mkdir(parents=True, exist_ok=True)
        rows[(rows["data"] != settings["data"]) | ~rows["contestant"].isin(entered)].to_csv(csv, index=False)
        for name in entered:
            rows = pd.read_csv(csv)
            best = time_to(rows[(rows["data"] == settings["data"]) & (rows["contestant"] == "ours")], GOALS[-1])
            limit = min(60 * chosen.minutes, inf if name == "ours" else chosen.stop * best)
            other = {"python": chosen.torch, "file": Path(__file__).with_name("torch_unet.py")}
            child("race", name, folder, csv.absolute(), limit, chosen.every, **other if "torch" in name else {})
    rows = pd.read_csv(csv)
    print(f"\n{settings['data']} slices, {settings['precision']}; inf: not reached",
          table(rows[rows["data"] == settings["data"]]), sep="\n")


if __name__ == "__main__":
    words = sys.argv[2:]
    if sys.argv[1:2] == ["race"]:
        compete(ours if words[0] == "ours" else brief, *words)
    elif sys.argv[1:2] == ["load"]:
        load(*words)
    elif sys.argv[1:2] == ["memory"]:
        memory(*words)
    else:
        main()
