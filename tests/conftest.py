"""A brief recipe for the notebook, and small data sets that several tests share."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RUNS = tempfile.TemporaryDirectory(prefix="runs-")  # goes when the tests end
os.environ["OASIS_OPTIONS"] = "slices=16 validation_slices=8 test_slices=8 epochs=1"  # the notebook under nbval
os.environ["OASIS_RUNS"] = RUNS.name


@pytest.fixture(autouse=True)
def own_folder(request, tmp_path, monkeypatch):
    """Every unit test runs in an empty folder, so that nothing it writes stays, and by its own recipes."""
    if request.path.suffix == ".py":
        monkeypatch.chdir(tmp_path)
        for name in ("OASIS_OPTIONS", "OASIS_RUNS"):
            monkeypatch.delenv(name)


@pytest.fixture
def real_data():
    """Folder of real data, from the environment variable REAL_DATA."""
    folder = os.environ.get("REAL_DATA")
    if not folder:
        pytest.skip("REAL_DATA names no folder of real data")
    return Path(folder)


def write_course(folder, cases=None, slices=(0, 1, 2, 10), side=16, seed=0):
    """A small copy of the course's folders: every slice has another grey, every mask all four labels."""
    rng = np.random.default_rng(seed)
    for word, numbers in (cases or {"train": (1, 2), "validate": (402,), "test": (441,)}).items():
        for kind in ("", "seg_"):
            (folder / f"keras_png_slices_{kind}{word}").mkdir(parents=True)
        for case in numbers:
            for number in slices:
                image = np.full((side, side), case % 10 * 20 + number, np.uint8)
                mask = rng.choice(np.array([0, 85, 170, 255], np.uint8), (side, side))
                mask[0, 0] = image[0, 0] // 20 % 4 * 85
                end = f"{case:03d}_slice_{number}.nii.png"
                Image.fromarray(image).save(folder / f"keras_png_slices_{word}/case_{end}")
                Image.fromarray(mask).save(folder / f"keras_png_slices_seg_{word}/seg_{end}")
    return folder


@pytest.fixture
def course(tmp_path):
    """The course's six folders, small."""
    return write_course(tmp_path / "keras_png_slices_data")
