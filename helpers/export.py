"""A finished run in files that others open: ONNX, LiteRT, and a model card.

    python -m helpers.export RUN

Written into RUN/export: network.onnx, network.tflite, and model_card.md. Both networks map slices in the data
set's own frame, uint8 (N, H, W, C), to label probabilities, float32 (N, H, W, L), as the run predicts: by all its
networks and mirror images, but without `context`. Needed besides: pip install tf2onnx
"""

import json
import sys
from functools import reduce
from pathlib import Path

import numpy as np

from helpers import backend
from helpers.backend import keras
from helpers.data import Box, overlaps
from helpers.datasets.files import replace_whole
from helpers.predict import Predictor
from helpers.recipe import UserError
from helpers.run import NETWORK, Run, RunError

ops = keras.ops
FORMATS = {"onnx": "network.onnx", "litert": "network.tflite"}  # Keras's name of a format -> the file
CARD = Path(__file__).with_name("model_card.md")


def whole(predictor, networks):
    """A network of Keras's own layers that computes a predictor's `probabilities`, with `networks` for its networks."""
    frame, box, shape = predictor.frame, predictor.box, predictor.box.seen(predictor.size)
    image = keras.Input((*frame, predictor.channels), dtype="uint8", name="image")
    seen = box.cut(image, ops.pad)
    if shape != box.shape:  # `shrink`
        rows, columns = (np.float32(overlaps(old, new) / old) for old, new in zip(box.shape, shape))
        means = ops.einsum("ij,bjkc,lk->bilc", rows, ops.cast(seen, "float32"), columns)
        seen = ops.cast(ops.floor(means + 0.5), "uint8")
    total = 0
    for number, (network, ways) in enumerate(zip(networks, predictor.ways)):
        network.name = f"network_{number}"  # no two alike
        total += sum(reduce(ops.flip, axes, network(reduce(ops.flip, axes, seen))) for axes in ways)
    mean = total / sum(map(len, predictor.ways))
    if shape != box.shape:
        mean = ops.image.resize(mean, box.shape, "bilinear")
    tissue = Box(-box.top, -box.left, *frame).cut(mean, ops.pad)[..., 1:]
    return keras.Model(image, ops.concatenate([1 - ops.sum(tissue, -1, keepdims=True), tissue], -1))


def export(run, formats=tuple(FORMATS)):
    """Write a finished run in some formats, and its model card; their folder. RunError on what cannot be written."""
    if unfinished := [str(one.folder) for one in (run, *run.others) if not one.finished]:
        raise RunError(f"{', '.join(unfinished)}: not finished. Train it to its end first.")
    predictor, folder, text = Predictor(run), run.folder / "export", card(run)
    network = whole(predictor, [keras.saving.load_model(one.folder / NETWORK, compile=False) for one in (run, *run.others)])
    network.predict_on_batch(np.zeros((1, *network.input_shape[1:]), np.uint8))  # only what was called is exported
    try:
        folder.mkdir(exist_ok=True)
        for kind in formats:
            replace_whole(folder / FORMATS[kind], lambda part: network.export(part, format=kind, verbose=False))
        replace_whole(folder / CARD.name, lambda part: part.write_text(text))
    except Exception as error:  # converters raise nearly anything
        raise RunError(f"{run.folder} cannot be exported ({error}). It takes TensorFlow, and: pip install tf2onnx") from error
    return folder


def card(run):
    """A run's model card, a text."""
    last, verdict = run.history.loc[run.best], run.results / "verdict.json"
    dice = {"validation": {name: last[f"val_dice {name}"] for name in run.task.names},
            "test": json.loads(verdict.read_text())["dice"] if verdict.exists() and not run.recipe.context else {}}
    told = {split: ", ".join(f"{name} {value:.4f}" for name, value in own.items() if value is not None) or "not evaluated"
            for split, own in dice.items()}
    lists = {"recipe": [row[:2] for row in run.recipe.rows()], "versions": run.state["versions"].items()}
    told |= {name: ", ".join(map(" ".join, pairs)) for name, pairs in lists.items()}
    return CARD.read_text().format(run=run, labels=", ".join(run.task.names), **told)


def main(words):
    """Export the run named on a command line."""
    if len(words) != 1 or words[0].startswith("-"):
        raise SystemExit(__doc__)
    try:
        backend.set_up(precision="float32")
        print(export(Run.open(words[0])))
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(sys.argv[1:])
