"""Runs of a tiny network on toy slices; one of the Improved U-Net."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from benchmarks.kills import result_of, tiny, toy

from helpers import evaluate, model, run, train
from helpers.data import Box, Dataset
from helpers.predict import Predictor
from helpers.recipe import Recipe
from helpers.run import Run, RunError

KILLED = Recipe("practice", epochs=5, batch=4, augment=0.7)  # as in benchmarks/kills.py
# steps before and after the commit of epoch 2, and between the finished network's file and the state that names it
KILLS = {("float32", 18): 1, ("mixed_float16", 19): 2, ("mixed_float16", 62): 5}


def run_of(folder, dataset=None, build=tiny, name="practice", **options):
    """A run of the tiny network on toy slices."""
    return Run(folder, Recipe(name, **{"epochs": 1, "batch": 8} | options), dataset or toy(), build)


def made_by_hand(folder, finish=True, build=model.of_recipe, **options):
    """A run of a small U-Net as if it had been trained: its first weights, changed."""
    made = Run(folder, Recipe("practice", **{"network": "unet", "filters": 1} | options), toy(), build)
    network, rng = made.untrained(), np.random.default_rng(0)
    network.set_weights([w + rng.normal(0, 0.1, w.shape) for w in network.get_weights()])
    made.folder.mkdir(parents=True)
    made.commit(network, {"loss": 1.0, "val_worst dice": 0.5, "val_dice CSF": 0.5, "seconds": 1.0})
    if finish:
        made.finish()
    return made


def stop(*args):
    """Somebody presses the stop button."""
    raise KeyboardInterrupt


def no_locks(*args):
    """A drive on which files cannot be locked."""
    raise OSError("not supported")


def stop_after(epochs):
    """A `progress` that presses the stop button after some epochs."""
    return lambda run, network: stop() if network is not None and len(run.history) == epochs else None


def outcome(trained):
    """Rows without their seconds, the best epoch, the weights as they are read back, the files."""
    trained = Run(trained.folder.parent, trained.recipe, trained.dataset, trained.build)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in trained.state["history"]]
    return (rows, trained.best, [w.tolist() for w in trained.network().get_weights()],
            sorted(file.name for file in trained.folder.iterdir()))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """{(policy, step): (folder, exit code to come)} of trainings in processes of their own, killed while others run."""
    folders = {kill: tmp_path_factory.mktemp("killed") for kill in KILLS}
    with ThreadPoolExecutor(2) as pool:
        yield {(policy, step): (folder, pool.submit(result_of, str(folder), step, policy))
               for (policy, step), folder in folders.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, killed):
    """A function: the outcome, under a policy, of a run that nothing stops; others are killed meanwhile."""
    found = {}

    def train_whole(policy):
        """Train it once, under the policy that is in force."""
        if policy not in found:
            found[policy] = outcome(Run(tmp_path_factory.mktemp("whole"), KILLED, toy(), tiny).train())
        return found[policy]

    return train_whole


@pytest.fixture
def policy(request):
    """A policy that is in force."""
    keras.mixed_precision.set_dtype_policy(request.param)
    yield request.param
    keras.mixed_precision.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OASIS_RUNS", raising=False)
        return run_of(tmp_path_factory.mktemp("finished")).train()


def test_only_what_a_run_is_made_of_is_left(finished):
    assert sorted(file.name for file in finished.folder.iterdir()) == ["history.csv", "lock", "network.keras",
                                                                       "run.json"]
    assert (finished.folder / "lock").read_text() == "" and finished.finished and finished.best == 0
    state = json.loads((finished.folder / "run.json").read_text())
    assert list(state["files"]) == ["network.keras"] and "data" not in state["recipe"]
    assert finished.name == finished.folder.name and finished.history.index.tolist() == [0]


def test_a_finished_run_is_read_back_without_training(finished, monkeypatch, capsys):
    monkeypatch.setattr(keras.Model, "fit", stop)
    told = []
    again = run_of(finished.folder.parent).train(lambda *what: told.append(what))
    assert told == [(again, None)] and "already trained" in capsys.readouterr().out
    assert outcome(again) == outcome(finished)
    opened = Run.open(finished.folder)
    assert opened.history.equals(finished.history) and opened.recipe == finished.recipe
    assert (opened.task, opened.box, opened.frame) == (toy().task, Box(0, 0, 32, 32), (32, 32))


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(policy, whole, tmp_path, capsys):
    first = Run(tmp_path, KILLED, toy(), tiny).train(stop_after(2))
    assert len(first.history) == 2 and not first.finished and "Stopped: the best weights" in capsys.readouterr().out
    assert set(first.state["files"]) | {"history.csv", "lock", "run.json"} == {f.name for f in first.folder.iterdir()}
    again = Run(tmp_path, KILLED, toy(), tiny).train()
    assert "Going on after epoch 2 of 5." in capsys.readouterr().out
    assert outcome(again) == whole(policy)


@pytest.mark.parametrize("policy, step", KILLS, indirect=["policy"])
def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(policy, step, killed, whole):
    folder, process = killed[policy, step]
    assert process.result() == (-signal.SIGKILL, None)
    run = Run(folder, KILLED, toy(), tiny)
    assert len(run.history) == KILLS[policy, step] and not run.finished
    assert (run.folder / "network.keras").exists() == (KILLS[policy, step] == 5)
    assert outcome(run.train()) == whole(policy)


def test_the_stop_button_before_anything_was_learned(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Clock, "on_epoch_begin", stop)
        run_of(tmp_path).train()
    assert run_of(tmp_path).best is None
    with pytest.raises(RunError, match="has no whole epoch yet: train it first"):
        run_of(tmp_path).network()


def test_several_networks_have_seeds_in_a_row_and_are_averaged(tmp_path, capsys):
    both = run_of(tmp_path, networks=2)
    both.train(stop_after(1))  # of the first, whose last epoch is then there, but not its end
    assert not both.finished and not both.others[0].folder.exists()
    both.train()
    assert [run.recipe.seed for run in (both, *both.others)] == [0, 1] and both.others[0].finished
    assert both.folder == run_of(tmp_path).folder and both.others[0].folder == run_of(tmp_path, seed=1).folder
    images = toy().test.images
    each = [np.asarray(run.network()(images)) for run in (both, *both.others)]
    assert np.abs(each[0] - each[1]).max() > 0.1
    assert np.allclose(Predictor(both, mirrors=False).probabilities(images), np.mean(each, axis=0), atol=1e-5)


def test_what_decides_the_weights_names_the_folder(tmp_path, monkeypatch):
    names = {"first": run_of(tmp_path).folder}
    same = [dict(mirrors=False), dict(networks=2), dict(test_slices=1), dict(slices=99),
            dict(validation_slices=99), dict(people=9), dict(data="elsewhere"), dict(machine="GPU"), dict(size=32)]
    assert {run_of(tmp_path, **options).folder for options in same} == {names["first"]}
    for option, value in dict(network="unet", filters=8, dropout=0.5, epochs=2, batch=4, learning_rate=1e-4, augment=0.5,
                              weight_decay=0, loss="dice", seed=1).items():
        names[option] = run_of(tmp_path, **{option: value}).folder
    names["oversample"] = run_of(tmp_path, name="nuclei", oversample=2).folder
    data = toy()
    data.validation.labels[0, 0, 0] ^= 1
    names["another pixel"] = run_of(tmp_path, data).folder
    names["box"] = run_of(tmp_path, replace(toy(), box=Box(0, 0, 16, 32))).folder
    names["size"] = run_of(tmp_path, replace(toy(), box=Box(-16, 0, 64, 32)), size=32).folder
    names["unshrunk"] = run_of(tmp_path, replace(toy(), box=Box(-16, 0, 64, 32))).folder
    names["build"] = run_of(tmp_path, build=stop).folder
    names["start"] = run_of(tmp_path, start=str(made_by_hand(tmp_path).folder)).folder
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    names["precision"] = run_of(tmp_path).folder
    keras.mixed_precision.set_dtype_policy("float32")
    with monkeypatch.context() as patch:
        patch.setattr(run, "CODE", run.CODE | {"helpers.model": "changed"})
        names["code"] = run_of(tmp_path).folder
    codes = {folder.name.partition("-")[2] for folder in names.values()}
    assert len(codes) == len(names) and names["first"].name.startswith("practice-")
    assert run_of(tmp_path, name="lgg", mirrors=False).name[-6:] == names["first"].name[-6:]
    data = toy()
    data.test.labels[:] = 0  # the test decides nothing
    assert run_of(tmp_path, data).folder == names["first"]


def test_the_environment_wins_over_runs_and_says_so(tmp_path, monkeypatch, capsys):
    name = run_of(tmp_path).name
    monkeypatch.setenv("OASIS_RUNS", str(tmp_path / "other"))
    assert not capsys.readouterr().out and run_of(tmp_path, networks=2).folder == tmp_path / "other" / name
    assert capsys.readouterr().out == f"RUNS is taken from the environment: {tmp_path / 'other'}, not {tmp_path}.\n"
    assert run_of(tmp_path / "other").name == name and not capsys.readouterr().out


def test_a_batch_too_large_for_memory_is_said(tmp_path, monkeypatch):
    def full(*_, **__):
        raise type("ResourceExhaustedError", (Exception,), {})("OOM when allocating tensor")

    monkeypatch.setattr(keras.Model, "fit", full)
    with pytest.raises(RunError, match="A batch of 4 slices does not fit .* Set batch=2"):
        Run(tmp_path, Recipe("practice", batch=4), toy(), tiny).train()


def test_code_is_known_by_what_it_does():
    code = "'''Why.'''\ndef f(x, a=[]):\n    return f'{x} {a[0]!r}', None\n"
    same = "def f(x,\n      a=[]):  # what\n  \"It's \\\"so\\\"; f()).\"\n  return (f\"{x} {a[0]!r}\", None)\n"
    assert run.code_of(code) == run.code_of(same) == "a02a3918"  # in every version of Python
    others = [code.replace(*change) for change in (("a[0]", "a[1]"), ("None", "0"), ("!r", ""), ("x,", "y, x,"))]
    assert len({run.code_of(other) for other in [code, *others]}) == 5
    assert list(run.CODE) == ["helpers.model", "helpers.fast", "helpers.train", "helpers.preprocess"]


def test_a_frame_that_is_no_multiple_of_16_is_remembered(tmp_path):
    odd = Dataset(*(replace(split, images=split.images[:, :20, :30], labels=split.labels[:, :20, :30])
                    for split in toy().splits))
    made = run_of(tmp_path, odd)
    made.folder.mkdir()
    made.commit(made.untrained(), {"val_worst dice": 0.5, "val_dice a": 0.5})
    assert Run.open(made.folder).box == odd.box == Box(-6, -1, 32, 32) and Run.open(made.folder).frame == (20, 30)


def test_ties_of_the_worst_label_are_broken_by_the_mean_then_by_the_earlier(tmp_path):
    made, best = run_of(tmp_path), []
    made.folder.mkdir()
    for worst, a, b in ((0.0, 0.2, float("nan")), (0.0, 0.1, 0.5), (0.0, 0.5, 0.1), (0.1, 0.1, 0.1), (0.1, 0.1, 0.1)):
        made.commit(made.untrained(), {"val_worst dice": worst, "val_dice a": a, "val_dice b": b})
        best.append(made.best)
    assert best == [0, 1, 1, 3, 3]
    assert {f.name for f in made.folder.glob("epoch-*")} == {"epoch-004.keras", "epoch-005.keras"}


@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_weights_that_are_damaged_or_missing_are_refused(finished, tmp_path, damage):
    broken = shutil.copytree(finished.folder, tmp_path / finished.folder.name)
    half = made_by_hand(tmp_path / "half", finish=False, build=tiny)
    for file in (broken / "network.keras", half.folder / "epoch-001.keras"):
        file.write_bytes(file.read_bytes()[:-1]) if damage == "cut short" else file.unlink()
    with pytest.raises(RunError, match="network.keras is missing or damaged. Put it back, or delete the folder"):
        run_of(tmp_path).network()
    with pytest.raises(RunError, match="epoch-001.keras is missing or damaged"):
        Run(tmp_path / "half", half.recipe, toy(), tiny).train()


def test_folders_that_are_no_runs_are_refused(finished, tmp_path):
    with pytest.raises(RunError, match="is not the folder of a run: it has no run.json"):
        Run.open(tmp_path)
    broken = shutil.copytree(finished.folder, tmp_path / finished.folder.name)
    state = json.loads((broken / "run.json").read_text())
    for text, sentence in ((json.dumps(state | {"version": 9}), r"\(its version is 9, this project's 2\)"),
                           ("[]", "TypeError"), ("{", "JSONDecodeError"), ("{}", "KeyError")):
        (broken / "run.json").write_text(text)
        with pytest.raises(RunError, match=f"run.json cannot be used.*{sentence}"):
            run_of(tmp_path)


def test_a_recipe_of_another_version_is_read_or_refused_by_a_sentence(finished, tmp_path):
    other = shutil.copytree(finished.folder, tmp_path / "other")
    state = json.loads((other / "run.json").read_text())
    del state["recipe"]["mirrors"]
    (other / "run.json").write_text(json.dumps(state))
    assert Run.open(other).recipe == finished.recipe
    state["recipe"]["width"] = 3
    (other / "run.json").write_text(json.dumps(state))
    with pytest.raises(RunError, match="run.json cannot be used .*no option width.*Choose another folder"):
        Run.open(other)


def test_the_folder_alone_opens_what_it_was_trained_with(finished, tmp_path, monkeypatch):
    """Whatever the code builds by now; what is not finished needs the code that began it."""
    opened, images = Run.open(finished.folder), toy().test.images
    assert np.allclose(opened.network()(images), finished.network()(images), atol=1e-6)
    half = Run.open(made_by_hand(tmp_path, finish=False).folder)
    assert half.network().name == "unet"
    monkeypatch.setattr(run, "CODE", {})
    odd = made_by_hand(tmp_path / "odd", finish=False, build=tiny)
    for folder, build in ((half.folder, "of_recipe"), (odd.folder, "tiny")):
        with pytest.raises(RunError, match=f"was made by other code, build={build}"):
            Run.open(folder).network()
        monkeypatch.undo()


def test_the_folder_alone_predicts_as_it_was_last_asked_to(tmp_path, capsys, monkeypatch):
    first = made_by_hand(tmp_path, networks=3)
    assert json.loads((first.folder / "run.json").read_text())["others"] == [other.name for other in first.others]
    with pytest.raises(RunError, match=f"{first.others[0].name} is not the folder of a run.*{first.name} is averaged"):
        Run.open(first.folder)
    for seed in (1, 2):
        made_by_hand(tmp_path, seed=seed)
    monkeypatch.chdir(first.folder)
    assert [other.recipe.seed for other in Run.open(".").others] == [1, 2]
    assert len(Predictor.open(first.folder).networks) == 3
    again = Run(tmp_path, first.recipe.change(networks=2, mirrors=False), toy()).train()
    alone = Run.open(again.folder)
    assert [other.recipe.seed for other in alone.others] == [1] and not alone.recipe.mirrors and alone.finished
    assert Run.open(again.others[0].folder).recipe.mirrors  # is asked otherwise where it is the first


HOLD = "import fcntl, sys; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX); print(); input()"


def test_a_run_that_another_process_trains_is_refused(tmp_path):
    mine = run_of(tmp_path)
    mine.folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLD, mine.folder / "lock"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        began = time.time()
        with pytest.raises(RunError, match="is being trained by another process"):
            mine.train()
        assert time.time() - began < 1
        other.communicate(b"\n")
    with mine.locked() as renew:
        before = (mine.folder / "lock").read_text()
        assert before == f"{socket.gethostname()} {time.time():.0f}"[:-1] + before[-1]
        renew()
        assert len((mine.folder / "lock").read_text().split()) == 2


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("host, minutes, refused", [
    ("elsewhere", 20, True), ("elsewhere", 40, False), (socket.gethostname(), 0, False)])
def test_a_lock_counts_while_it_is_fresh_and_anothers(host, minutes, refused, locks, tmp_path, monkeypatch):
    """Whether or not the drive can lock files; one of this machine was left by a process that is dead."""
    mine = run_of(tmp_path)
    mine.folder.mkdir()
    (mine.folder / "lock").write_text(f"{host} {time.time() - 60 * minutes - 30:.0f}")
    if not locks:
        monkeypatch.setattr(run.fcntl, "flock", no_locks)
    if refused:
        with pytest.raises(RunError, match=f"was being trained on {host} 20 min .. s ago. If that is over, delete"):
            mine.train()
    else:
        with mine.locked():
            assert (mine.folder / "lock").read_text().startswith(socket.gethostname())


def test_what_another_process_finished_meanwhile_is_read_back(finished, tmp_path, monkeypatch):
    mine = run_of(tmp_path)
    shutil.copytree(finished.folder, mine.folder)
    monkeypatch.setattr(keras.Model, "fit", stop)
    assert mine.train().finished and outcome(mine) == outcome(finished)


def test_a_loss_that_is_no_number_stops_and_the_epochs_before_stay(tmp_path, monkeypatch):
    commit = run.Keeper.on_epoch_end

    def spoil(keeper, epoch, logs=None):
        commit(keeper, epoch, logs)
        keeper.model.set_weights([w * float("nan") for w in keeper.model.get_weights()])

    monkeypatch.setattr(run.Keeper, "on_epoch_end", spoil)
    with pytest.raises(RunError, match="is no number in epoch 2.*Lower the learning_rate"):
        run_of(tmp_path, epochs=3).train()
    left = run_of(tmp_path, epochs=3)
    assert len(left.history) == 1 and np.isfinite(left.network().get_weights()[0]).all()


def test_a_run_starts_at_the_best_weights_of_another_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run.datasets, "load", lambda recipe: toy() if recipe.dataset == "varied" else None)
    monkeypatch.setattr(Recipe, "starting", lambda self: Recipe("varied", epochs=1, batch=8, learning_rate=0.1))
    slow = dict(learning_rate=1e-7, weight_decay=0.0, batch=16)
    second = run_of(tmp_path, start="varied", **slow).train()
    assert second.start.folder.name.startswith("varied-") and second.start.finished
    assert capsys.readouterr().out.count("Training starts from the best weights of") == 1
    ends, begins, alone = (network.get_weights()[0] for network in (
        second.network(), second.start.network(), second.untrained()))
    assert np.allclose(ends, begins, atol=1e-5) and not np.allclose(ends, alone, atol=1e-2)


def test_a_start_that_is_stopped_is_no_start(tmp_path, monkeypatch):
    monkeypatch.setattr(run.datasets, "load", lambda recipe: toy())
    monkeypatch.setattr(Recipe, "starting", lambda self: Recipe("varied", epochs=2, batch=8))
    second = run_of(tmp_path, start="varied")
    monkeypatch.setattr(train.Clock, "on_epoch_begin", lambda self, epoch, logs=None: stop() if epoch else setattr(
        self, "began", 0))
    with pytest.raises(RunError, match="varied-.* is not finished: train it to its end, then start from it"):
        second.train()
    assert len(second.start.history) == 1 and not second.state["history"]


def test_a_run_starts_from_a_folder_that_is_finished_and_fits(tmp_path):
    first = made_by_hand(tmp_path)
    options = dict(build=model.of_recipe, start=str(first.folder), network="unet", seed=7)
    second = run_of(tmp_path, filters=1, **options)
    network = second.untrained()
    run.load_start(network, second.start)
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), first.network().get_weights()))
    wide = run_of(tmp_path, filters=2, **options)
    with pytest.raises(RunError, match="is another: 7,698, not 30,5.* weights.*same network, filters, channels and"):
        run.load_start(wide.untrained(), wide.start)
    half = made_by_hand(tmp_path / "half", finish=False)
    with pytest.raises(RunError, match="is not finished: train it to its end"):
        run_of(tmp_path, start=str(half.folder)).train()
    with pytest.raises(RunError, match="is not the folder of a run"):
        run_of(tmp_path, start=str(tmp_path))


def test_a_run_starts_from_the_network_that_comes_along(tmp_path):
    second = run_of(tmp_path, build=model.of_recipe, start="synthetic", network="improved_unet", filters=16)
    network = second.untrained()
    run.load_start(network, second.start)
    shipped = keras.saving.load_model(run.SYNTHETIC / "network.keras", compile=False)
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), shipped.get_weights(), strict=True))
    narrow = run_of(tmp_path, build=model.of_recipe, start="synthetic", network="improved_unet", filters=8)
    with pytest.raises(RunError, match="network is another: .* weights. Both need the same network, filters"):
        run.load_start(narrow.untrained(), narrow.start)


def test_results_of_other_options_lie_side_by_side(finished):
    folder = finished.folder / "results"
    thing = SimpleNamespace(files=lambda: {"a.csv": "1"})
    assert finished.keep(thing) is thing and (folder / "1-network-mirrors" / "a.csv").read_text() == "1"
    picture = SimpleNamespace(png=lambda: b"a picture")
    other = run_of(finished.folder.parent, networks=2, mirrors=False)
    other.recipe = Recipe("oasis", networks=2, mirrors=False, context="mask")
    assert other.keep(picture, "curves") is picture and other.folder == finished.folder
    assert (folder / "2-networks-mask" / "curves.png").read_text() == "a picture"
    assert finished.summary() == {"weights": 228, "seconds an epoch": round(finished.history["seconds"][0], 1)}
    shutil.rmtree(folder)


def shallow(recipe, channels, n_labels):
    """The Improved U-Net, of 3 levels: it compiles twice as fast."""
    return model.improved_unet((None, None, channels), n_labels, recipe.filters, recipe.dropout, levels=3)


ALONE = """
import sys, keras, numpy
try:
    import helpers
    sys.exit("helpers is here")
except ImportError:
    network = keras.saving.load_model(sys.argv[1])
numpy.save(sys.argv[3], network.predict(numpy.load(sys.argv[2]), verbose=0))
"""


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_the_improved_unet_learns_and_opens_with_keras_alone(policy, tmp_path):
    data = toy()
    made = Run(tmp_path, Recipe("practice", filters=8, epochs=8, batch=2, learning_rate=0.01, dropout=0.1), data, shallow)
    made.train()
    history = made.history
    assert history["loss"].iloc[-1] < 0.5 * history["loss"][0]
    labels = Predictor(made, mirrors=False).labels(data.validation)
    scores = evaluate.score(data.validation, labels)
    assert scores.pooled.min() > 0.9
    assert scores.pooled.min() == pytest.approx(history["val_worst dice"].max(), abs=5e-3)
    np.save(tmp_path / "images.npy", data.test.images)
    subprocess.run([sys.executable, "-I", "-c", ALONE, made.folder / "network.keras", tmp_path / "images.npy",
                    tmp_path / "found.npy"], check=True)
    keras.mixed_precision.set_dtype_policy("float32")
    twin = shallow(made.recipe, 1, 4)
    twin.load_weights(made.folder / "network.keras")
    assert np.allclose(np.load(tmp_path / "found.npy"), np.asarray(twin(data.test.images)), atol=1e-5)


def test_a_network_that_a_newer_keras_saved_is_refused_in_one_sentence(tmp_path, monkeypatch):
    run = made_by_hand(tmp_path)
    monkeypatch.setattr(keras.saving, "load_model", lambda *args, **options: keras.initializers.HeNormal(a_new_one=None))
    with pytest.raises(RunError, match=r"network.keras cannot be read \(.*a_new_one.*\). Close it elsewhere, or update Keras.$"):
        Run.open(run.folder).network()


def test_a_mistake_in_ones_own_network_is_not_called_a_damaged_file(tmp_path):
    def mistaken(recipe, channels, n_labels):
        raise TypeError("my own mistake")

    mistaken.__qualname__ = model.of_recipe.__qualname__  # so that it is built for the file that is there
    again = made_by_hand(tmp_path)
    again.build, again.opened = mistaken, (None, None)
    with pytest.raises(TypeError, match="^my own mistake$"):
        again.network()
