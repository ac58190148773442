"""Several devices, and several processes, that train one network; virtual devices, each training a process of its own.

    python tests/test_devices.py FOLDER OPTIONS [EPOCHS]     train, or stop after some epochs
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
OPTIONS = "network=unet filters=1 epochs=3 batch=4 learning_rate=1e-3 augment=0.7"  # no dropout, which devices draw apart
BACKENDS = ["tensorflow", pytest.param("jax", marks=pytest.mark.skipif(not importlib.util.find_spec("jax"),
                                                                       reason="JAX is not installed"))]
needs_jax = BACKENDS[1].marks[0]
BRIEFLY = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def train(folder, options, epochs=99):
    """Train the toy on two virtual devices of this process, and print its rows, weights and files."""
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    from helpers import backend
    if backend.keras.config.backend() == "tensorflow":
        import tensorflow as tf
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                                   [tf.config.LogicalDeviceConfiguration()] * 2)
    import numpy as np
    from benchmarks.kills import toy

    from helpers.predict import Predictor
    from helpers.recipe import Recipe, UserError, parse
    from helpers.run import Run

    def stop(run, network):
        """Press the stop button."""
        if network is not None and len(run.history) == int(epochs):
            raise KeyboardInterrupt

    backend.set_up(0, "float32")
    try:
        run = Run(folder, Recipe("practice", **parse(options)[0]), toy()).train(stop)
    except UserError as error:
        raise SystemExit(str(error)) from None
    labels = Predictor(run).labels(toy().test) if run.finished else np.zeros(1)
    print(json.dumps([[[value for name, value in row.items() if name != "seconds"] for row in run.state["history"]],
                      np.concatenate([w.ravel() for w in run.network().get_weights()]).astype(float).tolist(),
                      int(labels.sum()), sorted(file.name for file in run.folder.iterdir())]))


@cache
def compiled():
    """A folder of what JAX compiles, for all processes of these tests; it goes when they end."""
    return tempfile.TemporaryDirectory(prefix="compiled-")


def started(backend, folder, *words, **environment):
    """Such a training, in a process of its own; what it prints goes to a file, which never keeps it waiting."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OASIS_")}
    own |= {"KERAS_BACKEND": backend, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"} | BRIEFLY | environment
    own["JAX_COMPILATION_CACHE_DIR"] = compiled().name
    printed = tempfile.TemporaryFile("w+")
    process = subprocess.Popen([sys.executable, "-W", "ignore", __file__, folder, *words], env=own, text=True,
                               stdout=printed, stderr=subprocess.PIPE)
    process.printed = printed
    return process


def result(process, seconds=300):
    """What it printed last; AssertionError with what it complained of."""
    _, wrong = process.communicate(timeout=seconds)
    assert process.returncode == 0, wrong[-2000:]
    process.printed.seek(0)
    return json.loads(process.printed.read().splitlines()[-1])


def alike(one, other):
    """Whether two trainings are the same within rounding."""
    assert one[0] == [pytest.approx(row, rel=1e-3, abs=2e-3) for row in other[0]]
    assert one[1] == pytest.approx(other[1], rel=1e-3, abs=1e-3) and one[3] == other[3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_devices_train_as_one_does_and_go_on_where_they_were(backend, tmp_path):
    runs = [started(backend, tmp_path / "one", OPTIONS), started(backend, tmp_path / "two", f"{OPTIONS} devices=2"),
            started(backend, tmp_path / "stopped", f"{OPTIONS} devices=2", "1")]
    one, two, stopped = map(result, runs)
    alike(two, one)
    assert len(stopped[0]) == 1 and stopped[0] == two[0][:1]
    again = result(started(backend, tmp_path / "stopped", f"{OPTIONS} devices=2"))
    alike(again, two)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options, sentence", [("devices=3", "devices is 3; here are 2: cpu:0, cpu:1."),
                                               ("devices=2 batch=5", "batch is 5; 2 devices share a multiple of 2.")])
def test_devices_that_cannot_share_are_told(backend, options, sentence, tmp_path):
    given = " ".join(word for word in OPTIONS.split() if word.partition("=")[0] not in options)
    process = started(backend, tmp_path, f"{given} {options}")
    assert process.communicate()[1].splitlines()[-1] == sentence and process.returncode == 1


def together(folder, *words, n=2, only=None, **environment):
    """The processes of one training, or those numbered `only`, on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    names = {"NUM_PROCESSES": str(n), "JOB_ADDRESSES": address}
    return [started("jax", folder, *words, XLA_FLAGS="", **environment, **{
        f"KERAS_DISTRIBUTION_{name}": value for name, value in (names | {"PROCESS_ID": str(k)}).items()})
        for k in (range(n) if only is None else only)]


@needs_jax
def test_two_processes_train_as_one_does_and_the_first_alone_writes(tmp_path):
    alone = started("jax", tmp_path / "alone", OPTIONS)
    both = together(tmp_path / "both", f"{OPTIONS} devices=2")
    first, second = map(result, both)
    alike(first, result(alone))
    assert first == second
    assert len(json.loads(next(tmp_path.glob("both/*/run.json")).read_text())["history"]) == 3


@needs_jax
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_does_not_answer_ends_the_other_within_a_minute_and_the_run_is_whole(fault, tmp_path):
    many = OPTIONS.replace("epochs=3", "epochs=2000")
    first, second = together(tmp_path, f"{many} devices=2")
    while not list(tmp_path.glob("*/run.json")) and first.poll() is None:
        time.sleep(0.1)
    second.send_signal(fault)
    began = time.monotonic()
    _, said = first.communicate(timeout=120)
    assert time.monotonic() - began < 60 and first.returncode not in (0, None), said[-500:]
    second.kill()
    state = json.loads(next(tmp_path.glob("*/run.json")).read_text())
    epochs = len(state["history"])
    assert epochs and {f"epoch-{epochs:03d}.keras"} <= set(state["files"])
    again = result(together(tmp_path, f"{many} devices=2", str(epochs + 1))[0])
    assert len(again[0]) == epochs + 1


@needs_jax
def test_a_process_that_does_not_come_is_not_waited_for_long(tmp_path):
    [lonely] = together(tmp_path, OPTIONS, only=[0])
    began = time.monotonic()
    _, said = lonely.communicate(timeout=120)
    assert lonely.returncode and time.monotonic() - began < 100 and not list(tmp_path.iterdir()), said


@pytest.mark.parametrize("slurm, options, devices, joined", [
    ({"NNODES": "1", "GPUS_ON_NODE": "4"}, "epochs=2", 4, False),
    ({"NNODES": "2", "GPUS_ON_NODE": "4", "ARRAY_TASK_ID": "7"}, "seed=%a batch=32", 8, True)])
def test_a_cluster_runs_the_notebook_once_a_machine(slurm, options, devices, joined, tmp_path):
    """By a SLURM that only says what it was asked."""
    script = TESTS.parent / "helpers" / "cluster.sbatch"
    assert len(script.read_text().splitlines()) <= 20
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for file, text in ((".venv/bin/papermill", 'printf "%s\\n" "$@"; env | grep ^KERAS_ | sort'),
                       ("srun", 'SLURM_PROCID=1 "$@"'), ("scontrol", "echo node-a; echo node-b")):
        (tmp_path / file).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / file).chmod(0o755)
    names = {f"SLURM_{name}": value for name, value in (slurm | {"JOB_ID": "123"}).items()}
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "KERAS"))} | names
    done = subprocess.run(["bash", script, "my data.zip", options], cwd=tmp_path, capture_output=True, text=True,
                          env=own | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    said = done.stdout.splitlines()
    assert done.returncode == 0 and "my data.zip" in said and "runs/job-123-1.ipynb" in said
    assert f"{options.replace('%a', '7')} devices={devices}" in said
    told = {"KERAS_BACKEND=jax", "KERAS_DISTRIBUTION_NUM_PROCESSES=2", "KERAS_DISTRIBUTION_JOB_ADDRESSES=node-a:20123"}
    assert told <= set(said) if joined else not told & set(said)
    assert "KERAS_DISTRIBUTION_PROCESS_ID=1" in said


if __name__ == "__main__":
    train(*sys.argv[1:])
