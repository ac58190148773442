"""Machines that fail: disks that fill or cannot be written, run folders damaged, two processes, clocks, no home."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks.kills import tiny, toy

from helpers import datasets, scan
from helpers.predict import Predictor
from helpers.recipe import Recipe
from helpers.run import Run, RunError

RECIPE = Recipe("practice", epochs=3, batch=4, dropout=0.1)
ROOT = Path(__file__).parents[1]
DAMAGES = {"cut": lambda file: file.write_bytes(file.read_bytes()[:-7]), "gone": Path.unlink,
           "empty": lambda file: file.write_bytes(b""), "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size))}
# A training in a process of its own: ours beside another's.
OURS = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from test_machines import RECIPE, Run, tiny, toy, weights_of
print(weights_of(Run({folder!r}, RECIPE, toy(), tiny).train()))
"""


def of(folder, recipe=RECIPE):
    """A run of the tiny network on toy slices."""
    return Run(folder, recipe, toy(), tiny)


def weights_of(trained):
    """The kept weights, as one list."""
    return np.concatenate([w.ravel() for w in trained.network().get_weights()]).tolist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run that nothing disturbed; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OASIS_RUNS", raising=False)
        return of(tmp_path_factory.mktemp("whole")).train()


@pytest.fixture
def disk(tmp_path):
    """A function: mount a disk of some kB, or change it ("size=64k", "ro"); it has a folder."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        """Mount it, or again otherwise."""
        words = "mount -t tmpfs tmpfs".split() if not place.is_mount() else ["mount"]
        again = "remount," if place.is_mount() else ""
        done = subprocess.run([*words, place, "-o", again + ",".join(options)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("size", [4, 20, 36, 44, 60, 76])  # kB: full at epoch 1, its state, epochs 2 and 3
def test_a_disk_that_fills_while_training_loses_no_whole_epoch(size, disk, whole, capfd):
    place = disk(f"size={size}k")
    with pytest.raises(RunError, match="cannot be written into .*No space left.*Is the disk full"):
        of(place).train()
    assert "h5py" not in capfd.readouterr().err
    kept = json.loads(state.read_text())["history"] if (state := of(place).folder / "run.json").exists() else []
    disk("size=4096k")
    again = of(place).train()
    assert weights_of(again) == pytest.approx(weights_of(whole)) and again.state["history"][:len(kept)] == kept
    assert not list(again.folder.glob("part-*"))


def test_a_full_disk_when_a_mask_or_a_picture_is_written_is_told_and_the_run_stays(disk, whole, tmp_path, capsys):
    place = disk("size=200k")
    folder = shutil.copytree(whole.folder, place / "run")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (place / "neighbour").write_bytes(bytes(200 * 1024 - sum(map(len, before.values())) - 16384))
    volume = np.random.default_rng(0).integers(0, 255, (32, 32, 32))
    scan.nib.save(scan.nib.Nifti1Image(volume.astype("uint8"), np.eye(4)), tmp_path / "head.nii.gz")
    with pytest.raises(scan.DataError, match="head.nii.gz cannot be reached, or its mask not written into .*No space"):
        for name in range(9):
            scan.segment(Predictor(whole), tmp_path / "head.nii.gz", place / f"results{name}")
    picture = SimpleNamespace(png=lambda: bytes(32768))
    assert Run.open(folder).keep(picture, "picture") is picture
    assert "shown, but not kept" in capsys.readouterr().out and not list(folder.glob("results/*/*"))
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_disk_that_cannot_be_written_is_told(disk, whole, capsys):
    place = disk("size=400k")
    folder = shutil.copytree(whole.folder, place / whole.name)
    disk("ro")
    assert Predictor(of(place).train()).labels(toy().test.images).any()  # read back
    with pytest.raises(RunError, match="cannot be written into .*Read-only"):
        of(place, RECIPE.change(seed=1)).train()
    Run.open(folder).keep(SimpleNamespace(png=lambda: b""), "picture")
    assert "shown, but not kept" in capsys.readouterr().out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """{epochs: a run of which that many are trained}; not to be changed. Three are all."""
    found = {}
    for epochs in (1, 2, 3):
        def stop(training, network):
            """Somebody presses the stop button."""
            if network is not None and len(training.history) == epochs < 3:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("OASIS_RUNS", raising=False)
            found[epochs] = of(tmp_path_factory.mktemp("stopped")).train(stop)
    return found


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_every_file_of_a_run_damaged_at_every_moment_is_named_or_made_again(epochs, damage, stopped, whole, tmp_path):
    """After the first epoch, after the second, finished."""
    sound, tried = stopped[epochs], 0
    for file in sorted(path for path in sound.folder.iterdir() if path.stat().st_size):
        folder = shutil.copytree(sound.folder, tmp_path / file.stem / sound.name)
        DAMAGES[damage](folder / file.name)
        found = (folder / file.name).read_bytes() if damage != "gone" else None
        if file.name == "history.csv" or (file.name, damage) == ("run.json", "gone"):
            again = of(folder.parent)  # it is of no account, or there is no run yet
            assert again.state["history"] == (sound.state["history"] if file.name == "history.csv" else [])
            if epochs == 2:
                assert weights_of(again.train()) == pytest.approx(weights_of(whole))
        else:
            with pytest.raises(RunError, match=f"{file.name} (is missing or damaged|cannot be used)"):
                again = of(folder.parent)
                again.train()
                again.network()
            assert found is None or (folder / file.name).read_bytes() == found
        tried += 1
    assert tried == (3 if epochs != 2 else len(sound.state["files"]) + 2)


def test_two_processes_that_train_one_run_at_once_end_as_one(whole, tmp_path):
    words = [sys.executable, "-W", "ignore", "-c", OURS.format(root=str(ROOT), folder=str(tmp_path))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OASIS_")}
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
            for _ in range(2)]
    said = [one.communicate() for one in both]
    ended = [json.loads(out.splitlines()[-1]) for one, (out, _) in zip(both, said) if one.returncode == 0]
    assert ended and all(end == pytest.approx(weights_of(whole)) for end in ended)
    for one, (_, error) in zip(both, said):
        assert one.returncode == 0 or "is being trained by another process" in error
    assert len(of(tmp_path).history) == 3


def test_two_processes_that_make_one_cache_at_once_both_have_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
             "from helpers import datasets\nfrom helpers.recipe import Recipe\n"
             "print(datasets.load(Recipe('practice', slices=2, validation_slices=1, test_slices=1)).train.images.sum())"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path) for _ in range(2)]
    sums = {int(one.communicate()[0].splitlines()[-1]) for one in both}
    brains = datasets.load(Recipe("practice", slices=2, validation_slices=1, test_slices=1))
    assert sums == {int(brains.train.images.sum())} and not list(tmp_path.glob("runs/cache/part-*"))


def test_the_stop_button_while_predicting_loses_nothing(whole):
    predictor, before = Predictor(whole), sorted(file.name for file in whole.folder.iterdir())
    wanted, network = predictor.labels(toy().test), predictor.networks[0]
    predictor.networks = [type("Stopped", (), {"predict_on_batch": lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)})()]
    with pytest.raises(KeyboardInterrupt):
        predictor.labels(toy().test)
    predictor.networks = [network]
    assert (predictor.labels(toy().test) == wanted).all()
    assert sorted(file.name for file in whole.folder.iterdir()) == before


def test_a_clock_that_is_set_back_changes_neither_seconds_nor_locks(tmp_path, monkeypatch):
    now = time.time()
    ticks = iter(range(10_000))
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(ticks))
    trained = of(tmp_path, RECIPE.change(epochs=2)).train()
    assert (trained.history["seconds"] > 0).all() and (trained.history["seconds"] < 600).all()
    other = of(tmp_path, RECIPE.change(seed=3))
    other.folder.mkdir()
    (other.folder / "lock").write_text(f"elsewhere {now:.0f}")
    with pytest.raises(RunError, match="was being trained on elsewhere 0 min 00 s ago"):
        other.train()


def test_without_a_home_folder_everything_works(tmp_path):
    code = ("from helpers import backend, datasets, show\nfrom helpers.recipe import Recipe\nfrom helpers.run import Run\n"
            "recipe = Recipe('practice', network='unet', filters=1, slices=1, validation_slices=1, test_slices=1, epochs=1)\n"
            "brains = datasets.load(recipe)\nprint(len(show.pairs(brains.train).png()) > 1000)\n"
            "print(Run('runs', recipe, brains).train().finished)")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OASIS_")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=environment | {"HOME": "/dev/null/none", "PYTHONPATH": str(ROOT)})
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0] == lines[-1] == "True", done.stderr
