"""Exported files answer as the run predicts, and say what they are."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from benchmarks.kills import toy

from helpers import export
from helpers.data import Box
from helpers.predict import Predictor
from helpers.recipe import Recipe
from helpers.run import Run, RunError

ROOT = Path(__file__).parents[1]
needs = {name: pytest.mark.skipif(not all(map(importlib.util.find_spec, [name, *more])), reason=f"{name} is not installed")
         for name, *more in (("onnxruntime", "tf2onnx"), ("ai_edge_litert",))}


def answer(file, images):
    """What an exported file answers, by the library that its users have."""
    if file.suffix == ".onnx":
        import onnxruntime
        session = onnxruntime.InferenceSession(file)
        return session.run(None, {session.get_inputs()[0].name: images})[0]
    from ai_edge_litert.interpreter import Interpreter
    engine = Interpreter(str(file))
    [given], [found] = engine.get_input_details(), engine.get_output_details()
    engine.resize_tensor_input(given["index"], images.shape)
    engine.allocate_tensors()
    engine.set_tensor(given["index"], images)
    engine.invoke()
    return engine.get_tensor(found["index"])


def in_frame(folder, box, frame=(40, 48), **options):
    """A finished run whose slices have another frame than their box."""
    data = toy()
    splits = [replace(split.take(slice(0, 4)), images=np.resize(split.images, (4, *frame, 1)),
                      labels=np.resize(split.labels, (4, *frame))) for split in data.splits]
    data = replace(data, train=splits[0], validation=splits[1], test=splits[2], box=box)
    made = Run(folder, Recipe("practice", network="unet", filters=2, **options), data)
    network, rng = made.untrained(), np.random.default_rng(0)
    network.set_weights([w + rng.normal(0, 0.3, w.shape) for w in network.get_weights()])
    made.folder.mkdir(parents=True)
    made.commit(network, {"val_worst dice": 0.5, **{f"val_dice {name}": 0.5 for name in made.task.names}, "seconds": 1.0})
    made.finish()
    return made


IMAGES = np.random.default_rng(1).integers(0, 256, (3, 40, 48, 1), np.uint8)


@pytest.mark.parametrize("box, options", [(Box(8, 0, 16, 48), {}), (Box(-4, 0, 48, 48), {"mirrors": False}),
                                          (Box(0, 0, 32, 48), {"size": 32}), (Box(4, 8, 32, 32), {"networks": 2})])
def test_the_exported_network_is_the_predictor(box, options, tmp_path):
    run = in_frame(tmp_path, box, **options)
    if "networks" in options:
        in_frame(tmp_path, box, seed=1)
        run = Run.open(run.folder)
    predictor = Predictor(run)
    networks = [keras.saving.load_model(one.folder / "network.keras", compile=False) for one in (run, *run.others)]
    found = export.whole(predictor, networks).predict_on_batch(IMAGES)
    assert found.shape == (3, 40, 48, 4) and np.allclose(found.sum(-1), 1, atol=1e-5)
    assert np.allclose(found, predictor.probabilities(IMAGES), atol=1e-3)
    assert np.ptp(found[..., 2]) > 0.01  # it says something


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=needs["onnxruntime"]),
                                  pytest.param("litert", marks=needs["ai_edge_litert"])])
def test_a_file_answers_as_keras_does(kind, tmp_path):
    run = in_frame(tmp_path, Box(8, 0, 16, 48))
    folder = export.export(Run.open(run.folder), [kind])
    wanted = Predictor(run).probabilities(IMAGES)
    found = answer(folder / export.FORMATS[kind], IMAGES)
    assert found.dtype == np.float32 and np.allclose(found, wanted, atol=1e-3)
    assert (found.argmax(-1) == wanted.argmax(-1)).mean() > 0.999
    with pytest.raises(Exception, match="(?i)dimension|shape"):
        answer(folder / export.FORMATS[kind], np.repeat(IMAGES, 3, -1))
    assert not list(folder.glob("part-*"))


def test_the_card_says_what_it_is_and_what_it_is_not_for(tmp_path):
    run = in_frame(tmp_path, Box(8, 0, 16, 48))
    text = export.card(Run.open(run.folder))
    for word in (run.name, "toy (synthetic)", "uint8 (N, 40, 48, 1)", "filters 2", "validation background 0.5000",
                 "test not evaluated", "must not be used for diagnosis", "do not republish", keras.__version__):
        assert word in text
    run.results.mkdir(parents=True)
    (run.results / "verdict.json").write_text(json.dumps({"dice": {"CSF": 0.91234, "white matter": None}}))
    assert "test CSF 0.9123." in export.card(run)


def test_what_cannot_be_exported_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    run = in_frame(tmp_path, Box(8, 0, 16, 48))
    monkeypatch.setattr(keras.Model, "export", lambda self, part, **options: part.write_text("half") and 1 / 0)
    with pytest.raises(RunError, match="cannot be exported .*pip install tf2onnx"):
        export.export(run, ["onnx"])
    assert not list((run.folder / "export").iterdir())


@pytest.mark.parametrize("words, said", [([], "A finished run in files"), (["--help"], "RUN/export"),
                                         (["nowhere"], "nowhere is not the folder of a run")])
def test_the_command_says_what_it_needs(words, said):
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "helpers.export", *words], capture_output=True, text=True,
                          cwd=ROOT)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
