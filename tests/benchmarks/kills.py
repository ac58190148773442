"""Kill a training at every write step, or at any moment, go on, and compare with one that was never stopped.

    python tests/benchmarks/kills.py
    python tests/benchmarks/kills.py moments 20

At write steps, each training is a process of its own, of a tiny network with dropout, 5 epochs. It is killed
(SIGKILL) before or after each sync, rename and removal of a file; then the same command goes on. Losses, best epoch,
weights and files must be those of the uninterrupted run.

At moments, each is the Improved U-Net, narrow, on practice brains (synthetic), 4 epochs, on one thread, on which sums
have one order. It is killed at a random moment after its folder is there, started again, and killed once more, half
as late.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = (2, 3, 4, 8, 9, 14, 18, 19, 21, 41, 62, 65)  # of some 70: weights and state of epochs 1, 2 and 4, and of the end


def tiny(recipe, channels, n_labels):
    """A network of one convolution, with dropout."""
    from helpers import model
    from helpers.backend import keras

    image = keras.Input((None, None, channels), dtype="uint8")
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(model.standardise(image))
    x = keras.layers.SpatialDropout2D(0.3)(x)
    return keras.Model(image, model.to_probabilities(keras.layers.Conv2D(n_labels, 1)(x)), name="tiny")


def toy():
    """Slices of random squares, their greys by label."""
    import numpy as np

    from helpers.data import TISSUES, Dataset, Split, Task

    def made(name, subject, seed, n=16):
        """One split of one subject."""
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, (n, 4, 4)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        images = (labels * 70 + rng.integers(0, 20, labels.shape)).astype(np.uint8)
        return Split(name, images[..., None], labels, np.array([subject] * n), Task("toy (synthetic)", TISSUES, "made"))

    return Dataset(made("train", "a", 0), made("validation", "b", 1, 4), made("test", "c", 2, 4))


def die_at(step, folder):
    """Make this process kill itself at the given call of those that change files in a folder."""
    count, unlink = 0, os.unlink

    def counted(function):
        """The function, with a step before it and one after."""
        def call(*args, **options):
            nonlocal count
            if function is unlink and not str(args[0]).startswith(str(folder)):
                return function(*args, **options)  # of a library's own, more or fewer by machine
            for when in ("before", "after"):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                if when == "before":
                    result = function(*args, **options)
            return result
        return call

    os.replace, os.fsync, os.unlink = counted(os.replace), counted(os.fsync), counted(os.unlink)


def train(folder, step, policy):
    """Train in this process, and print what came of it."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from helpers.backend import keras
    from helpers.recipe import Recipe
    from helpers.run import Run

    keras.mixed_precision.set_dtype_policy(policy)
    recipe = Recipe("practice", epochs=5, batch=4, augment=0.7)
    run = Run(folder, recipe, toy(), build=tiny)
    die_at(step, run.folder)
    run.train()
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in run.state["history"]]
    weights = [np.asarray(w, "float64").sum() for w in run.network().get_weights()]
    print(json.dumps([rows, run.best, weights, sorted(file.name for file in run.folder.iterdir())]))


def train_really(folder):
    """Train a narrow Improved U-Net on practice brains in this process, and print what came of it."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from helpers import backend, datasets
    from helpers.recipe import Recipe
    from helpers.run import Run

    backend.set_up(0, "float32")
    recipe = Recipe("practice", filters=2, slices=32, validation_slices=8, test_slices=1, epochs=4, batch=4, dropout=0.1)
    run = Run(folder, recipe, datasets.load(recipe)).train()
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in run.state["history"]]
    print(json.dumps([rows, run.best, [np.asarray(w, "float64").sum() for w in run.network().get_weights()]]))


def killed_at(folder, moment=None):
    """(seconds since its folder was there, result or None) of such a training, killed at a moment."""
    environment = {name: value for name, value in os.environ.items() if name != "OASIS_RUNS"} | {
        "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-W", "ignore", __file__, "really", folder], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True, env=environment, cwd=folder)
    while process.poll() is None and not list(Path(folder).glob("practice-*")):
        time.sleep(0.05)
    began = time.monotonic()
    try:
        said, _ = process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return moment, None
    return time.monotonic() - began, json.loads(said.splitlines()[-1])


def moments(n):
    """How many of n trainings, killed at random moments, end as one that was not."""
    rng, same = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        seconds, whole = killed_at(folder)
    for number in range(n):
        moment = rng.uniform(0, seconds)
        with tempfile.TemporaryDirectory() as folder:
            ends = [killed_at(folder, at)[1] for at in (moment, moment / 2, None)]
        same += ends[-1] == whole
        said = "the same" if ends[-1] == whole else "ANOTHER RESULT"
        print(f"killed after {moment:.2f} s of {seconds:.2f}: {said}", flush=True)
    print(f"{same} of {n} trainings, each killed at two moments, end with the losses, best epoch and weights of the "
          "uninterrupted run")


def result_of(folder, step, policy):
    """(exit code, result or None) of such a training in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "OASIS_RUNS"}  # into `folder`, always
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, folder, str(step), policy], capture_output=True,
                          text=True, env=environment)
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(done.stderr[-2000:])
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def survivors(policy, steps, folder):
    """{step: whether a run killed there ends as one that was not}."""
    _, whole = result_of(f"{folder}/whole", 0, policy)
    found = {}
    for step in steps:
        code, _ = result_of(f"{folder}/{step}", step, policy)
        _, again = result_of(f"{folder}/{step}", 0, policy)
        found[step] = code == -signal.SIGKILL and again == whole
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["moments"]:
        moments(int(sys.argv[2]))
    elif sys.argv[1:2] == ["really"]:
        train_really(sys.argv[2])
    elif len(sys.argv) == 4:
        train(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        total = []
        for policy in ("float32", "mixed_float16"):
            folder = tempfile.mkdtemp()
            found = survivors(policy, STEPS, folder)
            shutil.rmtree(folder)
            total += found.values()
            print(policy, found, flush=True)
        print(f"{sum(total)} of {len(total)} kills end with the losses, best epoch and weights of the uninterrupted run")
