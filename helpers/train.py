"""Loss, schedule and `fit`: a run that can be stopped and goes on where it was."""

import json
import os
import random
import shutil
import sys
import time
import zlib
from pathlib import Path
from weakref import WeakKeyDictionary

import pandas as pd

from helpers.backend import keras
from helpers.preprocess import Batches

ops = keras.ops
BEST = "best.weights.h5"
WORST_DICE = "worst dice"  # name of the metric that chooses the epoch
UNTRAINED = WeakKeyDictionary()  # of networks that `fit` has met: what their variables were before


class RunError(Exception):
    """A run's folder holds something else than what is asked for: the message says what to do."""


def dice_and_cross_entropy(truth, probabilities):
    """1 - soft Dice, averaged over labels, plus cross-entropy: a scalar, in float32 whatever the policy.

    `truth` holds labels (B, H, W), `probabilities` (B, H, W, L). The Dice sums of a label run over the whole
    batch, so a label absent from one slice costs nothing there; one pixel is added to keep 0 / 0 away.
    """
    probabilities = ops.cast(probabilities, "float32")
    wanted = ops.one_hot(ops.cast(truth, "int32"), probabilities.shape[-1], dtype="float32")  # (B, H, W, L)
    both = ops.sum(wanted * probabilities, axis=(0, 1, 2))  # (L,)
    total = ops.sum(wanted + probabilities, axis=(0, 1, 2))
    soft_dice = (2 * both + 1) / (total + 1)
    chosen = ops.sum(wanted * probabilities, axis=-1)  # what the true label was given, (B, H, W)
    cross_entropy = -ops.mean(ops.log(ops.maximum(chosen, 1e-7)))
    return 1 - ops.mean(soft_dice) + cross_entropy


class HardDice(keras.metrics.Metric):
    """Hard Dice per label, pooled over all slices seen, and the worst of them."""

    def __init__(self, label_names, name="dice", **options):
        super().__init__(name=name, **options)
        self.label_names = label_names
        shape = (len(label_names),)
        self.both = self.add_weight(shape, "zeros", name="both")
        self.total = self.add_weight(shape, "zeros", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch: labels (B, H, W) and probabilities (B, H, W, L)."""
        n = len(self.label_names)
        truth = ops.one_hot(ops.cast(y_true, "int32"), n, dtype="float32")
        guess = ops.one_hot(ops.argmax(y_pred, axis=-1), n, dtype="float32")
        self.both.assign_add(ops.sum(truth * guess, axis=(0, 1, 2)))
        self.total.assign_add(ops.sum(truth + guess, axis=(0, 1, 2)))

    def result(self):
        """Dice per label, NaN where a label was neither there nor predicted, and the worst of the others."""
        seen = self.total > 0
        dice = 2 * self.both / ops.maximum(self.total, 1)
        each = ops.where(seen, dice, float("nan"))
        return {**{f"dice {name}": each[k] for k, name in enumerate(self.label_names)},
                WORST_DICE: ops.min(ops.where(seen, dice, 1.0))}


def schedule(steps, learning_rate, warm_up=0.05):
    """Learning rate over `steps`: a linear warm-up over a share of them, then half a cosine down to zero."""
    warm_steps = max(1, round(warm_up * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_steps), warmup_target=learning_rate, warmup_steps=warm_steps)


def fit(network, dataset, epochs, run, batch_size=16, learning_rate=3e-3, weight_decay=1e-4, seed=0,
        loss=dice_and_cross_entropy, augment=0.7, average=0.0, start=None, oversample=1, callbacks=()):
    """Train on `dataset.train`, keep the epoch whose worst label has the best validation Dice, return the history.

    `loss` is a function of labels (B, H, W) and probabilities (B, H, W, L), or the name of one of Keras's; `augment`
    is the share of training slices that are turned, scaled and shifted, besides the mirror images and other greys of
    all, or None to change none; `average` above 0 validates and keeps a running average of the weights, which forgets
    all but this share of itself at each step (EMA); `start` is the folder of another run of such a network, whose best
    weights this one starts from (transfer learning); `oversample` above 1 shows pictures of the rarer background,
    bright or dark, so many times an epoch; `callbacks` are called after this function's own.

    Everything lands in the folder `run`: best weights and their score, `history.csv`, `settings.json`. Called again
    with the same settings, a stopped run goes on after its last whole epoch and a finished one, which a callback may
    have ended early, is read back; with others, RunError. Without `start` a new run begins with the weights that the
    network came with, even if it was trained in another run since. The network ends up with the best weights, also
    when training is interrupted (Jupyter's stop button, Ctrl-C) after its first epoch.
    """
    run = Path(run)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("oversample", oversample)):
        if value < 1:
            raise RunError(f"{name} is {value}; it must be 1 or more.")
    if augment is not None and not 0 <= augment <= 1:
        raise RunError(f"augment is {augment}; it must be a share, 0 to 1, or None.")
    settings = {"network": network.name, "weights": network.count_params(),
                "dropout": max((getattr(layer, "rate", 0) for layer in network.layers), default=0),
                "data": fingerprint(dataset.train, dataset.validation), "slices": len(dataset.train),
                "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
                "weight_decay": weight_decay, "seed": seed, "loss": getattr(loss, "__name__", loss),
                "augment": augment, "average": average, "start": Path(start).name if start else None,
                "oversample": oversample if oversample > 1 else None}  # as in settings of runs from before it
    UNTRAINED.setdefault(network, [keras.ops.convert_to_numpy(v) for v in network.variables])
    history = reopen(run, settings)
    if history.empty:
        begin(network, start)
        write_settings(run, settings)  # not before: `start` may not fit
    network._initial_epoch = None  # Keras keeps the epoch at which an earlier run went on
    if not finished(run, history, epochs):
        train_rest(network, dataset, run, settings, history, loss, callbacks)
        history = read_history(run)
    else:
        print(f"{run} is already trained: its best weights are read back. Change RUNS or SEED to train anew.")
    load_best(network, run, "Train again with another RUNS.")
    kept = best_so_far(run)
    print(f"Kept epoch {kept['epoch'] + 1} of {len(history)}: its worst label has validation Dice "
          f"{kept[WORST_DICE]:.4f}.")
    return history


def train_rest(network, dataset, run, settings, history, loss, more):
    """Train the epochs of `settings` that `history` lacks, or as many as come before an interruption."""
    batch_size, epochs = min(settings["batch_size"], len(dataset.train)), settings["epochs"]
    training = Batches(dataset.train, batch_size, augment=settings["augment"], shuffle=True, seed=settings["seed"],
                       oversample=settings["oversample"] or 1, workers=min(4, os.cpu_count() or 1))
    training.epoch = len(history)
    names = [label.name for label in dataset.task.labels]
    averaging = {"use_ema": True, "ema_momentum": settings["average"]} if settings["average"] else {}
    optimizer = keras.optimizers.AdamW(schedule(epochs * len(training), settings["learning_rate"]),
                                       settings["weight_decay"], clipnorm=1.0, **averaging)
    network.compile(optimizer, loss, metrics=[HardDice(names)])
    validation = Batches(dataset.validation, batch_size)
    if keras.config.backend() != "tensorflow":
        network.test_on_batch(*validation[0])  # `fit` would peek at a batch, and leave others for the first epoch
    progress = Progress(epochs, len(training), names)
    callbacks = [progress, KeepBest(run),
                 keras.callbacks.CSVLogger(run / "history.csv", append=True),
                 keras.callbacks.BackupAndRestore(str(run / "backup"), double_checkpoint=True), *more,
                 KeepOrder(run / "backup")]
    if averaging:
        callbacks.insert(0, Averaged(resumed=len(history) > 0))
    try:
        network.fit(training, validation_data=validation, epochs=epochs, verbose=0, callbacks=callbacks)
    except KeyboardInterrupt:
        if read_history(run).empty:
            raise
        for callback in (progress, *more):
            callback.on_train_end()
        print(f"Stopped: the best weights so far are kept. Run this again to go on, up to {epochs} epochs.")


def reopen(run, settings):
    """The history of a run so far, empty for a new one; RunError if its folder holds a run with other settings."""
    file = run / "settings.json"
    if not file.exists():
        return pd.DataFrame()
    found = json.loads(file.read_text())
    other = [f"{k} {found.get(k)} (now {v})" for k, v in settings.items() if found.get(k) != v]
    if other:
        raise RunError(f"{run} holds a run with other settings: {', '.join(other)}. "
                       "Choose another RUNS; nothing was changed.")
    return trained_epochs(run, settings["epochs"])


def write_settings(run, settings):
    """Make a run's folder and write what it is trained with."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "new.json").write_text(json.dumps(settings, indent=2) + "\n")
    (run / "new.json").replace(run / "settings.json")


def trained_epochs(run, epochs):
    """The history of the epochs that need not be trained again: all of a finished run, else those backed up.

    A run stopped between writing an epoch's row and its backup has a row too many; it is taken back.
    """
    history = read_history(run)
    if finished(run, history, epochs):
        return history
    done = backed_up(run / "backup")
    history = history[:done]
    if done:
        history.to_csv(run / "history.csv")
    else:
        (run / "history.csv").unlink(missing_ok=True)
    return history


def finished(run, history, epochs):
    """Whether a run has all its epochs, or a callback ended it early: Keras then takes the backup away."""
    return len(history) == epochs or (len(history) > 0 and not (run / "backup").exists())


def backed_up(folder):
    """Number of epochs that a backup holds; where writing it was cut short, the one before takes its place."""
    file = folder / "training_metadata.json"
    try:
        return json.loads(file.read_text())["epoch"]
    except (FileNotFoundError, ValueError):
        before = {copy.with_suffix(""): copy for copy in folder.glob("*.bkp")}
        if len(before) < 2:
            shutil.rmtree(folder, ignore_errors=True)
            return 0
        for name, copy in before.items():
            shutil.copy(copy, name)
        return json.loads(file.read_text())["epoch"]


def begin(network, start=None):
    """Bring a network to the best weights of the run in the folder `start`, or back to those that it came with."""
    if start:
        check_start(network, Path(start))
        load_best(network, Path(start), "Choose another run to start from.")
        print(f"Training starts from the best weights of {Path(start).name}.")
    else:
        for variable, value in zip(network.variables, UNTRAINED[network], strict=True):
            variable.assign(value)


def check_start(network, start):
    """Raise RunError unless the folder `start` holds a run of such a network: the same kind, as many weights."""
    try:
        found = json.loads((start / "settings.json").read_text())
        kind, weights = found["network"], found["weights"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{start} is not the folder of a run to start from: it has no readable settings.json. Choose "
                       "one in which a network was trained, such as runs/varied-...") from error
    if kind != network.name:
        raise RunError(f"{start} holds a network of another kind, {kind}: start from a run of {network.name}.")
    if weights != network.count_params():
        raise RunError(f"The network of {start} has {weights:,} weights, this one {network.count_params():,}. To start "
                       "from it, both need as many labels, as many colours and the same FILTERS.")


def load_best(network, run, advice):
    """Load the best weights of a run into its network; RunError with `advice` if they are missing or damaged."""
    try:
        network.load_weights(run / BEST)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run / BEST} is missing or damaged ({error}). {advice}") from error


def read_history(run):
    """The history of a run, one row per epoch: loss and Dice per label, for training and validation (`val_`)."""
    file = Path(run) / "history.csv"
    if not file.exists() or not file.stat().st_size:
        return pd.DataFrame()
    return pd.read_csv(file).drop_duplicates("epoch", keep="last").set_index("epoch")


def fingerprint(*splits):
    """Eight hexadecimal digits that change when any pixel of the splits' images or labels does."""
    digest = 0
    for split in splits:
        digest = zlib.crc32(split.labels, zlib.crc32(split.images, digest))
    return f"{digest:08x}"


def best_so_far(run):
    """Epoch and score of the weights kept in a run's folder; of none, a score below any."""
    file = Path(run) / "best.json"
    return json.loads(file.read_text()) if file.exists() else {"epoch": None, WORST_DICE: -1.0}


class Averaged(keras.callbacks.SwapEMAWeights):
    """Validate, keep and back up the averaged weights; a resumed run finds them in the network and swaps them back."""

    def __init__(self, resumed):
        super().__init__(swap_on_epoch=True)
        self._ema_weights_in_model = resumed


class KeepBest(keras.callbacks.Callback):
    """Keep the weights of the epoch whose worst label has the best validation Dice, and remember its score on disk.

    A new file takes the old one's place only when it is whole; Keras's ModelCheckpoint writes over the old one, and
    does not know its score when a run is resumed.
    """

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_epoch_end(self, epoch, logs=None):
        """Save the weights if no epoch so far was better."""
        score = float(logs[f"val_{WORST_DICE}"])
        if score > best_so_far(self.run)[WORST_DICE]:
            self.model.save_weights(self.run / f"new.{BEST}")
            (self.run / f"new.{BEST}").replace(self.run / BEST)
            (self.run / "new.json").write_text(json.dumps({"epoch": epoch, WORST_DICE: score}))
            (self.run / "new.json").replace(self.run / "best.json")


class KeepOrder(keras.callbacks.Callback):
    """Let a resumed run see its batches in the order in which an uninterrupted one sees them.

    Keras shuffles them anew each epoch with Python's own random numbers, wherever these stand: they are kept beside
    the backup.
    """

    def __init__(self, folder):
        super().__init__()
        self.file = folder / "order.json"

    def on_train_begin(self, logs=None):
        """Go on where the random numbers of the last whole epoch stood."""
        if self.file.exists():
            version, state, rest = json.loads(self.file.read_text())
            random.setstate((version, tuple(state), rest))
        self.file.parent.mkdir(exist_ok=True)  # from before the first epoch: without it a run counts as `finished`

    def on_epoch_end(self, epoch, logs=None):
        """Keep where they stand."""
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(random.getstate()))
        new.replace(self.file)


class Progress(keras.callbacks.Callback):
    """One line per epoch, and while it runs, in Jupyter or a terminal, how far it is and how long it takes yet."""

    def __init__(self, epochs, steps, label_names):
        super().__init__()
        self.epochs, self.steps, self.label_names, self.status = epochs, steps, label_names, Status()
        self.began, self.first = time.time(), None

    def on_epoch_begin(self, epoch, logs=None):
        """Start the epoch's clock."""
        self.epoch, self.epoch_began, self.told = epoch, time.time(), time.time()
        if self.first is None:
            self.began, self.first = time.time(), epoch  # a resumed run does not start at 0

    def on_train_batch_end(self, batch, logs=None):
        """Tell how far the epoch is, at most twice a second."""
        if time.time() - self.told > 0.5:
            self.told = time.time()
            self.status.say(f"epoch {self.epoch + 1}/{self.epochs}: batch {batch + 1}/{self.steps}, "
                            f"loss {logs['loss']:.3f}, {self.time_left(batch + 1)} left")

    def on_epoch_end(self, epoch, logs=None):
        """Print the epoch's line; its seconds go into the history too."""
        logs["seconds"] = round(time.time() - self.epoch_began, 2)
        dice = "  ".join(f"{name} {logs[f'val_dice {name}']:.3f}" for name in self.label_names)
        self.status.say("")
        print(f"{epoch + 1:3d}/{self.epochs}  loss {logs['loss']:.3f}  validation: loss {logs['val_loss']:.3f}  "
              f"Dice {dice}  {logs['seconds']:.0f} s", flush=True)

    def on_train_end(self, logs=None):
        """Say how long it all took."""
        self.status.say(f"trained in {minutes(time.time() - self.began)}")

    def time_left(self, batches):
        """Time that the remaining batches take at the pace so far, in words."""
        done = (self.epoch - self.first) * self.steps + batches
        todo = (self.epochs - self.epoch) * self.steps - batches
        return minutes((time.time() - self.began) / done * todo)


def minutes(seconds):
    """Seconds as minutes and seconds."""
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


class Status:
    """A line that is written over: in a notebook by updating one output, on a terminal by a carriage return."""

    def __init__(self):
        self.display = None
        try:
            from IPython import display, get_ipython
            if getattr(get_ipython(), "kernel", None):
                self.display = display.display(display.Pretty(""), display_id=True)
                self.pretty = display.Pretty
        except ImportError:
            pass

    def say(self, text):
        """Replace the line by `text`; where output is a log file, say nothing."""
        if self.display:
            self.display.update(self.pretty(text))
        elif sys.stdout.isatty():
            print(f"\r{text:<100}\r" if text else f"\r{'':<100}\r", end="", flush=True)
