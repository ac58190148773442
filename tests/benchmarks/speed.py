"""What a training step and a prediction cost a slice, ours beside Keras's own layers and PyTorch, on a processor.

    python tests/benchmarks/speed.py --torch PYTHON
    python tests/benchmarks/speed.py --sweep

PYTHON has PyTorch. Each contestant is a process of its own; in every round each in turn trains one step (loss,
gradients, optimizer) and predicts one batch. Figures are medians over rounds, ratios medians of the rounds' own ratios.
PyTorch's threads wait without spinning: spun, its processor time grows with whatever else the machine does.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import product
from math import prod
from pathlib import Path
from statistics import median

ROOT, CPU_INFO = Path(__file__).resolve().parents[2], Path("/proc/cpuinfo")
OURS, STOCK, TORCH = "ours", "Keras's own", ("PyTorch GroupNorm", "PyTorch InstanceNorm")
CLOCKS, LABELS, SIDE = ("processor", "wall"), 4, 2048  # SIDE: of the matrices whose product shows the peak
SHAPES, BATCHES = ((128, 128), (176, 208), (256, 256)), (4, 8, 16, 32)  # of the sweep
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
NATIVE = CPU_INFO.exists() and any(flag in CPU_INFO.read_text() for flag in ("avx512_bf16", "amx_bf16"))
PRECISION = "mixed_bfloat16" if NATIVE else "float32"


def environment(threads=CORES):
    """Environment of a contestant."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3",
                         "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def answer(parts):
    """Do the parts whose names come in, one a line; say what each took, and what it returned."""
    for word in sys.stdin:
        began = time.process_time(), time.perf_counter()
        said = parts[word.strip()]()
        taken = time.process_time() - began[0], time.perf_counter() - began[1]
        print(json.dumps(dict(zip(CLOCKS, taken), said=said)), flush=True)


def keras_parts(name, precision, shape, batch, threads, filters):
    """What a contestant on Keras can be asked for: {word: function}."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from helpers import fast, model, train
    from helpers.backend import keras, version
    from helpers.recipe import Recipe
    import tensorflow as tf  # after Keras, which comes in quietly

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    keras.mixed_precision.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    recipe, rng = Recipe("oasis", filters=filters, batch=batch), np.random.default_rng(0)
    images, labels = (rng.integers(0, top, (batch, *shape), "uint8") for top in (256, LABELS))
    network = model.of_recipe(recipe, 1, LABELS)
    if name == OURS:
        network = fast.quick(network)
        network.batch = batch
        train.prepare(network, recipe, 100)
    else:
        network.compile(keras.optimizers.AdamW(train.schedule(100 * recipe.epochs, recipe.learning_rate),
                                               recipe.weight_decay, clipnorm=1.0), train.LOSSES[recipe.loss])

    def peak():
        """Multiply-adds a second of processor time."""
        square, taken = tf.cast(tf.random.normal((SIDE, SIDE)), precision.removeprefix("mixed_")), []
        for _ in range(6):
            began = time.process_time()
            (square @ square)[0, 0].numpy()
            taken.append(time.process_time() - began)
        return SIDE**3 / min(taken)

    built = model.of_recipe(recipe, 1, LABELS, shape)
    return {"version": lambda: f"Keras {keras.__version__} on {version()}", "peak": peak,
            "work": lambda: [multiply_adds(built), multiply_adds(fast.quick(built))],
            "train": lambda: float(network.train_on_batch(images[..., None], labels)),
            "predict": lambda: float(fast.probabilities(network, images[..., None], batch)[0, 0, 0, 0])}


def multiply_adds(network):
    """Multiply-adds of one slice through the convolutions of a network built for one size."""
    total = 0
    for layer in network.layers:
        if hasattr(layer, "kernel"):
            share = 16 / 36 if type(layer).__name__ == "UpConvolution" else 1  # a transposed convolution
            total += share * layer.output.shape[1] * layer.output.shape[2] * prod(layer.kernel.shape)
    return round(total)


class Child:
    """A contestant in a process of its own."""

    def __init__(self, name, python, settings):
        file = Path(__file__).with_name("torch_unet.py") if name in TORCH else __file__
        self.process = subprocess.Popen([python, file, "speed", name, json.dumps(settings)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=environment(settings["threads"]))

    def ask(self, word):
        """Its answer to a word: {"processor": seconds, "wall": seconds, "said": what it returned}."""
        print(word, file=self.process.stdin, flush=True)
        line = next((line for line in self.process.stdout if line.startswith("{")), None)
        if line is None:
            raise SystemExit(f"This ended without an answer: {' '.join(map(str, self.process.args))}")
        return json.loads(line)


def rounds_of(children, rounds, parts=("train", "predict")):
    """The first calls {(part, name): answer}, and all that is measured {(part, name): [answer a round]}."""
    keys = [(part, name) for part in parts for name in children]
    first = {(part, name): children[name].ask(part) for part, name in keys}
    for part, name in keys:
        children[name].ask(part)  # what else is done once, such as taking memory, is in neither
    keys += [("peak", OURS)]
    answers = {key: [] for key in keys}
    for part, name in rounds * keys:
        answers[part, name].append(children[name].ask(part))
    return first, answers


def ratio(answers, others, clock):
    """Median over rounds of one contestant's cost over another's in the same round."""
    return median(own[clock] / other[clock] for own, other in zip(answers, others, strict=True))


def table(part, first, answers, batch):
    """A row a contestant: its cost a slice in one part, its ratios to the others, its first call."""
    import pandas as pd

    rows, those = {}, {name: own for (which, name), own in answers.items() if which == part}
    for name, own in those.items():
        rows[name] = {("ms", clock): 1000 * median(one[clock] for one in own) / batch for clock in CLOCKS}
        rows[name] |= {(f"/ {base}", clock): ratio(own, others, clock) for base, others in those.items()
                       if base != OURS for clock in CLOCKS}
        rows[name] |= {("first call, s", clock): first[part, name][clock] for clock in CLOCKS}
    return pd.DataFrame(rows).T.round(3).to_string()


def floor(work, answers, batch):
    """Sentences: what a slice costs at least, at the measured peak, and the share of the peak that ours reaches."""
    peaks = [one["said"] for one in answers["peak", OURS]]
    yield (f"A forward pass: {work[0] / 1e9:.3f} G multiply-adds a slice; {work[1] / 1e9:.3f} G with transposed "
           "convolutions for up-convolutions, as ours has them. Training: three times that.")
    yield f"Peak: {median(peaks) / 1e9:.0f} G multiply-adds a second of processor time ({SIDE}x{SIDE} matrices)."
    for part, times in (("train", 3), ("predict", 1)):
        share = median(times * batch * work[1] / peak / own["processor"]
                       for peak, own in zip(peaks, answers[part, OURS], strict=True))
        least = 1000 * times * work[1] / median(peaks)
        yield f"{part}: {least:.1f} ms of processor time a slice at the peak; ours reaches {share:.0%} of it."


def arguments(words=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in (("torch", "", "a Python that has PyTorch"), ("batch", 8, "slices in a step"),
                                ("rounds", 6, "that are measured"), ("threads", CORES, "of a contestant"),
                                ("filters", 16, "of the network's first level")):
        parser.add_argument(f"--{name}", default=default, type=type(default), help=text)
    parser.add_argument("--shape", nargs=2, type=int, default=[176, 208], help="of a slice, multiples of 16")
    parser.add_argument("--precision", choices=("mixed_bfloat16", "float32"), default=PRECISION, help="of the layers")
    parser.add_argument("--sweep", action="store_true", help="ours alone in training, at several shapes and batches")
    return parser.parse_args(words)


def measure(python, rounds, settings):
    """Print what ours costs, Keras's own layers and, where a Python that has it is given, PyTorch."""
    pythons = dict.fromkeys((OURS, STOCK), sys.executable) | (dict.fromkeys(TORCH, python) if python else {})
    children = {name: Child(name, python, settings) for name, python in pythons.items()}
    print(*(f"{name}: {child.ask('version')['said']}" for name, child in children.items()), sep="; ")
    first, answers = rounds_of(children, rounds)
    for part in ("train", "predict"):
        print("\n{}, {}x{}, batch {}, a slice:".format(part, *settings["shape"], settings["batch"]),
              table(part, first, answers, settings["batch"]), sep="\n")
    print("", *floor(children[OURS].ask("work")["said"], answers, settings["batch"]), sep="\n")
    for child in children.values():
        child.process.communicate()


def sweep(rounds, settings):
    """Print what ours costs in training by shape and batch, each in a process of its own."""
    import pandas as pd

    found = {clock: pd.DataFrame(index=["{}x{}".format(*shape) for shape in SHAPES], columns=BATCHES, dtype=float)
             for clock in CLOCKS}
    for shape, batch in product(SHAPES, BATCHES):
        ours = Child(OURS, sys.executable, settings | {"shape": shape, "batch": batch})
        costs = rounds_of({OURS: ours}, rounds, ["train"])[1]["train", OURS]
        ours.process.communicate()
        for clock, table in found.items():
            table.loc["{}x{}".format(*shape), batch] = ms = 1000 * median(one[clock] for one in costs) / batch
            print("{}x{}, batch {}: {:.1f} ms a slice, {}".format(*shape, batch, ms, clock), flush=True)
    for clock, table in found.items():
        per_pixel = table.div([height * width / 1e6 for height, width in SHAPES], axis=0)
        print(f"\ntraining, {clock} time, ms a slice (and a megapixel), by batch:",
              table.round(1).astype(str) + " (" + per_pixel.round().astype(int).astype(str) + ")", sep="\n")


def main(words=None):
    """Say what the machine is, and measure."""
    settings = vars(arguments(words))
    python, rounds, whole = (settings.pop(name) for name in ("torch", "rounds", "sweep"))
    print(f"avx512_bf16 or amx_bf16: {'yes' if NATIVE else 'no'}; {CORES} cores, load {os.getloadavg()[0]:.1f}; "
          f"{settings['threads']} threads, {settings['precision']}, {rounds} rounds", flush=True)
    sweep(rounds, settings) if whole else measure(python, rounds, settings)


if __name__ == "__main__":
    if sys.argv[1:2] == ["speed"]:
        answer(keras_parts(sys.argv[2], **json.loads(sys.argv[3])))
    else:
        main()
