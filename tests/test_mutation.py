"""Small files of every kind, damaged at random: each is read, or refused by name in one sentence; nothing else happens.

    MUTATIONS=2000 python -m pytest tests/test_mutation.py

Without that number, 200 damaged files are tried.
"""

import hashlib
import os
import resource
import shutil
import time
import zipfile
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_course
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_scan import brains, pictures
from test_volumes import head

from helpers import scan
from helpers.data import DataError
from helpers.datasets import lgg, nuclei, oasis, volumes
from helpers.recipe import Recipe

TRIES = int(os.environ.get("MUTATIONS", 200))
SECONDS, BYTES = 10, 1024**3  # that one reading may take, and all together beside what other tests had taken
WRITTEN = "written"  # folder of the masks that are found


def volume_files(folder):
    """A labelled volume in each format, and four volumes with labels to learn from."""
    image, labels = head(shape=(24, 30, 20))
    for name in ("a.nii", "a.nii.gz"):
        nib.save(image, folder / name)
    nib.save(nib.AnalyzeImage(np.asarray(image.dataobj), None), folder / "b.hdr")
    (folder / "many").mkdir()
    for number in range(4):
        image, labels = head(own=9 * number)
        nib.save(image, folder / "many" / f"scan{number}.nii")
        nib.save(labels, folder / "many" / f"scan{number}_seg.nii")


def picture_files(folder):
    """A picture, the course's slices as folder and zip, tumours, nuclei."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(folder / "c.png")
    course = write_course(folder / "course")
    with zipfile.ZipFile(folder / "course.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in course.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
    mask = np.zeros((16, 16), np.uint8)
    mask[3:9, 3:9] = 255
    for number in range(4):
        name = f"TCGA_CS_494{number}_19960909"
        (folder / "lgg" / name).mkdir(parents=True)
        cell = folder / "nuclei" / f"id{number}"
        for kind in ("images", "masks"):
            (cell / kind).mkdir(parents=True)
        colours = Image.fromarray(rng.integers(0, 100, (16, 16, 3), np.uint8))
        for file, picture in ((folder / "lgg" / name / f"{name}_1.tif", colours), (cell / "images" / "a.png", colours),
                              (folder / "lgg" / name / f"{name}_1_mask.tif", Image.fromarray(mask)),
                              (cell / "masks" / "m.png", Image.fromarray(mask))):
            picture.save(file)


def segment(predictor, file, folder):
    return scan.segment(predictor, file, folder / WRITTEN)


def load(module, name, place, file, folder):
    return module.load(Recipe(name, str(folder / place)))


# what is damaged -> how it is read
KINDS = {"a.nii": partial(segment, brains()), "a.nii.gz": partial(segment, brains()), "b.hdr": partial(segment, brains()),
         "b.img": partial(segment, brains()), "c.png": partial(segment, pictures()),
         "many/scan2.nii": partial(load, volumes, "volumes", "many"),
         "many/scan1_seg.nii": partial(load, volumes, "volumes", "many"),
         "course/keras_png_slices_train/case_001_slice_1.nii.png": partial(load, oasis, "oasis", "course"),
         "course/keras_png_slices_seg_test/seg_441_slice_0.nii.png": partial(load, oasis, "oasis", "course"),
         "course.zip": partial(load, oasis, "oasis", "course.zip"),
         "lgg/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif": partial(load, lgg, "lgg", "lgg"),
         "lgg/TCGA_CS_4942_19960909/TCGA_CS_4942_19960909_1_mask.tif": partial(load, lgg, "lgg", "lgg"),
         "nuclei/id1/images/a.png": partial(load, nuclei, "nuclei", "nuclei"),
         "nuclei/id2/masks/m.png": partial(load, nuclei, "nuclei", "nuclei")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All of them, sound."""
    folder = tmp_path_factory.mktemp("whole")
    volume_files(folder)
    picture_files(folder)
    return folder


PLACE = st.one_of(st.integers(0, 400), st.floats(0, 1))  # a byte of the header, or a share of the file
EDIT = st.tuples(st.sampled_from(("set", "insert", "drop", "zero", "cut")), PLACE, st.binary(min_size=1, max_size=8))
EDITS = st.lists(EDIT, min_size=1, max_size=4)


def damage(raw, edits):
    """Bytes after some edits."""
    for what, place, more in edits:
        at = min(len(raw), place if isinstance(place, int) else round(place * len(raw)))
        after = {"set": more + raw[at + len(more):], "insert": more + raw[at:], "drop": raw[at + len(more):],
                 "zero": bytes(len(more)) + raw[at + len(more):], "cut": b""}[what]
        raw = raw[:at] + after
    return raw


def digests(folder):
    """What is in each file but those that were written."""
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*")
            if file.is_file() and WRITTEN not in file.parts}


def peak():
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module")
def held():
    """What this process holds before these tests: it may have run others, whose peak Linux forgets at a 5."""
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")
    return peak()


@pytest.mark.parametrize("name", KINDS)
def test_sound_files_are_read(name, whole):
    KINDS[name](whole / name, whole)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns before it gives up
@settings(max_examples=TRIES, deadline=None, derandomize=True, print_blob=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(KINDS)), edits=EDITS)
def test_damaged_files_are_read_or_refused_by_name(name, edits, whole, held, tmp_path):
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    file = folder / name
    file.write_bytes(damage(file.read_bytes(), edits))
    before, began = digests(folder), time.monotonic()
    try:
        KINDS[name](file, folder)
    except DataError as error:
        assert file.name in str(error) or file.stem in str(error), error
    assert time.monotonic() - began < SECONDS
    assert digests(folder) == before
    assert peak() - held < BYTES
