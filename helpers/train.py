"""What training minimises, watches and says: losses, Dice, learning rate, progress. `helpers.run` does the training."""

import time

import numpy as np

from helpers import backend, fast
from helpers.backend import keras
from helpers.evaluate import confusion, ratio

ops = keras.ops
WORST_DICE = "worst dice"  # what chooses the epoch


def dice_and_cross_entropy(truth, probabilities, weight=1):
    """1 - soft Dice, averaged over labels, plus `weight` times cross-entropy: a scalar, in float32 whatever the policy.

    `truth` holds labels (B, H, W), `probabilities` (B, H, W, L). The Dice sums of a label run over the whole
    batch, so a label absent from one slice has no Dice of 0; one pixel is added to keep 0 / 0 away.
    """
    probabilities = ops.cast(probabilities, "float32")
    wanted = ops.one_hot(ops.cast(truth, "int32"), probabilities.shape[-1], dtype="float32")  # (B, H, W, L)
    both = fast.over_devices(ops.sum(wanted * probabilities, axis=(0, 1, 2)))  # (L,)
    total = fast.over_devices(ops.sum(wanted + probabilities, axis=(0, 1, 2)))
    soft_dice = (2 * both + 1) / (total + 1)
    chosen = ops.sum(wanted * probabilities, axis=-1)  # what the true label was given, (B, H, W)
    cross_entropy = -ops.mean(ops.log(ops.maximum(chosen, 1e-7)))
    return 1 - ops.mean(soft_dice) + weight * cross_entropy


def dice_only(truth, probabilities):
    """`dice_and_cross_entropy` without the cross-entropy."""
    return dice_and_cross_entropy(truth, probabilities, weight=0)


def cross_entropy_only(truth, probabilities):
    """`dice_and_cross_entropy` without the Dice."""
    return ops.mean(keras.losses.sparse_categorical_crossentropy(truth, ops.cast(probabilities, "float32")))


LOSSES = {"dice+cross_entropy": dice_and_cross_entropy, "dice": dice_only, "cross_entropy": cross_entropy_only}


class Validation(keras.callbacks.Callback):
    """Adds to an epoch's logs the loss and the hard Dice, pooled, of a Split as the network sees it.

    What is trained, perhaps on several devices, lends its weights to `twin`, which predicts on one.
    """

    def __init__(self, split, batch, loss, twin):
        super().__init__()
        self.split, self.batch, self.loss, self.twin = split, batch, loss, twin
        if absent := [name for name, share in zip(split.task.names, split.label_shares()) if not share]:
            print(f"No validation slice has {', '.join(absent)}: the other labels choose the epoch.")

    @backend.alone()
    def on_epoch_end(self, epoch, logs=None):
        """Predict the split; `val_worst dice` is that of the worst label which is there. Of others Dice is NaN."""
        names, losses, counts = self.split.task.names, 0, 0
        self.twin.set_weights(self.model.get_weights())
        for at in range(0, len(self.split), self.batch):
            some = self.split.take(slice(at, at + self.batch))
            found = fast.probabilities(self.twin, some.images, self.batch)
            losses += float(self.loss(some.labels, found)) * len(some)
            counts += confusion(some.labels, found.argmax(-1), len(names))
        dice = np.where(counts.sum(1), ratio("Dice", counts), np.nan)
        logs |= {"val_loss": losses / len(self.split), **{f"val_dice {name}": d for name, d in zip(names, dice)},
                f"val_{WORST_DICE}": np.nanmin(dice)}


def schedule(steps, learning_rate, warm_up=0.05):
    """Learning rate over `steps`: a linear warm-up over a share of them, then half a cosine down to zero."""
    warm_steps = max(1, round(warm_up * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_steps), warmup_target=learning_rate, warmup_steps=warm_steps)


def prepare(network, recipe, steps_per_epoch):
    """Compile a network for training by a recipe, and build its optimizer, so that a saved state fits into it."""
    kind = fast.AdamW if recipe.devices == 1 else fast.SharedAdamW
    optimizer = kind(schedule(recipe.epochs * steps_per_epoch, recipe.learning_rate), recipe.weight_decay, clipnorm=1.0)
    mirrored = recipe.devices > 1 and keras.config.backend() == "tensorflow"  # whose devices' losses are added up
    network.compile(optimizer, LOSSES[recipe.loss], loss_weights=[1 / recipe.devices] if mirrored else None)
    network.optimizer.build(network.trainable_variables)


class Clock(keras.callbacks.Callback):
    """Prints one line per epoch, with the time left; the epoch's seconds go into its logs."""

    def __init__(self, epochs, label_names):
        super().__init__()
        self.epochs, self.label_names, self.taken = epochs, label_names, []

    def on_train_begin(self, logs=None):
        """Say what the lines hold."""
        print(f"Dice is that of the validation split: {' / '.join(self.label_names)}")

    def on_epoch_begin(self, epoch, logs=None):
        """Start the epoch's clock."""
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Print the epoch's line."""
        logs["seconds"] = round(time.perf_counter() - self.began, 2)
        self.taken.append(logs["seconds"])
        left = (self.epochs - epoch - 1) * sum(self.taken) / len(self.taken)
        dice = " / ".join(f"{logs[f'val_dice {name}']:.3f}" for name in self.label_names)
        print(f"epoch {epoch + 1:2d}/{self.epochs}  loss {logs['loss']:.3f}, validation {logs['val_loss']:.3f}  Dice {dice}"
              f"  {logs['seconds']:.0f} s, {minutes(left)} left", flush=True)


def minutes(seconds):
    """Seconds as minutes and seconds."""
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
