import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from benchmarks import context, gpu, ingredients, onto_oasis, pack, people, race, speed
from benchmarks.kills import tiny, toy
from keras import layers
from test_run import made_by_hand

from helpers import data, datasets, evaluate, fast, model
from helpers.predict import Predictor
from helpers.recipe import Recipe
from helpers.run import SYNTHETIC, Run

FOLDER = Path(__file__).parent / "benchmarks"
TORCH = os.environ.get("TORCH_PYTHON") or (sys.executable if importlib.util.find_spec("torch") else None)
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
    for name, rate in (("with dropout 0.3 (of whole maps)", 0.3), ("without residuals", 0.1)):
        dropouts = [la for la in networks[name].layers if isinstance(la, layers.SpatialDropout2D)]
        assert [layer.rate for layer in dropouts] == [rate] * 5
    recipes = {name: recipe for name, (recipe, _) in variants.items()}
    assert [recipes[name].augment for name in ("with mirroring", "with rotation, scale, shift")] == [0, 0.7]
    assert [recipes[name].loss for name in ("loss: cross-entropy alone", "loss: Dice alone")] == [
        "cross_entropy", "dice"]
    oasis = ingredients.variants(Recipe.choose("oasis", "slices=2416 epochs=1 start=random", "x")).values()
    assert len({(recipe.training.items().__repr__(), build) for recipe, build in oasis}) == 10


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


def test_the_ingredients_are_measured_on_validation_people_and_go_on(many, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ingredients.backend, "set_up", lambda: None)
    monkeypatch.setattr(ingredients.datasets, "load", lambda recipe: many)
    scored, score = [], evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda split, labels: scored.append(split.name) or score(split, labels))
    both = {ingredients.REFERENCE: {}, "with mirroring": {"augment": 0.0}}
    monkeypatch.setattr(ingredients, "variants", lambda recipe: {
        name: (recipe.change(**more), tiny) for name, more in both.items()})
    words = ["--dataset", "practice", "--options", "epochs=1 batch=4 augment=none", "--to", str(tmp_path), "--seeds"]
    ingredients.main([*words, "1"])
    first = pd.read_csv(tmp_path / "ingredients.csv")
    ingredients.main([*words, "2"])
    rows = pd.read_csv(tmp_path / "ingredients.csv")
    assert rows[:2].equals(first) and (rows["weights"] == 228).all()
    assert rows[["variant", "seed", "slices", "epochs"]].to_numpy().tolist() == [
        [name, seed, 16, 1] for seed in (0, 1) for name in both]
    recipe = Recipe.choose("practice", "epochs=1 batch=4 augment=none seed=1", "", False)
    predictor = Predictor(Run(tmp_path, recipe, many, tiny), mirrors=False)
    pooled = score(many.validation, predictor.labels(many.validation)).pooled
    assert scored == ["validation"] * 4
    assert rows.loc[2, ingredients.SCORED].tolist() == pytest.approx(pooled[ingredients.SCORED].tolist(), abs=1e-4)
    assert "validation: Dice (hard, pooled)" in capsys.readouterr().out
    monkeypatch.setattr(keras.Model, "fit", None)
    ingredients.main([*words, "2"])  # everything is there
    assert pd.read_csv(tmp_path / "ingredients.csv").equals(rows)


def test_a_stopped_run_is_no_row(many, tmp_path, monkeypatch):
    monkeypatch.setattr(ingredients.Run, "train", lambda self: self)
    with pytest.raises(KeyboardInterrupt):
        ingredients.measure(SMALL, many, 1, tmp_path, tmp_path / "ingredients.csv")
    assert not (tmp_path / "ingredients.csv").exists()


def test_every_training_of_a_study_has_the_precision_of_the_first():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        ingredients.afresh()
        assert keras.mixed_precision.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.mixed_precision.set_dtype_policy("float32")


def ingredient_rows():
    """Two variants by hand, two runs of the first."""
    return pd.DataFrame({"data": "toy", "variant": ["a", "b", "a"], "seed": [0, 0, 1], "weights": [5, 7, 5],
                         "CSF": [0.8, 0.7, 0.9], "grey matter": 0.5, "white matter": [0.6, 0.6, 0.8]})


def test_table_by_hand():
    found = ingredients.table(ingredient_rows())
    assert found.table.loc["a", "CSF"] == "0.8500 ± 0.0707" and found.table["runs"].tolist() == [2, 1]
    assert found.table["weights"].tolist() == [5, 7]
    assert found.caption.startswith("toy, validation: Dice (hard, pooled)")


def test_figure_draws_every_run_once():
    drawn = ingredients.figure(ingredient_rows())
    assert "Validation Dice of 2 variants" in drawn.alt
    csf, _, white = drawn.figure.axes
    assert [[text.get_text() for text in ax.get_yticklabels()] for ax in (csf, white)] == [["b", "a"], ["", ""]]
    runs = [[line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"] for ax in (csf, white)]
    assert runs == [[[0.7], [0.8, 0.9]], [[0.6], [0.6, 0.8]]]
    assert csf.lines[-1].get_xdata()[0] == pytest.approx(0.85)


def test_what_was_measured_is_drawn(tmp_path, capsys):
    ingredients.main(["--draw", str(FOLDER / "ingredients_oasis.csv"), str(tmp_path / "drawn.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("OASIS brain slices, validation") and sum("±" in line for line in lines[1:]) == 10
    assert (tmp_path / "drawn.png").read_bytes()[:4] == b"\x89PNG"
    ax = people.figure(pd.read_csv(FOLDER / "people_oasis.csv")).figure.axes[0]
    assert [line.get_xdata().tolist() for line in ax.lines[:2]] == [list(people.PEOPLE)] * 2


def test_multiply_adds_by_hand():
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(5, 3, strides=2, padding="same")(layers.Conv2D(3, 3, padding="same")(image))
    x = layers.Conv2D(2, 3, padding="same", name="up_1-conv")(layers.UpSampling2D(2, name="up_1-upsample")(x))
    network = keras.Model(image, layers.Conv2D(4, 1)(x))
    others = 64 * 9 * 1 * 3 + 16 * 9 * 3 * 5 + 64 * 1 * 2 * 4
    assert speed.multiply_adds(network) == others + 64 * 9 * 5 * 2
    if fast.FASTER:
        assert speed.multiply_adds(fast.quick(network)) == others + 16 * 16 * 5 * 2


def test_a_ratio_is_of_the_same_rounds():
    costs = [{"processor": seconds} for seconds in (1, 9, 4)]
    others = [{"processor": seconds} for seconds in (2, 10, 2)]
    assert speed.ratio(costs, others, "processor") == 0.9 and speed.ratio(others, others, "processor") == 1
    with pytest.raises(ValueError):
        speed.ratio(costs, others[:2], "processor")


def test_a_cost_is_of_a_slice_and_beside_each_other_contestant():
    cost = {name: [{"processor": s, "wall": 2 * s}] for name, s in ((speed.OURS, 1), (speed.STOCK, 4))}
    first = {("train", name): {"processor": 7, "wall": 8} for name in cost}
    lines = speed.table("train", first, {("train", name): own for name, own in cost.items()}, 8).splitlines()
    assert lines[2].split() == "ours 125.0 250.0 0.25 0.25 7.0 8.0".split()
    assert lines[3].split()[-6:] == "500.0 1000.0 1.00 1.00 7.0 8.0".split()


def test_shares_of_the_peak_by_hand():
    answers = {("peak", speed.OURS): [{"said": 100}, {"said": 200}],
               ("train", speed.OURS): [{"processor": 12}, {"processor": 6}],
               ("predict", speed.OURS): [{"processor": 2}, {"processor": 1}]}
    said = list(speed.floor([120, 100], answers, 2))
    assert "2000.0 ms" in said[2] and said[2].endswith("reaches 50% of it.")
    assert "666.7 ms" in said[3] and said[3].endswith("reaches 100% of it.")


def test_contestants_answer():
    settings = {"precision": "float32", "shape": (32, 32), "batch": 2, "threads": 1, "filters": 2}
    children = {speed.OURS: speed.Child(speed.OURS, sys.executable, settings)}
    children |= {name: speed.Child(name, TORCH, settings) for name in speed.TORCH if TORCH}
    _, answers = speed.rounds_of(children, 1)
    assert all(one["processor"] > 0 and one["wall"] > 0 for (one,) in answers.values())
    weights = model.of_recipe(Recipe("oasis", filters=2), 1, 4).count_params()
    assert all(children[name].ask("weights")["said"] == weights for name in children if name != speed.OURS)
    stock, quick = children[speed.OURS].ask("work")["said"]
    assert 0 < quick < stock
    for child in children.values():
        child.process.communicate()


def test_a_contestant_that_dies_is_said():
    child = speed.Child(speed.OURS, sys.executable, {"threads": 1})
    with pytest.raises(SystemExit, match="ended without an answer"):
        child.ask("version")
    child.process.wait()


def test_time_to_a_dice_by_hand():
    rows = pd.DataFrame({"data": "a", "contestant": "b", "seconds": [1.0, 2, 3, 4], "processor": [2, 4, 6, 8],
                         "slices": 9, "CSF": [0.95, 0.91, 0.8, 0.97], "grey": [0.8, 0.92, 0.99, 0.96]})
    assert race.time_to(rows, 0.9) == 2 and race.time_to(rows, 0.95, "processor") == 8
    assert race.time_to(rows, 0.96) == race.time_to(rows[:0], 0.1) == np.inf
    both = pd.concat([rows.assign(contestant="ours"), rows.assign(contestant="torch", seconds=[2, 6, 7, 8])])
    ours, torch = (line.split() for line in race.table(both).splitlines()[2:])
    assert ours == "ours 2.0 4.0 4.0 8.0 1.0 1.0 1.0 1.0".split()
    assert torch == "torch 6.0 4.0 8.0 8.0 3.0 1.0 2.0 1.0".split()


def test_dice_of_a_race_is_that_of_scores():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 3, (2, 5, 8, 8), np.uint8)
    assert np.allclose(race.dice_of(truth, found, 4), evaluate.dice(truth, found, 4), equal_nan=True)


def test_batches_of_a_race_move_image_and_label_together():
    images = np.arange(5 * 2 * 3, dtype="uint8").reshape(5, 2, 3)
    stream = race.batches_of([images, images + 100], 2, 0, mirrors=(1,))
    seen = [next(stream) for _ in range(20)]
    assert all((one + 100 == other).all() for one, other in seen)
    found = {one.tobytes() for some, _ in seen for one in some}
    assert found == {one.tobytes() for image in images for one in (image, image[::-1])}


@pytest.mark.parametrize("name", ["ours", *["torch-frame"] * bool(TORCH)])
def test_a_race_of_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda recipe: toy())
    race.load("practice", "", "filters=1 batch=8 epochs=2", tmp_path)
    other = {"python": TORCH, "file": FOLDER / "torch_unet.py"} if "torch" in name else {}
    race.child("race", name, tmp_path, tmp_path / "race.csv", 60, 16, **other)
    rows = pd.read_csv(tmp_path / "race.csv", header=None)
    assert rows[0].unique() == "practice 16/4" and rows[1].unique() == name
    assert rows[4].tolist() == [16, 32]
    assert rows.loc[:, 5:].shape[1] == 4 and (rows.loc[:, 5:].max() <= 1).all() and (rows[2].diff().dropna() >= 0).all()


def test_every_point_of_the_learning_curve_shows_as_many_slices():
    own = list(people.points(Recipe("oasis", data="x")))
    assert [(recipe.people, recipe.slices, recipe.epochs) for _, recipe in own[::2]] == [
        (3, 96, 25), (10, 320, 8), (30, 960, 3), (100, 2416, 1), (302, 2416, 1)]
    assert [(name, recipe.start) for name, recipe in own[:2]] == [
        ("random weights", None), ("synthetic brains", "synthetic")]


def test_the_learning_curve_goes_on_and_evaluates_no_test_twice(many, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(people.backend, "set_up", lambda: None)
    monkeypatch.setattr(people.datasets, "load", lambda recipe: many)
    monkeypatch.setattr(people, "Run", lambda runs, recipe, data: Run(runs, recipe, data, tiny))
    each = [(name, Recipe("practice", epochs=1, batch=4, seed=seed).change(people=n))
            for seed, name in enumerate(people.STARTS) for n in (1, 5)]  # of four people
    monkeypatch.setattr(people, "points", lambda recipe: each)
    words = ["--dataset", "practice", "--options", "", "--to", str(tmp_path)]
    people.main(words)
    rows = pd.read_csv(tmp_path / "people.csv")
    assert rows[["start", "people"]].to_numpy().tolist() == [[name, 1] for name in people.STARTS]
    run = Run(tmp_path, each[0][1], many, tiny)
    expected = evaluate.score(many.test, Predictor(run).labels(many.test)).pooled
    assert rows.loc[0, many.task.names].tolist() == pytest.approx(expected.tolist(), abs=1e-5, nan_ok=True)
    monkeypatch.setattr(people.evaluate, "score", None)
    people.main(words)  # everything is there
    assert pd.read_csv(tmp_path / "people.csv").equals(rows)
    people.main(["--draw", str(tmp_path / "people.csv"), str(tmp_path / "people.png")])
    assert (tmp_path / "people.png").read_bytes()[:4] == b"\x89PNG"


def test_errors_of_a_context_by_hand(tmp_path):
    counts = np.zeros((2, 4, 4), int)
    counts[0, 0, 1], counts[1, 1, 0], counts[1, 2, 3], counts[:, 3, 3] = 30, 50, 40, 100
    scores = evaluate.Scores("toy", context.NAMES, np.array(["a", "b"]), counts)
    row = context.row_of("mask", scores)
    assert row["context"] == "mask" and row["background / CSF"] == 40 and row["grey matter / white matter"] == 20
    assert row["white matter"] == pytest.approx(400 / 440) and row["CSF / grey matter"] == 0
    white = context.summary(scores).loc["white matter"]
    assert white["who"] == "b" and white["worst person"] == pytest.approx(200 / 240)
    assert white["pooled"] == pytest.approx(400 / 440) and white["per image"] == pytest.approx((1 + 200 / 240) / 2)
    pd.DataFrame([row | {"context": "none"}, row]).to_csv(tmp_path / "rows.csv", index=False)
    context.main(["--draw", str(tmp_path / "rows.csv"), str(tmp_path / "rows.png")])
    assert (tmp_path / "rows.png").read_bytes()[:4] == b"\x89PNG"
    drawn = context.figure(pd.DataFrame([row])).figure.axes[0]
    assert [patch.get_width() for patch in drawn.patches] == [40, 20]


def test_a_network_of_other_slices_is_scored_on_oasis_by_hand():
    labels = np.array([[[0, 0, 1, 1, 2, 3]]], np.uint8)
    found = np.eye(4, dtype=np.float32)[[[[1, 0, 0, 1, 2, 3]]]] + [0, 0, 0.1, 0]  # one wrong pixel on each side
    split = data.Split("test", labels[..., None], labels, np.array(["a"]), data.Task("toy", data.TISSUES, "made"))
    rows = onto_oasis.rows_of(split, found)
    assert rows.iloc[0, :4].tolist() == [0.5, 0.5, 1, 1]
    assert rows.iloc[1, :4].tolist() == pytest.approx([1, 2 / 3, 2 / 3, 1])
    assert rows.iloc[:, 4:].to_numpy().tolist() == rows.iloc[:, :4].to_numpy().tolist()  # there is one person


def test_the_split_that_is_asked_for_is_scored(course, capsys, monkeypatch):
    asked = []
    perfect = SimpleNamespace(probabilities=lambda images: np.eye(4)[asked.append(images[0, 0, 0, 0]) or np.zeros(
        images.shape[:3], int)])
    monkeypatch.setattr(onto_oasis.backend, "set_up", lambda: None)
    monkeypatch.setattr(onto_oasis.Predictor, "open", lambda folder, context: perfect)
    onto_oasis.main(["runs/any", "--data", str(course)])
    onto_oasis.main(["runs/any", "--data", str(course), "--split", "test"])
    assert asked == [40, 20]  # the greys of cases 402 and 441 begin there
    assert "within the true mask" in capsys.readouterr().out


def test_a_packed_run_opens_as_any_with_weights_rounded_to_float16(tmp_path):
    made = made_by_hand(tmp_path / "runs")
    made.state["history"][0] |= {f"val_dice {name}": 0.5 for name in made.task.names}
    size, packed = pack.pack(made, tmp_path / "network"), Run.open(tmp_path / "network")
    assert sorted(file.name for file in packed.folder.iterdir()) == ["model_card.md", "network.keras", "run.json"]
    assert size == (packed.folder / "network.keras").stat().st_size < 0.8 * (made.folder / "network.keras").stat().st_size
    for found, weight in zip(packed.network().get_weights(), made.network().get_weights(), strict=True):
        assert np.array_equal(found, weight.astype(np.float16).astype(np.float32))


def test_the_network_that_comes_along_is_small_synthetic_and_has_its_card():
    shipped = Run.open(SYNTHETIC)
    assert shipped.recipe.dataset == "practice" and shipped.finished and shipped.recipe.start is None
    assert (SYNTHETIC / "network.keras").stat().st_size < 8e6
    assert (SYNTHETIC / "model_card.md").read_text() == pack.card(shipped)


def test_the_network_that_comes_along_passes_on_real_brains(real_data):
    brains = datasets.load(Recipe("oasis", str(real_data / "oasis_part.zip"), slices=1, validation_slices=280, test_slices=1))
    labels = Predictor.open(SYNTHETIC).labels(brains.validation.images)
    assert evaluate.score(brains.validation, labels).pooled.min() > evaluate.NEEDED


def test_a_race_on_a_gpu_is_rehearsed_without_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "PART", 16)
    monkeypatch.setattr(gpu.backend, "set_up", lambda: None)
    gpu.main(["pack", str(tmp_path), "--dataset", "practice", "--options", "slices=24 validation_slices=8 test_slices=8"])
    assert sorted(file.name for file in tmp_path.glob("*.npz")) == [
        "test-000.npz", "train-000.npz", "train-001.npz", "validation-000.npz"]
    name, brains = gpu.unpack(tmp_path)
    whole = datasets.load(Recipe("practice", slices=24, validation_slices=8, test_slices=8))
    for ours, theirs in zip(brains.splits, whole.splits):
        assert np.array_equal(ours.images, theirs.images) and np.array_equal(ours.labels, theirs.labels)
        assert ours.subjects.tolist() == theirs.subjects.tolist() and ours.positions.tolist() == theirs.positions.tolist()
    assert (name, brains.box, brains.task) == ("practice", whole.box, whole.task)
    gpu.main(["race", str(tmp_path), "--options", "filters=1 batch=8", "--passes", "1", "--epochs", "1", "--side", "64",
              "--to", str(tmp_path / "runs" / "gpu.csv")])
    rows, said = pd.read_csv(tmp_path / "runs" / "gpu.csv"), capsys.readouterr().out
    assert rows["contestant"].tolist()[:2] == ["ours", "ours, 8 steps at once"] and (rows["slices"] == 24).all()
    assert (rows["slices a second"] > 0).all() and "of the peak; .90 after nan s" in said and "FAIL: " in said
