from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from benchmarks import ingredients
from benchmarks.kills import tiny, toy
from keras import layers

from helpers import model, train
from helpers.data import DataError
from helpers.recipe import Recipe

FOLDER = Path(__file__).parent / "benchmarks"
SMALL = Recipe("practice", filters=1, dropout=0.1, augment=0.7)


def kinds(network):
    return [type(layer).__name__ for layer in network.layers]


def test_each_variant_lacks_what_its_name_says():
    variants = ingredients.variants(SMALL)
    networks = {name: build(recipe, 1, 4) for name, (recipe, build) in variants.items()}
    whole = networks[ingredients.REFERENCE]
    assert kinds(whole) == kinds(model.of_recipe(SMALL, 1, 4)) and variants[ingredients.REFERENCE][0] == SMALL
    norms = kinds(whole).count("GroupNormalization")
    assert {name: kinds(net).count("GroupNormalization") for name, net in networks.items()} == {
        name: 1 if name in ("without normalisation", "plain U-Net, cross-entropy") else norms  # the input's own
        for name in variants}
    assert kinds(networks["without normalisation"]).count("Identity") == norms - 1
    assert kinds(networks["without deep supervision"]).count("Add") == 5 and kinds(whole).count("Add") == 7
    assert kinds(networks["without residuals"]).count("Lambda") == 5
    for name, rate in (("without dropout", 0), ("dropout 0.3 (of whole maps)", 0.3), ("without residuals", 0.1)):
        dropouts = [la for la in networks[name].layers if isinstance(la, layers.SpatialDropout2D)]
        assert [layer.rate for layer in dropouts] == [rate] * 5
    recipes = {name: recipe for name, (recipe, _) in variants.items()}
    assert recipes["without augmentation"].augment is None
    assert recipes["without rotation, scale and shift"].augment == 0
    assert [recipes[name].loss for name in ("loss: cross-entropy alone", "loss: Dice alone")] == [
        "cross_entropy", "dice"]
    assert len({(recipe.training.items().__repr__(), build) for recipe, build in variants.values()}) == 11
    assert ingredients.STARTED not in variants
    assert ingredients.variants(SMALL, "runs/a")[ingredients.STARTED][0].start == "runs/a"


def test_without_residuals_what_comes_in_goes_through_the_convolutions_only():
    net = ingredients.without_residuals(SMALL, 1, 4)
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 1), np.uint8)
    before = np.asarray(net(images))
    for layer in net.layers:  # all second convolutions give nothing: then nothing of the picture can come through
        if layer.name.startswith("context_") and layer.name.endswith("conv_b"):
            layer.set_weights([0 * w for w in layer.get_weights()])
    flat = np.asarray(net(images))
    assert before.std() > 0.01 and np.allclose(flat, np.asarray(net(255 - images)), atol=1e-6)


def test_a_compiled_prediction_is_what_the_network_computes():
    ingredients.predict_as_built()
    net, rng = ingredients.without_normalisation(SMALL, 1, 4), np.random.default_rng(0)
    for weight in net.weights:
        if weight.name == "bias":  # as after training, when convolutions give more than noise around 0
            weight.assign(rng.normal(0, 0.3, weight.shape))
    images = rng.integers(0, 256, (4, 32, 32, 1), np.uint8)
    assert np.allclose(net.predict(images, verbose=0), np.asarray(net(images)), atol=1e-3)


@pytest.fixture
def many():
    """Toy slices of four people to learn from."""
    made = toy()
    return replace(made, train=replace(made.train, subjects=np.repeat(["a1", "a2", "a3", "a4"], 4)))


def test_people_set_aside_validate(many):
    apart = ingredients.set_aside(many, 3)
    assert set(apart.train.subjects) == {"a1"} and set(apart.validation.subjects) == {"a2", "a3", "a4", "b"}
    assert (len(apart.train), len(apart.validation)) == (4, 4 + 12) and apart.test is many.test
    assert np.array_equal(apart.validation.labels[-4:], many.train.labels[-4:]) and apart.validation.whole == 16
    with pytest.raises(DataError, match="train split .* is empty"):
        ingredients.set_aside(many, 4)


def test_a_run_of_the_benchmark(many, tmp_path, monkeypatch, capsys):
    """One of two networks, one person aside: the second takes half the time, so that it has twice the epochs too."""
    clock = accumulate([0, 2, 0, 1, 0, 1, 0, 1])  # seconds, at the begin and end of each epoch
    monkeypatch.setattr(train, "time", SimpleNamespace(time=lambda: next(clock)))
    monkeypatch.setattr(ingredients.backend, "set_up", lambda: None)
    monkeypatch.setattr(ingredients.datasets, "load", lambda recipe: many)
    monkeypatch.setattr(ingredients, "variants", lambda recipe, start=None: {
        ingredients.REFERENCE: (recipe, tiny), "without augmentation": (recipe.change(augment=None), tiny),
        "without this": (recipe, tiny)})
    words = ["--options", "epochs=1 batch=4", "--seeds", "1", "--aside", "1", "--only", "without augmentation", "--to",
             str(tmp_path)]
    ingredients.main(words)
    rows = pd.read_csv(tmp_path / "results.csv")
    assert rows[["variant", "budget", "epochs", "seconds per epoch"]].to_numpy().tolist() == [
        [ingredients.REFERENCE, "epochs", 1, 2], ["without augmentation", "epochs", 1, 1],
        [ingredients.REFERENCE, "seconds", 1, 2], ["without augmentation", "seconds", 2, 1]]
    assert len(list(tmp_path.glob("practice-*"))) == 3 and (rows["weights"] == 228).all()
    assert not [column for column in rows if column.startswith("test")]
    one = rows.loc[rows["budget"] == "seconds", "validation CSF"].iloc[0]
    assert one == rows["validation CSF"][0] and "validation: Dice (hard, pooled)" in capsys.readouterr().out
    monkeypatch.setattr(keras.Model, "fit", None)
    ingredients.main(words)  # all is read back
    again = pd.read_csv(tmp_path / "results.csv")
    assert again.equals(rows)


def test_a_stopped_run_is_no_row(many, tmp_path, monkeypatch):
    monkeypatch.setattr(ingredients.Run, "train", lambda self: self)
    with pytest.raises(KeyboardInterrupt):
        ingredients.measure(SMALL, many, 1, tmp_path)
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize("words, sentence", [(["--only", "without wings"], "invalid choice: 'without wings'"),
                                             (["--aside", "-1"], "--aside is -1; it must be 0 or more")])
def test_a_command_that_cannot_be(words, sentence, capsys):
    with pytest.raises(SystemExit):
        ingredients.main(words)
    assert sentence in capsys.readouterr().err


def test_table_by_hand():
    rows = pd.DataFrame({"data": "toy", "variant": ["a", "a", "b"], "seed": [0, 1, 0], "budget": "epochs", "epochs": 6,
                         "weights": [5, 5, 7], "seconds per epoch": [1.0, 3.0, 4.0], "validation CSF": 0.1,
                         "test CSF": [0.8, 0.9, 0.7]})
    found = ingredients.table(rows)
    table = found.table
    assert table.loc[("epochs", "a"), "CSF"] == "0.8500 ± 0.0707" and table.loc[("epochs", "a"), "runs"] == 2
    assert table.loc[("epochs", "a"), "seconds per epoch"] == 2 and table.loc[("epochs", "b"), "weights"] == 7
    assert "validation CSF" not in table and found.caption.startswith("toy, test: Dice (hard, pooled)")
    assert ingredients.table(rows, "validation").table.loc[("epochs", "a"), "CSF"] == "0.1000 ± 0.0000"


def test_figure_draws_every_run_once():
    rows = pd.DataFrame({"data": "toy", "variant": ["all", "less"] * 4, "seed": [0, 0, 1, 1] * 2,
                         "budget": ["epochs"] * 4 + ["seconds"] * 4, "epochs": [5] * 5 + [9, 5, 9],
                         "test background": 0.99, "test b": 0.5,
                         "test a": [0.9, 0.8, 0.92, 0.7, 0.9, 0.86, 0.92, 0.88]})
    drawn = ingredients.figure(rows)
    ax = drawn.figure.axes[0]
    assert "Test Dice of 3 variants" in drawn.alt
    assert "mean of b, a" in ax.get_xlabel()
    runs = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert runs == [pytest.approx(two) for two in ([0.68, 0.69], [0.65, 0.6], [0.7, 0.71])]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["less, 9 epochs (the same seconds)", "less", "all"]


@pytest.mark.parametrize("name, said, rows", [("practice", "practice brains (synthetic), validation", 28),
                                              ("ibsr", "brains.zip (OASIS layout), validation", 10)])
def test_measured_results_are_drawn(name, said, rows, tmp_path, capsys):
    ingredients.main(["--draw", str(FOLDER / f"ingredients_{name}.csv"), str(tmp_path / "drawn.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(said) and sum("±" in line for line in lines[1:]) == rows
    assert (tmp_path / "drawn.png").read_bytes()[:4] == b"\x89PNG"
