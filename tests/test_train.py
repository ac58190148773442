import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from test_data import TASK

from helpers import evaluate, model, train
from helpers.data import Dataset, Split


@pytest.fixture(scope="module")
def toy():
    """Grey squares whose grey tells the label: a network must learn them in a few steps."""
    def made(name, subject, seed, n=16):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, (n, 4, 4)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        images = (labels * 70 + rng.integers(0, 20, labels.shape)).astype(np.uint8)
        return Split(name, images[..., None], labels, np.array([subject] * n), TASK)

    return Dataset(made("train", "a", 0), made("validation", "b", 1, 4), made("test", "c", 2, 4))


def small(dropout=0.0):
    """The Improved U-Net, where it matters that it is one."""
    keras.utils.set_random_seed(0)
    return model.improved_unet((32, 32, 1), 4, filters=8, levels=3, dropout=dropout)


def tiny(dropout=0.0, filters=32):
    """Two convolutions, where any network does: they compile several times as fast."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 1), dtype="uint8")
    x = keras.layers.Conv2D(filters, 1, activation="relu")(model.standardise(image))
    x = keras.layers.SpatialDropout2D(dropout)(x)
    return keras.Model(image, model.to_probabilities(keras.layers.Conv2D(4, 1)(x)), name="tiny")


def test_loss_by_hand():
    truth = np.array([[[0, 1]], [[1, 1]]])  # two slices of two pixels
    right = np.array([[[0.5, 0.9]], [[0.6, 1.0]]])  # given to the true label
    p = np.zeros((2, 1, 2, 2))
    np.put_along_axis(p, truth[..., None], right[..., None], -1)
    np.put_along_axis(p, 1 - truth[..., None], 1 - right[..., None], -1)
    # label 0: both .5, total 1 + (.5 + .1 + .4 + 0); label 1: both 2.5, total 3 + (.5 + .9 + .6 + 1)
    dice = [(2 * 0.5 + 1) / (1 + 1.0 + 1), (2 * 2.5 + 1) / (3 + 3.0 + 1)]
    expected = 1 - np.mean(dice) - np.mean(np.log(right))
    assert float(train.dice_and_cross_entropy(truth, p)) == pytest.approx(expected, rel=1e-5)


def test_loss_is_float32_and_finite_in_half_precision():
    truth = np.zeros((4, 256, 256), np.uint8)
    half = keras.ops.convert_to_tensor(np.eye(4, dtype="float16")[truth])
    loss = train.dice_and_cross_entropy(truth, half)  # sums of 262,144 pixels overflow float16
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert float(loss) == pytest.approx(0, abs=1e-4)


def test_metric_pools_and_leaves_absent_labels_out():
    metric = train.HardDice(["a", "b", "c"])
    truth, guess = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 1]]]), np.array([[[0, 1, 1, 1]], [[0, 0, 0, 0]]])
    for t, g in zip(truth, guess):
        metric.update_state(t[None], np.eye(3)[g][None])
    result = {name: float(value) for name, value in metric.result().items()}
    expected = evaluate.dice(truth, guess, 3)
    assert [result["dice a"], result["dice b"]] == pytest.approx(expected[:2].tolist())
    assert np.isnan(result["dice c"]) and result["worst dice"] == pytest.approx(expected[1])


def test_schedule_warms_up_and_comes_down():
    rate = train.schedule(100, 0.003)
    values = [float(rate(step)) for step in range(101)]
    assert values[0] == 0 and np.argmax(values) == 5 and max(values) == pytest.approx(0.003)
    assert values[5:] == sorted(values[5:], reverse=True) and values[100] == pytest.approx(0, abs=1e-9)


def test_fit_learns_keeps_the_best_epoch_and_writes_its_files(toy, tmp_path):
    net = small()
    history = train.fit(net, toy, 12, tmp_path / "run", batch_size=2, learning_rate=0.01)
    scores = evaluate.score(toy.validation, evaluate.predict(net, toy.validation.images))
    assert scores.pooled.min() > 0.9
    assert scores.pooled.min() == pytest.approx(history["val_worst dice"].max(), abs=1e-3)
    assert {f.name for f in (tmp_path / "run").iterdir()} == {
        "best.json", "best.weights.h5", "history.csv", "settings.json"}
    assert history["seconds"].gt(0).all() and history.index.tolist() == list(range(12))


class Stop(Exception):
    pass


@pytest.mark.parametrize("average", [0.0, 0.8])
def test_a_stopped_run_goes_on_and_keeps_its_best(toy, tmp_path, monkeypatch, average):
    begin = train.Progress.on_epoch_begin

    def stop(self, epoch, logs=None):
        if epoch == 2:
            raise Stop
        begin(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(train.Progress, "on_epoch_begin", stop)
        with pytest.raises(Stop):
            train.fit(tiny(), toy, 4, tmp_path / "run", batch_size=4, average=average)
    before = train.read_history(tmp_path / "run")
    assert before.index.tolist() == [0, 1]
    # pretend that the best epoch is behind: nothing that follows may take its place
    (tmp_path / "run" / "best.json").write_text('{"epoch": 1, "worst dice": 1.5}')
    best = (tmp_path / "run" / "best.weights.h5").read_bytes()
    # and that the run was stopped between writing a row and its backup
    with (tmp_path / "run" / "history.csv").open("a") as rows:
        rows.write("2" + ",0.5" * len(before.columns) + "\n")
    history = train.fit(tiny(), toy, 4, tmp_path / "run", batch_size=4, average=average)
    assert history.index.tolist() == [0, 1, 2, 3] and history.loc[0, "loss"] == before.loc[0, "loss"]
    assert (tmp_path / "run" / "best.weights.h5").read_bytes() == best
    # as if it had never been stopped: the same batches in the same order
    whole = train.fit(tiny(), toy, 4, tmp_path / "whole", batch_size=4, average=average)
    assert np.allclose(history["loss"], whole["loss"], rtol=1e-5)
    assert np.allclose(history["val_loss"], whole["val_loss"], rtol=1e-5)


def test_a_run_that_a_callback_ended_is_finished(toy, tmp_path, capsys):
    class Enough(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    first = train.fit(tiny(), toy, 4, tmp_path / "run", batch_size=4, callbacks=[Enough()])
    again = train.fit(tiny(), toy, 4, tmp_path / "run", batch_size=4)
    assert first.index.tolist() == [0, 1] and again.equals(first) and "already trained" in capsys.readouterr().out


def test_a_new_run_starts_where_the_network_came_from(toy, tmp_path, monkeypatch):
    """Whatever the network has been through: a stopped run, one gone on with, one read back."""
    def stop(self, epoch, logs=None):
        if epoch == 1:
            raise Stop

    net = tiny()
    before = net.get_weights()
    with monkeypatch.context() as patch:
        patch.setattr(train.KeepOrder, "on_epoch_begin", stop)
        with pytest.raises(Stop):
            train.fit(net, toy, 2, tmp_path / "run", batch_size=4)
    train.fit(net, toy, 2, tmp_path / "run", batch_size=4)
    train.fit(net, toy, 2, tmp_path / "run", batch_size=4)
    assert not np.allclose(net.get_weights()[0], before[0])
    train.begin(net)
    assert all(np.array_equal(a, b) for a, b in zip(net.get_weights(), before))
    assert train.fit(net, toy, 2, tmp_path / "other", batch_size=4).index.tolist() == [0, 1]


def test_a_run_starts_at_the_best_weights_of_another(toy, tmp_path, capsys):
    first = tiny(dropout=0.1)
    train.fit(first, toy, 6, tmp_path / "first", batch_size=2, learning_rate=0.1)
    learnt = evaluate.score(toy.validation, evaluate.predict(first, toy.validation.images)).pooled
    options = {"batch_size": 16, "learning_rate": 1e-9, "augment": None}
    net = tiny()
    alone = train.fit(net, toy, 1, tmp_path / "alone", **options)
    history = train.fit(net, toy, 1, tmp_path / "second", start=tmp_path / "first", **options)
    assert history["val_worst dice"][0] == pytest.approx(learnt.min(), abs=1e-3)
    assert alone["val_worst dice"][0] < learnt.min() - 0.2
    assert "starts from the best weights of first." in capsys.readouterr().out
    (tmp_path / "first").rename(tmp_path / "moved away")  # a finished run does without
    assert len(train.fit(tiny(), toy, 1, tmp_path / "second", start=tmp_path / "first", **options)) == 1
    with pytest.raises(train.RunError, match=r"start first \(now None\)"):
        train.fit(net, toy, 1, tmp_path / "second", **options)


def test_pictures_of_the_rarer_background_are_trained_on_more_often(toy, tmp_path):
    images = toy.train.images // 2  # all dark
    images[:2] = 255
    mixed = replace(toy, train=replace(toy.train, images=images))
    for oversample, shown in ((1, len(images)), (3, len(images) + 4)):
        net = tiny()
        train.fit(net, mixed, 1, tmp_path / str(oversample), batch_size=2, oversample=oversample)
        assert int(net.optimizer.iterations) == shown // 2
    with pytest.raises(train.RunError, match=r"oversample 3 \(now None\)"):
        train.fit(net, mixed, 1, tmp_path / "3", batch_size=2)


def test_a_start_that_does_not_fit_is_said_before_anything_is_written(toy, tmp_path):
    train.fit(tiny(), toy, 1, tmp_path / "first", batch_size=16)
    wide = tiny(filters=12)
    with pytest.raises(train.RunError, match="as many labels, as many colours and the same FILTERS"):
        train.fit(wide, toy, 1, tmp_path / "second", start=tmp_path / "first")
    with pytest.raises(train.RunError, match="is not the folder of a run"):
        train.fit(wide, toy, 1, tmp_path / "second", start=tmp_path)
    with pytest.raises(train.RunError, match="another kind, tiny: start from a run of unet"):
        train.fit(model.unet((32, 32, 1), 4, 4, 3), toy, 1, tmp_path / "second", start=tmp_path / "first")
    (tmp_path / "first" / "best.weights.h5").write_bytes(b"cut short")
    with pytest.raises(train.RunError, match="damaged .*Choose another run to start from"):
        train.fit(tiny(), toy, 1, tmp_path / "second", start=tmp_path / "first")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("copies", [True, False])
def test_a_backup_cut_short_in_writing(tmp_path, copies):
    folder = tmp_path / "backup"
    folder.mkdir()
    (folder / "latest.weights.h5").write_text("cut short")  # of the first epoch, whose number is not yet written
    assert train.backed_up(folder) == 0 and not folder.exists()
    folder.mkdir()
    (folder / "training_metadata.json").write_text('{"epoch": 3}')
    assert train.backed_up(folder) == 3
    (folder / "training_metadata.json").write_text("")
    (folder / "latest.weights.h5").write_text("4")
    if copies:
        (folder / "training_metadata.json.bkp").write_text('{"epoch": 2}')
        (folder / "latest.weights.h5.bkp").write_text("2")
    assert train.backed_up(folder) == (2 if copies else 0)
    assert folder.exists() == copies and (not copies or (folder / "latest.weights.h5").read_text() == "2")


def test_averaged_weights_are_the_running_average(toy, tmp_path):
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(self.model.get_weights()[0].copy())

    net = tiny()
    fit = net.fit
    net.fit = lambda *args, callbacks, **options: fit(*args, callbacks=[*callbacks, Watch()], **options)
    train.fit(net, toy, 1, tmp_path / "run", batch_size=4, average=0.8)
    expected = tiny().get_weights()[0]  # Keras starts its average at the first weights
    for weights in seen:
        expected = 0.8 * expected + 0.2 * weights
    assert len(seen) == 4 and not np.allclose(net.get_weights()[0], seen[-1], atol=1e-4)
    assert np.allclose(net.get_weights()[0], expected, atol=1e-5)


def test_another_loss(toy, tmp_path):
    net = tiny()
    history = train.fit(net, toy, 1, tmp_path / "run", batch_size=4, loss="sparse_categorical_crossentropy")
    validation = toy.validation
    given = np.take_along_axis(net.predict(validation.images, verbose=0), validation.labels[..., None].astype(int), -1)
    assert history.loc[0, "val_loss"] == pytest.approx(-np.log(given).mean(), rel=1e-3)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["loss"] == "sparse_categorical_crossentropy"


def test_a_finished_run_is_read_back_and_another_is_refused(toy, tmp_path, capsys):
    first = tiny()
    train.fit(first, toy, 1, tmp_path / "run", batch_size=4)
    again = tiny()
    train.fit(again, toy, 1, tmp_path / "run", batch_size=4)
    assert "already trained" in capsys.readouterr().out
    assert all(np.array_equal(a, b) for a, b in zip(first.get_weights(), again.get_weights()))
    with pytest.raises(train.RunError, match=r"epochs 1 \(now 2\).*nothing was changed"):
        train.fit(tiny(), toy, 2, tmp_path / "run", batch_size=4)
    (tmp_path / "run" / "best.weights.h5").write_bytes(b"cut short")
    with pytest.raises(train.RunError, match="best.weights.h5 is missing or damaged"):
        train.fit(tiny(), toy, 1, tmp_path / "run", batch_size=4)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["epochs"] == 1


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"oversample": 0}, {"augment": 1.5},
                                   {"augment": -1}])
def test_settings_that_make_no_sense_are_refused(wrong, toy, tmp_path):
    with pytest.raises(train.RunError, match=f"{next(iter(wrong))} is .*; it must be"):
        train.fit(tiny(), toy, run=tmp_path / "run", **{"epochs": 1} | wrong)
    assert not (tmp_path / "run").exists()


def test_float16_scales_the_loss(toy, tmp_path):
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        net = small(dropout=0.3)
        history = train.fit(net, toy, 2, tmp_path / "run", batch_size=4)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert isinstance(net.optimizer, keras.optimizers.LossScaleOptimizer)
    assert np.isfinite(history["loss"]).all()


class Interrupt(keras.callbacks.Callback):
    """Somebody presses the stop button in the first batch of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.now = epoch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch:
            raise KeyboardInterrupt


def test_an_interruption_keeps_the_best_weights_and_can_be_taken_up_again(toy, tmp_path, capsys):
    network = tiny()
    history = train.fit(network, toy, 4, tmp_path / "run", batch_size=4, learning_rate=0.1, callbacks=[Interrupt(2)])
    said = capsys.readouterr().out
    assert len(history) == 2 and "Stopped: the best weights" in said
    assert train.best_so_far(tmp_path / "run") == {"epoch": 1, train.WORST_DICE: history["val_worst dice"].max()}
    kept = tiny()
    kept.load_weights(tmp_path / "run" / train.BEST)
    images = toy.test.images
    assert np.array_equal(network.predict(images, verbose=0), kept.predict(images, verbose=0))
    whole = train.fit(tiny(), toy, 4, tmp_path / "whole", batch_size=4, learning_rate=0.1)
    resumed = train.fit(tiny(), toy, 4, tmp_path / "run", batch_size=4, learning_rate=0.1)
    assert np.allclose(resumed["loss"], whole["loss"], rtol=0.01)


def test_an_interruption_before_anything_was_learned_stops(toy, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / train.BEST).write_text("left by a run that was stopped before its first backup")
    with pytest.raises(KeyboardInterrupt):
        train.fit(tiny(), toy, 2, tmp_path / "run", batch_size=4, callbacks=[Interrupt(0)])


def test_an_interruption_while_a_resumed_run_starts(toy, tmp_path, monkeypatch, capsys):
    train.fit(tiny(), toy, 4, tmp_path / "run", batch_size=4, callbacks=[Interrupt(2)])

    def stop(*args, **options):
        raise KeyboardInterrupt

    network = tiny()
    monkeypatch.setattr(network, "fit", stop)
    assert len(train.fit(network, toy, 4, tmp_path / "run", batch_size=4)) == 2
    assert capsys.readouterr().out.count("Stopped: the best weights") == 2
