import dataclasses

import benchmark_ingredients as ingredients
import numpy as np
import pandas as pd
import pytest
from keras import layers
from test_train import tiny, toy  # noqa: F401

from helpers import model, train
from helpers.data import DataError


def kinds(network):
    return [type(layer).__name__ for layer in network.layers]


def test_each_variant_lacks_what_its_name_says():
    networks = {name: build() for name, (build, _) in ingredients.variants((32, 32, 1), 4).items()}
    whole = networks.pop(ingredients.REFERENCE)
    assert kinds(whole) == kinds(model.improved_unet((32, 32, 1), 4))
    norms = kinds(whole).count("GroupNormalization")
    assert [kinds(net).count("GroupNormalization") for net in networks.values()] == [
        1, *[norms] * 11, 1]  # the one left is the input's own
    without = networks["without normalisation"]
    assert kinds(without).count("Identity") == norms - 1
    assert kinds(networks["without deep supervision"]).count("Add") == 5 and kinds(whole).count("Add") == 7
    for name, rate in (("without dropout", 0), ("dropout 0.3 (of whole maps)", 0.3), ("without residuals", 0.1)):
        dropouts = [la for la in networks[name].layers if isinstance(la, layers.SpatialDropout2D)]
        assert [layer.rate for layer in dropouts] == [rate] * 5
    assert "GroupNormalization" in kinds(networks["with averaged weights (EMA)"])


def test_a_start_is_a_variant_only_where_there_is_one():
    assert ingredients.STARTED not in ingredients.variants((32, 32, 1), 4)
    assert ingredients.variants((32, 32, 1), 4, "runs/a")[ingredients.STARTED][1] == {"start": "runs/a"}


def test_without_residuals_what_comes_in_goes_through_the_convolutions_only():
    net = ingredients.variants((32, 32, 1), 4)["without residuals"][0]()
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 1), np.uint8)
    assert net.predict(images, verbose=0).std() > 0
    for layer in net.layers:  # all second convolutions give nothing: then nothing of the picture can come through
        if layer.name.startswith("context_") and layer.name.endswith("conv_b"):
            layer.set_weights([0 * w for w in layer.get_weights()])
    flat = net.predict(images, verbose=0)
    assert np.allclose(flat, net.predict(255 - images, verbose=0), atol=1e-6)


@pytest.mark.parametrize("name", [ingredients.REFERENCE, "without normalisation", "without residuals"])
def test_a_compiled_prediction_is_what_the_network_computes(name):
    ingredients.predict_as_built()
    net, rng = ingredients.variants((32, 32, 1), 4)[name][0](), np.random.default_rng(0)
    for weight in net.weights:
        if weight.name == "bias":  # as after training, when convolutions give more than noise around 0
            weight.assign(rng.normal(0, 0.3, weight.shape))
    images = rng.integers(0, 256, (4, 32, 32, 1), np.uint8)
    assert np.allclose(net.predict(images, verbose=0), np.asarray(net(images)), atol=1e-3)


def test_losses_against_each_other():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (2, 32, 32))
    guess = rng.dirichlet(np.ones(3), (2, 32, 32)).astype("float32")
    whole, cross = float(train.dice_and_cross_entropy(truth, guess)), -np.log(np.take_along_axis(
        guess, truth[..., None], -1)).mean()
    assert float(ingredients.dice_alone(truth, guess)) == pytest.approx(whole - cross, abs=1e-3)
    soft = [2 * np.where(truth == k, guess[..., k], 0).sum() / ((truth == k).sum() + guess[..., k].sum())
            for k in range(3)]
    assert float(ingredients.dice_without_background(truth, guess)) == pytest.approx(
        1 - np.mean(soft[1:]) + cross, abs=1e-4)
    sure = np.take_along_axis(guess, truth[..., None], -1)
    assert float(ingredients.dice_and_focal(truth, guess)) == pytest.approx(
        1 - np.mean(soft) + (-0.25 * (1 - sure) ** 2 * np.log(sure)).mean(), abs=1e-4)


def few(others):
    """In the place of `variants`: a small network, alone and with other arguments of `train.fit`."""
    def variants(shape, n_labels, start=""):
        started = {ingredients.STARTED: {"start": start}} if start else {}
        return {name: (tiny, options) for name, options in ({ingredients.REFERENCE: {}} | others | started).items()}
    return variants


def test_measure_and_summary(toy, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(ingredients, "variants", few({"without augmentation": {"augment": None}}))
    ingredients.measure(toy, 1, 8, 2, tmp_path)
    rows = pd.read_csv(tmp_path / "results.csv")
    assert set(rows["variant"]) == {ingredients.REFERENCE, "without augmentation"} and set(rows["seed"]) == {0, 1}
    assert (rows.groupby(["variant", "budget"]).size() == 2).all()
    settings = train.json.loads((tmp_path / "without_augmentation-1epochs-seed1" / "settings.json").read_text())
    assert settings["augment"] is None and settings["seed"] == 1
    ingredients.measure(toy, 1, 8, 2, tmp_path)
    assert "already trained" in capsys.readouterr().out
    again = pd.read_csv(tmp_path / "results.csv")
    assert again["test CSF"].tolist() == pytest.approx(rows["test CSF"].tolist())


def test_people_set_aside_validate_and_the_test_split_is_not_read(toy, tmp_path, monkeypatch, capsys):  # noqa: F811
    names = np.repeat(["a1", "a2", "a3", "a4"], 4)
    many = dataclasses.replace(toy, train=dataclasses.replace(toy.train, subjects=names))
    apart = ingredients.set_aside(many, 3)
    assert set(apart.train.subjects) == {"a1"} and set(apart.validation.subjects) == {"a2", "a3", "a4", "b"}
    assert (len(apart.train), len(apart.validation)) == (4, 4 + 12) and apart.test is many.test
    assert np.array_equal(apart.validation.labels[-4:], many.train.labels[-4:])
    with pytest.raises(DataError, match="train split .* is empty"):
        ingredients.set_aside(many, 4)
    monkeypatch.setattr(ingredients.data, "load", lambda *args: many)
    monkeypatch.setattr(ingredients, "variants", few({"without this": {}, "without that": {}}))
    words = ["--epochs", "1", "--seeds", "1", "--aside", "1", "--only", "without that", "--to", str(tmp_path)]
    ingredients.main(words)
    rows = pd.read_csv(tmp_path / "results.csv")
    assert set(rows["variant"]) == {ingredients.REFERENCE, "without that"}
    assert "validation CSF" in rows and not [column for column in rows if column.startswith("test")]
    assert "validation: Dice" in capsys.readouterr().out
    ingredients.main([*words, "--start", str(tmp_path / "Improved_U-Net-1epochs-seed0")])  # the others are read back
    assert pd.read_csv(tmp_path / "results.csv")["variant"].tolist()[:3] == [*rows["variant"][:2], ingredients.STARTED]
    assert "starts from the best weights of Improved_U-Net-1epochs-seed0" in capsys.readouterr().out
    for wrong in (["--only", "without wings"], ["--aside", "-1"]):
        with pytest.raises(SystemExit):
            ingredients.main(wrong)
    assert "--aside is -1; it must be 0 or more" in capsys.readouterr().err


def test_an_interrupted_run_is_no_row(toy, tmp_path, monkeypatch):  # noqa: F811
    def stopped(*args, **options):
        return pd.DataFrame({"seconds": [1.0]})

    monkeypatch.setattr(train, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        ingredients.measure(toy, 2, 8, 1, tmp_path)
    assert not (tmp_path / "results.csv").exists()
