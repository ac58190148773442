"""Run: a folder in which one network is trained. It has one writer and one commit point, the file run.json.

run.json                  the only state: recipe, task, box, versions, history, best epoch, {file: checksum}; written last
epoch-012.weights.h5      weights and optimizer of the last whole epoch, and of the best; gone when finished
network.keras             when finished: the best epoch's network; `keras.saving.load_model` opens it
lock                      held while training
history.csv, results/     for readers, made again from the above at any time, never read
"""

import fcntl
import json
import math
import os
import platform
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import backend, datasets, model, train
from helpers.backend import keras
from helpers.data import Box, Task
from helpers.datasets.files import digest, replace_whole
from helpers.preprocess import Batches
from helpers.recipe import Recipe, UserError

STATE, NETWORK, LOCK = "run.json", "network.keras", "lock"
VERSION = 1  # of run.json
STALE = 30 * 60  # seconds after which a lock of another machine, renewed each epoch, no longer counts


class RunError(UserError):
    """A run's folder does not hold what is asked for, or another process holds it: the message says what to do."""


class Run:
    """One network trained on one data set by one recipe; opened again it goes on where it was, or is read back.

    `Run(runs, recipe, dataset)` names its folder below `runs` by what decides the weights. `build`, for experiments,
    is a function like `helpers.model.of_recipe`. With `recipe.networks` above 1, `others` are the runs of the next
    seeds.
    """

    def __init__(self, runs, recipe, dataset, build=model.of_recipe):
        runs = Path(os.environ.get("OASIS_RUNS") or runs).expanduser()
        self.recipe, self.dataset, self.build, self.opened = recipe, dataset, build, (None, None)
        self.start = start_of(runs, recipe, build)
        identity = self.identity()
        self.folder = runs / f"{recipe.dataset}-{digest(json.dumps(identity).encode())[:6]}"
        options = {name: value for name, value in vars(recipe).items() if name not in ("data", "reasons")}
        versions = {"python": platform.python_version(), "keras": keras.__version__, "backend": backend.version()}
        self.state = read_state(self.folder) or {
            "version": VERSION, "identity": identity, "recipe": options, "task": astuple(dataset.task),
            "box": astuple(dataset.box), "frame": dataset.image_shape[:2], "channels": dataset.image_shape[2],
            "versions": versions, "history": [], "best": None, "finished": False, "files": {}}
        self.others = tuple(Run(runs, recipe.change(seed=recipe.seed + k, networks=1), dataset, build)
                            for k in range(1, recipe.networks))

    @classmethod
    def open(cls, folder):
        """The run in a folder, without its data: its history, network and task."""
        run = cls.__new__(cls)
        run.folder, run.dataset, run.build = Path(folder).expanduser(), None, model.of_recipe
        run.others, run.start, run.opened = (), None, (None, None)
        run.state = read_state(run.folder)
        if run.state is None:
            raise RunError(f"{folder} is not the folder of a run: it has no {STATE}.")
        run.recipe = Recipe(**run.state["recipe"])
        return run

    def identity(self):
        """What decides the weights."""
        dataset = self.dataset
        training = {name: value for name, value in self.recipe.training.items() if name not in ("size", "start")}
        return training | {
            "start": self.start.name if self.start else None, "data": fingerprint(dataset.train, dataset.validation),
            "box": astuple(dataset.box), "seen": dataset.box.seen(self.recipe.size), "labels": dataset.n_labels,
            "precision": keras.mixed_precision.dtype_policy().name, "backend": keras.config.backend(),
            "build": self.build.__qualname__}

    @property
    def name(self):
        """Data set and six digits of what decides the weights."""
        return f"{self.state['recipe']['dataset']}-{digest(json.dumps(self.state['identity']).encode())[:6]}"

    @property
    def finished(self):
        """Whether all epochs are trained."""
        return self.state["finished"]

    @property
    def best(self):
        """The epoch, from 0, whose worst label has the best validation Dice; None before the first is whole."""
        return self.state["best"]

    @property
    def history(self):
        """One row per epoch: loss and Dice per label, of training and validation (`val_`), and seconds."""
        return pd.DataFrame(self.state["history"]).rename_axis("epoch")

    @property
    def task(self):
        """The data set's Task."""
        return Task.of(self.state["task"])

    @property
    def box(self):
        """The data set's Box."""
        return Box(*self.state["box"])

    @property
    def frame(self):
        """(H, W) of the data set's slices."""
        return tuple(self.state["frame"])

    def network(self):
        """The network with the best epoch's weights."""
        if self.best is None:
            raise RunError(f"{self.folder} has no whole epoch yet: train it first.")
        name = NETWORK if self.finished else weights_of(self.best)
        if self.opened[0] != name:  # built once: compiling its prediction takes seconds
            network = self.untrained()
            self.load(network, name)
            self.opened = name, network
        return self.opened[1]

    def untrained(self):
        """The network with first weights from the recipe's seed."""
        keras.utils.set_random_seed(self.recipe.seed)
        return self.build(self.recipe, self.state["channels"], len(self.task.labels))

    def load(self, network, name):
        """Load a file of the run into a network; RunError if it is missing or damaged."""
        file = self.folder / name
        try:
            whole = digest(file.read_bytes()) == self.state["files"][name]
        except (OSError, KeyError):
            whole = False
        if not whole:
            raise RunError(f"{file} is missing or damaged. Put it back, or delete the folder to train anew.")
        network.load_weights(file)

    def train(self, progress=None):
        """Train what is left, and return the run. `progress(run, network)` is called after each epoch and at the end.

        The stop button (Ctrl-C) keeps the best weights so far; called again, training goes on after the last whole
        epoch. RunError while another process trains here.
        """
        for run in (self, *self.others):
            if not run.finished:
                try:
                    run.folder.mkdir(parents=True, exist_ok=True)
                    with run.locked() as renew:
                        run.state = read_state(run.folder) or run.state
                        if not run.finished:  # by another process, meanwhile
                            run.train_rest(progress, renew)
                except OSError as error:
                    raise RunError(f"{run.folder} cannot be written into ({error}). Is the disk full, or Drive no longer "
                                   "mounted? Whole epochs are kept: mend it and run this again.") from error
            else:
                print(f"{run.folder} is already trained.")
            row = run.state["history"][run.best]
            print(f"Kept epoch {run.best + 1} of {len(run.state['history'])}: its worst label has validation Dice "
                  f"{row[f'val_{train.WORST_DICE}']:.4f}. Results: {run.folder}")
            if progress:
                progress(run, None)
            if not run.finished:
                break  # stopped
        return self

    def train_rest(self, progress, renew):
        """Train the epochs that are not there yet, or as many as come before an interruption."""
        recipe, done = self.recipe, len(self.state["history"])
        self.sweep()
        training, validation = (split.seen(self.box, recipe.size)
                                for split in (self.dataset.train, self.dataset.validation))
        batch = min(recipe.batch, len(training))
        batches = Batches(training, batch, recipe.augment, shuffle=True, seed=recipe.seed,
                          oversample=recipe.oversample, workers=min(4, os.cpu_count() or 1))
        batches.epoch = done
        validation = Batches(validation, batch)
        network = self.untrained()
        if not done and self.start:
            load_start(network, self.start)
        train.prepare(network, recipe, len(batches), self.task.names)
        if done:
            self.load(network, weights_of(done - 1))
            print(f"Going on after epoch {done} of {recipe.epochs}.")
        if keras.config.backend() != "tensorflow":
            network.test_on_batch(*validation[0])  # `fit` would peek at a batch, and leave others for the first epoch
        try:
            if done < recipe.epochs:
                network.fit(batches, validation_data=validation, epochs=recipe.epochs, initial_epoch=done,
                            shuffle=False, verbose=0, callbacks=[
                                keras.callbacks.TerminateOnNaN(), train.Clock(recipe.epochs, self.task.names),
                                Keeper(self, progress, renew)])
            self.finish()
        except KeyboardInterrupt:
            if self.best is None:
                raise
            print(f"Stopped: the best weights so far are kept. Run this again to go on, up to {recipe.epochs} epochs.")

    def commit(self, network, row):
        """Make an epoch part of the run: its weights, then, in one step, the state that names them."""
        epoch, rows = len(self.state["history"]), [*self.state["history"], row]
        best = max(range(len(rows)), key=lambda k: (*rank(rows[k]), -k))
        name = weights_of(epoch)
        replace_whole(self.folder / name, network.save_weights)
        checksum = digest((self.folder / name).read_bytes())
        self.write_state(history=rows, best=best, files={
            kept: value for kept, value in {**self.state["files"], name: checksum}.items()
            if kept in (name, weights_of(best))})

    def finish(self):
        """Make the best epoch's network the run's result; the epochs' files go."""
        network = self.network()
        policy = keras.mixed_precision.dtype_policy()
        keras.mixed_precision.set_dtype_policy("float32")  # so that it opens, and computes alike, on any machine
        try:
            twin = self.untrained()
        finally:
            keras.mixed_precision.set_dtype_policy(policy)
        twin.set_weights(network.get_weights())
        replace_whole(self.folder / NETWORK, twin.save)
        self.write_state(finished=True, files={NETWORK: digest((self.folder / NETWORK).read_bytes())})
        self.opened = NETWORK, network

    def write_state(self, **news):
        """The commit: write run.json in one step; then remove what it no longer names, and write history.csv."""
        new = {**self.state, **news}
        replace_whole(self.folder / STATE, lambda part: part.write_text(json.dumps(new, indent=1)))
        self.state = new
        self.sweep()
        with suppress(OSError):  # for readers only
            self.history.to_csv(self.folder / "history.csv")

    def sweep(self):
        """Remove weights that run.json does not name, as of an epoch that was cut short."""
        for file in {*self.folder.glob("*.weights.h5"), *self.folder.glob("part-*")}:
            if file.name not in self.state["files"]:
                file.unlink()

    def summary(self):
        """{column: value} for a table: weights of the network, median seconds of an epoch."""
        return {"weights": self.network().count_params(), "seconds an epoch": round(self.history["seconds"].median(), 1)}

    @contextmanager
    def locked(self):
        """Hold the run alone; yields a function that renews the lock's time. RunError if another process holds it."""
        with open(self.folder / LOCK, "a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{self.folder} is being trained by another process. Wait for it, or stop it.") from None
            except OSError:  # a drive without locks: what is written below has to do
                pass
            stream.seek(0)
            machine, since = [*stream.read().split(), "", "0"][:2]
            age = time.time() - float(since)
            if machine not in ("", socket.gethostname()) and age < STALE:
                raise RunError(f"{self.folder} was being trained on {machine} {train.minutes(age)} ago. If that is over, "
                               f"delete {self.folder / LOCK} and run this again.")

            def renew():
                """Write who holds the run, and when that was last so."""
                stream.truncate(0)
                stream.write(f"{socket.gethostname()} {time.time():.0f}")
                stream.flush()

            renew()
            try:
                yield renew
            finally:
                stream.truncate(0)

    def keep(self, thing, name=None):
        """Write a picture, or what has `files()`, below results/, and return it to be shown.

        Results of other options of prediction lie in folders of their own.
        """
        recipe = self.recipe
        way = f"{recipe.networks}-network{'s' * (recipe.networks > 1)}"
        way += "-mirrors" * recipe.mirrors + "-largest" * recipe.largest
        folder = self.folder / "results" / way
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(thing, "files"):
            for file, text in thing.files().items():
                (folder / file).write_text(text)
        else:
            thing.save(folder / f"{name}.png")
        return thing


class Keeper(keras.callbacks.Callback):
    """Commits every epoch to its run; makes dropout depend on seed and epoch alone, so that resuming changes nothing."""

    def __init__(self, run, progress, renew):
        super().__init__()
        self.run, self.progress, self.renew = run, progress, renew

    def on_epoch_begin(self, epoch, logs=None):
        """Seed every layer that draws random numbers."""
        for number, layer in enumerate(self.model.layers):
            if getattr(layer, "seed_generator", None) is not None:
                layer.seed_generator.state.assign(np.array([self.run.recipe.seed * 1000 + number, epoch], "uint32"))

    def on_epoch_end(self, epoch, logs=None):
        """Commit the epoch, then tell of it."""
        row = {name: float(value) for name, value in logs.items()}
        if not math.isfinite(row["loss"]):
            raise RunError(f"The loss is no longer a number in epoch {epoch + 1}. Try a lower learning_rate; the epochs "
                           "before it are kept.")
        self.run.commit(self.model, row)
        self.renew()
        if self.progress:
            self.progress(self.run, self.model)


def weights_of(epoch):
    """The name of an epoch's file; epochs count from 0, names from 1."""
    return f"epoch-{epoch + 1:03d}.weights.h5"


def rank(row):
    """What makes one epoch better than another: the worst label's validation Dice, then the mean of all labels'."""
    each = [value for name, value in row.items() if name.startswith("val_dice ") and not math.isnan(value)]
    return row[f"val_{train.WORST_DICE}"], sum(each) / max(1, len(each))


def read_state(folder):
    """What run.json of a folder holds; None where there is no run. RunError on one that cannot be read."""
    file = folder / STATE
    if not file.exists():
        if (folder / "settings.json").exists():
            raise RunError(f"{folder} holds a run of an earlier layout, which is not read any more. Train anew in "
                           "another folder; nothing in this one was changed.")
        return None
    try:
        state = json.loads(file.read_text())
        if state["version"] == VERSION:
            return state
        found = f"its version is {state['version']}, this project's {VERSION}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
    raise RunError(f"{file} cannot be used ({found}). Choose another folder, or delete this one to train anew.")


def start_of(runs, recipe, build):
    """The Run that a recipe starts from, None for random weights."""
    if recipe.start is None:
        return None
    if other := recipe.starting():
        return Run(runs, other, datasets.load(other), build)
    run = Run.open(recipe.start)
    if not run.finished:
        raise RunError(f"{recipe.start} is not finished: train it to its end, then start from it.")
    return run


def load_start(network, start):
    """Bring a network to the best weights of another run, which is trained first if need be."""
    if not start.finished:
        print(f"First, the run to start from: {start.folder}")
        start.train()
    first = start.network()
    if [v.shape for v in first.weights] != [v.shape for v in network.weights]:
        raise RunError(f"The network of {start.folder} is another: {first.count_params():,} weights, this one "
                       f"{network.count_params():,}. Both need the same network, filters, channels and labels.")
    network.set_weights(first.get_weights())
    print(f"Training starts from the best weights of {start.folder}.")


def fingerprint(*splits):
    """Eight hexadecimal digits that change when any pixel of the splits' images or labels does."""
    return digest(*(np.ascontiguousarray(part) for split in splits for part in (split.images, split.labels)))
