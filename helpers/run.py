"""Run: a folder in which one network is trained. It has one writer and one commit point, the file run.json.

run.json                  the only state: recipe, others, task, box, versions, history, best epoch, {file: checksum};
                          written last
epoch-012.keras           weights and optimizer of the last whole epoch, and of the best; gone when finished
network.keras             when finished: the best epoch's network; `keras.saving.load_model` opens it
lock                      held while training
history.csv, results/     for readers, made again from the above at any time, never read
"""

import ast
import fcntl
import json
import os
import platform
import re
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import backend, datasets, fast, model, preprocess, train
from helpers.backend import keras
from helpers.data import Box, Task
from helpers.datasets.files import digest, replace_whole
from helpers.recipe import Recipe, UserError

STATE, NETWORK, LOCK = "run.json", "network.keras", "lock"
SYNTHETIC = Path(__file__).resolve().with_name("network")  # a run of practice brains alone, which comes along
VERSION = 2  # of run.json
FULL = re.compile("RESOURCE_?EXHAUSTED|out of memory|MemoryError", re.IGNORECASE)  # names and words of errors
STALE = 30 * 60  # seconds after which a lock of another machine, renewed each epoch, no longer counts


class RunError(UserError):
    """A run's folder does not hold what is asked for, or another process holds it: the message says what to do."""


class Run:
    """One network trained on one data set by one recipe; opened again it goes on where it was, or is read back.

    `Run(runs, recipe, dataset)` names its folder below `runs` by what decides the weights. `build`, for experiments,
    is a function like `helpers.model.of_recipe`. With `recipe.networks` above 1, `others` are the runs of the next
    seeds. `state` is what run.json holds: whether all epochs are trained (`finished`), the epoch, from 0, whose worst
    label has the best validation Dice (`best`, None before the first is whole), and the data set's `task`, `box`,
    `frame` (H, W) and `channels`.
    """

    def __init__(self, runs, recipe, dataset, build=model.of_recipe):
        if (place := Path(os.environ.get("OASIS_RUNS") or runs).expanduser()) != Path(runs).expanduser():
            print(f"RUNS is taken from the environment: {place}, not {runs}.")
        self.recipe, self.dataset, self.build = recipe, dataset, build
        base = recipe.start and recipe.starting()
        first = SYNTHETIC if recipe.start == "synthetic" else recipe.start
        self.start = Run(place, base, datasets.load(base), build) if base else first and Run.open(first)
        identity = self.identity()
        self.name = f"{recipe.dataset}-{digest(json.dumps(identity).encode())[:6]}"
        self.folder = place / self.name
        self.others = tuple(Run(place, recipe.change(seed=recipe.seed + k, networks=1), dataset, build)
                            for k in range(1, recipe.networks))
        options = {name: value for name, value in vars(recipe).items() if name not in ("data", "reasons")}
        versions = {"python": platform.python_version(), "keras": keras.__version__, "backend": backend.version()}
        self.adopt(read_state(self.folder) or {
            "version": VERSION, "name": self.name, "identity": identity, "recipe": options, "versions": versions,
            "others": [other.name for other in self.others], "task": astuple(dataset.task), "box": astuple(dataset.box),
            "frame": dataset.image_shape[:2], "channels": dataset.image_shape[2],
            "history": [], "best": None, "finished": False, "files": {}})

    @classmethod
    def open(cls, folder, first=None):
        """The run in a folder, without its data: its history, network and task, and its `others`, which lie beside it.

        `first` is the folder of the run that this one is averaged with.
        """
        run, state = cls.__new__(cls), read_state(folder := Path(folder).expanduser())
        if state is None:
            within = ", ".join(sorted(file.parent.name for file in folder.glob(f"*/{NETWORK}")))
            raise RunError(f"{folder} is not the folder of a run: it has no {STATE}." + (
                f" {first} is averaged with it: copy it there, or train it." if first else
                f" Give one of the finished runs in it: {within}." if within else ""))
        run.folder, run.name, run.recipe = folder, state["name"], Recipe(**state["recipe"])
        run.dataset, run.build, run.start = None, model.of_recipe, None
        run.others = tuple(cls.open(folder.resolve().parent / name, folder) for name in state["others"] if not first)
        run.adopt(state)
        return run

    def adopt(self, state):
        """Take what run.json holds for this run's state."""
        self.state, self.task, self.box = state, Task.of(state["task"]), Box(*state["box"])
        self.frame, self.channels, self.opened = tuple(state["frame"]), state["channels"], (None, None)
        self.finished, self.best = state["finished"], state["best"]

    def identity(self):
        """What decides the weights."""
        dataset, splits = self.dataset, (self.dataset.train, self.dataset.validation)
        pixels = digest(*(np.ascontiguousarray(part) for split in splits for part in (split.images, split.labels)))
        return self.recipe.training | {
            "start": self.start and self.start.name, "data": pixels, "box": astuple(dataset.box),
            "size": dataset.box.seen(self.recipe.size), "labels": dataset.n_labels, "build": self.build.__qualname__,
            "code": CODE, "precision": keras.mixed_precision.dtype_policy().name, "backend": keras.config.backend()}

    @property
    def history(self):
        """One row per epoch: loss and Dice per label, of training and validation (`val_`), and seconds."""
        return pd.DataFrame(self.state["history"]).rename_axis("epoch")

    def network(self):
        """The network with the best epoch's weights."""
        if self.best is None:
            raise RunError(f"{self.folder} has no whole epoch yet: train it first.")
        name = NETWORK if self.finished else weights_of(self.best)
        if self.opened[0] != name:  # built once: compiling its prediction takes seconds
            self.opened = name, self.load(name)
        return self.opened[1]

    def untrained(self):
        """The network with first weights from the recipe's seed, of Keras's own layers."""
        made = self.state["identity"]
        if (self.build.__qualname__, CODE) != (made["build"], made["code"]):
            raise RunError(f"{self.folder} was made by other code, build={made['build']}: use that, or train anew.")
        keras.utils.set_random_seed(self.recipe.seed)
        return self.build(self.recipe, self.channels, len(self.task.labels))

    def load(self, name, into=None):
        """The twin, or a compiled one, with the weights in one of the run's files; RunError if it is damaged."""
        file = self.folder / name
        if not file.exists() or digest(file.read_bytes()) != self.state["files"][name]:
            raise RunError(f"{file} is missing or damaged. Put it back, or delete the folder to train anew.")
        stock = name == NETWORK or self.recipe.devices > 1
        saved = name == NETWORK and self.dataset is None  # the code may be another than it was trained by
        network = into or (None if saved else self.untrained() if stock else fast.quick(self.untrained()))
        try:
            if saved:
                return fast.quick(keras.saving.load_model(file, compile=False))
            network.load_weights(file)
        except (OSError, TypeError) as error:  # of what a newer Keras wrote, an older one has no such argument
            raise RunError(f"{file} cannot be read ({str(error)[:99]}). Close it elsewhere, or update Keras.") from error
        return fast.quick(network) if stock and not into else network

    def train(self, progress=None):
        """Train what is left, and return the run. `progress(run, network)` is called after each epoch and at the end.

        The stop button (Ctrl-C) keeps the best weights so far; called again, training goes on after the last whole
        epoch. RunError while another process trains here.
        """
        for run in (self, *self.others):
            try:
                if run.finished:
                    run.sweep()  # what a finish that was cut short left
                    print(f"{run.folder} is already trained.")
                else:
                    run.folder.mkdir(parents=True, exist_ok=True)
                    with nullcontext(lambda: None) if backend.processes()[0] else run.locked() as renew:
                        run.adopt(read_state(run.folder) or run.state)
                        if not run.finished:  # by another process, meanwhile
                            run.train_rest(progress, renew)
                asked = {name: vars(self.recipe)[name] for name in ("mirrors", "context", "networks")}
                how = {"recipe": run.state["recipe"] | asked, "others": [other.name for other in self.others]}
                if run is self and run.finished and run.state | how != run.state:
                    run.put(**how)  # so that the folder alone predicts as it was last asked to
            except OSError as error:
                raise RunError(f"{run.folder} cannot be written into ({error}). Is the disk full, or Drive no longer "
                               "mounted? Whole epochs are kept: mend it and run this again.") from error
            row = run.state["history"][run.best]
            print(f"Kept epoch {run.best + 1} of {len(run.history)}: its worst label has validation Dice "
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
        seen = [split.seen(self.box, recipe.size) for split in (self.dataset.train, self.dataset.validation)]
        batch = min(recipe.batch, len(seen[0]))
        batches = preprocess.Batches(seen[0], batch, recipe.augment, shuffle=True, seed=recipe.seed,
                                     oversample=recipe.oversample, part=backend.processes(),
                                     workers=1 if recipe.devices > 1 else min(4, os.cpu_count() or 1))  # TensorFlow peeks
        making, training = backend.shared(recipe.devices, batch)
        with making:
            network = self.untrained() if recipe.devices > 1 else fast.quick(self.untrained())
            network.batch, batches.epoch = batch, done
            train.prepare(network, recipe, len(batches))
        twin = fast.quick(self.untrained())
        if not done and self.start:
            load_start(network, self.start)
        if done:
            self.load(weights_of(done - 1), network)
            print(f"Going on after epoch {done} of {recipe.epochs}.")
        callbacks = [keras.callbacks.TerminateOnNaN(), train.Validation(seen[1], batch, train.LOSSES[recipe.loss], twin),
                     train.Clock(recipe.epochs, self.task.names), Keeper(self, progress, renew, twin)]
        try:
            with training:
                if keras.config.backend() != "tensorflow":
                    # `fit` would peek at a batch, and leave others for the first epoch
                    network.test_on_batch(seen[0].images[:batch], seen[0].labels[:batch])
                if done < recipe.epochs:
                    network.fit(batches, epochs=recipe.epochs, initial_epoch=done, shuffle=False, verbose=0,
                                callbacks=callbacks)
            self.finish()
        except KeyboardInterrupt:
            if self.best is None:
                raise
            print(f"Stopped: the best weights so far are kept. Run this again to go on, up to {recipe.epochs} epochs.")
        except Exception as error:  # each backend has its own
            if FULL.search(f"{type(error).__name__} {error}"):
                raise RunError(f"A batch of {batch} slices does not fit into memory. Set batch={batch // 2 or 1}.") from error
            if backend.processes()[1] > 1 and isinstance(error, RuntimeError):
                raise RunError(f"Another process no longer answers ({error}). Start all again: epochs are kept.") from error
            raise

    def commit(self, network, row):
        """Make an epoch part of the run: its weights, then, in one step, the state that names them."""
        rows = [*self.state["history"], row]
        best = max(range(len(rows)), key=lambda k: (*rank(rows[k]), -k))
        self.write_state(network.save, weights_of(len(rows) - 1), weights_of(best), history=rows, best=best)

    def finish(self):
        """Make the best epoch's network the run's result; the epochs' files go."""
        if backend.processes()[0]:
            while not (read_state(self.folder) or self.state)["finished"]:
                time.sleep(1)
            return self.adopt(read_state(self.folder))
        network, policy = self.network(), keras.mixed_precision.dtype_policy()
        keras.mixed_precision.set_dtype_policy("float32")  # so that it opens, and computes alike, on any machine
        try:
            twin = self.untrained()
        finally:
            keras.mixed_precision.set_dtype_policy(policy)
        twin.set_weights(network.get_weights())
        self.write_state(twin.save, NETWORK, finished=True)
        self.opened = NETWORK, network

    def write_state(self, save, name, *kept, **news):
        """Write a file under a name that nobody knows yet; then commit the state that names it and those `kept`."""
        if backend.processes()[0]:
            return self.adopt(self.state | news)
        replace_whole(self.folder / name, save)
        sums = self.state["files"] | {name: digest((self.folder / name).read_bytes())}
        self.put(**news, files={file: sums[file] for file in {name, *kept}})

    def put(self, **news):
        """The commit: run.json in one step. Then remove weights that it no longer names, and write history.csv."""
        new = self.state | news
        if backend.processes()[0]:
            return self.adopt(new)
        replace_whole(self.folder / STATE, lambda part: part.write_text(json.dumps(new, indent=1)))
        self.adopt(new)
        self.sweep()
        with suppress(OSError):  # for readers only
            self.history.to_csv(self.folder / "history.csv")

    def sweep(self):
        """Remove weights that run.json does not name, as of an epoch that was cut short."""
        for file in {*self.folder.glob("epoch-*"), *self.folder.glob("part-*")}:
            if file.name not in self.state["files"] and not backend.processes()[0]:
                file.unlink()

    def summary(self):
        """{column: value} for a table: weights of the network, median seconds of an epoch."""
        return {"weights": self.network().count_params(), "seconds an epoch": round(self.history["seconds"].median(), 1)}

    @contextmanager
    def locked(self):
        """Hold the run alone; yields a function that renews the lock's time. RunError if another process holds it."""
        with open(self.folder / LOCK, "a+") as stream:
            with suppress(OSError):  # a drive without locks: what is written below has to do
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise RunError(f"{self.folder} is being trained by another process. Wait, or stop it.") from None
            stream.seek(0)
            machine, _, since = stream.read().partition(" ")
            age = max(0, time.time() - float(since)) if since.isdecimal() else STALE  # clocks differ
            if machine not in ("", platform.node()) and age < STALE:
                raise RunError(f"{self.folder} was being trained on {machine} {train.minutes(age)} ago. If that is over, "
                               f"delete {self.folder / LOCK} and run this again.")

            def renew():
                """Write who holds the run, and when that was last so."""
                stream.truncate(0)
                print(platform.node(), round(time.time()), end="", file=stream, flush=True)

            renew()
            try:
                yield renew
            finally:
                stream.truncate(0)

    @property
    def results(self):
        """The folder of what was found on the test; results of other options of prediction lie in folders of their own."""
        recipe = self.recipe
        return self.folder / "results" / (f"{recipe.networks}-network{'s' * (recipe.networks > 1)}"
                                          + "-mirrors" * recipe.mirrors + f"-{recipe.context}" * bool(recipe.context))

    def keep(self, thing, name=None):
        """Write a picture, or what has `files()`, into `results`, and return it to be shown."""
        if backend.processes()[0]:
            return thing
        try:
            (folder := self.results).mkdir(parents=True, exist_ok=True)
            for file, content in (thing.files() if name is None else {f"{name}.png": thing.png()}).items():
                replace_whole(folder / file, lambda part: part.write_bytes(
                    content if isinstance(content, bytes) else content.encode()))
        except OSError as error:
            print(f"This is shown, but not kept: {folder} cannot be written into ({error}).")
        return thing


class Keeper(keras.callbacks.Callback):
    """Commits every epoch to its run; makes dropout depend on seed and epoch alone, so that resuming changes nothing."""

    def __init__(self, run, progress, renew, twin):
        super().__init__()
        self.run, self.progress, self.renew, self.twin = run, progress, renew, twin

    def on_epoch_begin(self, epoch, logs=None):
        """Seed every layer that draws random numbers."""
        for number, layer in enumerate(self.model.layers):
            if getattr(layer, "seed_generator", None) is not None:
                layer.seed_generator.state.assign(np.array([self.run.recipe.seed * 1000 + number, epoch], "uint32"))

    @backend.alone()
    def on_epoch_end(self, epoch, logs=None):
        """Commit the epoch, then tell of it."""
        if not np.isfinite(logs["loss"]):
            raise RunError(f"The loss is no number in epoch {epoch + 1}; those before are kept. Lower the learning_rate.")
        self.run.commit(self.model, {name: float(value) for name, value in logs.items()})
        self.renew()
        if self.progress:
            self.progress(self.run, self.twin)


def code_of(source):
    """A digest of what Python code does: comments, docstrings, formatting and the version of Python do not matter."""
    tree = ast.dump(ast.parse(source))
    return digest(re.sub(r"""Expr\(value=Constant\(value=(['"]).*?\1\)\)|\w+=\[\]|, """, "", tree).encode())


# of what was imported, whatever is edited later
CODE = {part.__name__: code_of(Path(part.__file__).read_bytes()) for part in (model, fast, train, preprocess)}


def weights_of(epoch):
    """The name of an epoch's file; epochs count from 0, names from 1."""
    return f"epoch-{epoch + 1:03d}.keras"


def rank(row):
    """What makes one epoch better than another: the worst label's validation Dice, then the mean of all labels'."""
    return row[f"val_{train.WORST_DICE}"], np.nanmean([value for name, value in row.items() if "val_dice " in name])


def read_state(folder):
    """What run.json of a folder holds; None where there is no run. RunError on one that cannot be read."""
    file = folder / STATE
    if not file.exists():
        return None
    try:
        state = json.loads(file.read_text())
        unknown = "".join(f"; no option {name}" for name, value in sorted(state["recipe"].items())
                          if value and name not in Recipe.__dataclass_fields__)
        state["recipe"] = {name: value for name, value in state["recipe"].items() if name in Recipe.__dataclass_fields__}
        if state["version"] == VERSION and not unknown:
            return state
        found = f"its version is {state['version']}, this project's {VERSION}{unknown}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
    raise RunError(f"{file} cannot be used ({found}). Choose another folder or version, or delete it to train anew.")


def load_start(network, start):
    """Bring a network to the best weights of another run, which is trained first if need be."""
    if not start.finished and start.dataset:
        print(f"First, the run to start from: {start.folder}")
        start.train()
    if not start.finished:
        raise RunError(f"{start.folder} is not finished: train it to its end, then start from it.")
    first = start.network()
    if [v.shape for v in first.weights] != [v.shape for v in network.weights]:
        raise RunError(f"The network of {start.folder} is another: {first.count_params():,}, not {network.count_params():,} "
                       "weights. Both need the same network, filters, channels and labels.")
    network.set_weights(first.get_weights())
    print(f"Training starts from the best weights of {start.folder}.")
