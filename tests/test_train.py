import keras
import numpy as np
import pytest

from helpers import evaluate, train
from helpers.data import Label, Split, Task
from helpers.recipe import Recipe


def test_losses_by_hand():
    truth = np.array([[[0, 1]], [[1, 1]]])  # two slices of two pixels
    right = np.array([[[0.5, 0.9]], [[0.6, 1.0]]])  # given to the true label
    p = np.zeros((2, 1, 2, 2))
    np.put_along_axis(p, truth[..., None], right[..., None], -1)
    np.put_along_axis(p, 1 - truth[..., None], 1 - right[..., None], -1)
    # label 0: both .5, total 1 + (.5 + .1 + .4 + 0); label 1: both 2.5, total 3 + (.5 + .9 + .6 + 1)
    dice = 1 - np.mean([(2 * 0.5 + 1) / (1 + 1.0 + 1), (2 * 2.5 + 1) / (3 + 3.0 + 1)])
    cross_entropy = -np.mean(np.log(right))
    found = {name: float(loss(truth, p)) for name, loss in train.LOSSES.items()}
    assert found == pytest.approx({"dice+cross_entropy": dice + cross_entropy, "dice": dice,
                                   "cross_entropy": cross_entropy}, rel=1e-5)


@pytest.mark.parametrize("name", train.LOSSES)
def test_losses_are_float32_and_finite_in_half_precision(name):
    truth = np.zeros((4, 256, 256), np.uint8)
    half = keras.ops.convert_to_tensor(np.eye(4, dtype="float16")[truth])
    loss = train.LOSSES[name](truth, half)  # sums of 262,144 pixels overflow float16
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert float(loss) == pytest.approx(0, abs=1e-4)


def test_dice_alone_is_bounded_in_training_however_wrong_the_network_is():
    """In a compiled graph Keras takes cross-entropy from what goes into the softmax, where it has no bound."""
    network = keras.Sequential([keras.layers.Input((1, 1, 2)), keras.layers.Softmax()])
    network.compile(keras.optimizers.SGD(), train.LOSSES["dice"])
    wrong, truth = np.array([[[[1000.0, 0.0]]]] * 8), np.ones((8, 1, 1), int)
    assert float(network.test_on_batch(wrong, truth)) == pytest.approx(1 - (1 / 9 + 1 / 9) / 2)


def test_a_label_that_validation_lacks_does_not_choose_the_epoch(capsys):
    truth, guess = np.array([[[0, 0, 1, 1]]]), np.array([[[0, 2, 1, 1]]])  # label 2 is found, by chance

    class Network:
        def predict_on_batch(self, images):
            return np.eye(3)[images[..., 0]]

        def get_weights(self):
            return []

        def set_weights(self, weights):
            assert weights == []

    task = Task("toy", [Label(name, 0, "#000000") for name in "abc"], "made here")
    split = Split("validation", guess[..., None].astype(np.uint8), truth.astype(np.uint8), np.array(["x"]), task)
    validation, logs = train.Validation(split, 1, lambda truth, found: 0, Network()), {}
    validation.set_model(Network())
    validation.on_epoch_end(0, logs)
    assert logs["val_worst dice"] == pytest.approx(2 / 3) and np.isnan(logs["val_dice c"])
    assert capsys.readouterr().out == "No validation slice has c: the other labels choose the epoch.\n"


def test_validation_pools_and_leaves_absent_labels_out():
    truth, guess = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 1]], [[0, 0, 0, 0]]]), np.zeros((3, 1, 4), int)
    guess[0, 0] = [0, 1, 1, 1]

    class Network:
        def predict_on_batch(self, images):
            return np.eye(3)[images[..., 0]]

        def get_weights(self):
            return []

        def set_weights(self, weights):
            assert weights == []

    labels = tuple(Label(name, grey, "#000000") for grey, name in enumerate("abc"))
    split = Split("validation", guess[..., None].astype(np.uint8), truth.astype(np.uint8), np.array(["s"] * 3),
                  Task("test", labels, ""))
    validation, logs = train.Validation(split, 2, lambda truth, found: len(truth), Network()), {}
    validation.set_model(Network())
    validation.on_epoch_end(0, logs)
    expected = evaluate.dice(truth, guess, 3)
    assert [logs["val_dice a"], logs["val_dice b"]] == pytest.approx(expected[:2].tolist())
    assert np.isnan(logs["val_dice c"]) and logs["val_worst dice"] == pytest.approx(expected[1])
    assert logs["val_loss"] == pytest.approx((2 * 2 + 1 * 1) / 3)  # batches count by their slices


def test_schedule_warms_up_and_comes_down():
    rate = train.schedule(100, 0.003)
    values = [float(rate(step)) for step in range(101)]
    assert values[0] == 0 and np.argmax(values) == 5 and max(values) == pytest.approx(0.003)
    assert values[5:] == sorted(values[5:], reverse=True) and values[100] == pytest.approx(0, abs=1e-9)


def test_a_network_is_prepared_as_its_recipe_says():
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 1)])
    train.prepare(network, Recipe("practice", epochs=4, learning_rate=0.02, weight_decay=0.3, loss="dice"), 25)
    rates = [float(network.optimizer._learning_rate(step)) for step in (0, 5, 100)]
    assert rates == pytest.approx([0, 0.02, 0], abs=1e-9)  # of 4 x 25 steps
    assert network.optimizer.weight_decay == 0.3 and network.loss is train.dice_only
    assert len(network.optimizer.variables) == 1 + 2 * 2  # steps, and two moments each of kernel and bias


def test_an_epochs_line_tells_its_time_and_the_time_left(monkeypatch, capsys):
    clock, now = train.Clock(4, ["a", "b"]), iter([100, 130, 200, 300])
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(now))
    clock.on_train_begin()
    for epoch in (1, 2):
        logs = {"loss": 1.0, "val_loss": 2.0, "val_dice a": 0.5, "val_dice b": float("nan")}
        clock.on_epoch_begin(epoch)
        clock.on_epoch_end(epoch, logs)
    assert logs["seconds"] == 100  # one epoch of 30 s, one of 100: one more takes 65
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[2]] == ["Dice is that of the validation split: a / b",
                                    "epoch  3/4  loss 1.000, validation 2.000  Dice 0.500 / nan  100 s, 1 min 05 s left"]
