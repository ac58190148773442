import gzip
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image
from test_predict import ByGrey, predictor_of
from test_run import made_by_hand
from test_volumes import head

from helpers import evaluate, scan
from helpers.data import OASIS_BOX, TISSUES, Box, DataError, Label, Split, Task

ROOT = Path(__file__).parent.parent
TASK = Task("heads", TISSUES, "made")


def brains(network=None, **options):
    """A predictor of slices in OASIS's frame and box."""
    return predictor_of(network or ByGrey(), OASIS_BOX, (256, 256), task=TASK, **options)


def brains_of(folder):
    """The same, of a run in a folder."""
    (folder / "run.json").parent.mkdir(exist_ok=True)
    (folder / "run.json").touch()
    predictor = brains()
    predictor.run.folder = folder
    return predictor


def pictures(side=64, channels=1, network=None, task=TASK, **options):
    """A predictor of square pictures, seen whole."""
    return predictor_of(network or ByGrey(), Box(0, 0, side, side), channels=channels, task=task, **options)


def grained(array):
    """A uniform array with more greys than a mask has."""
    return array - (array > 2) * (np.arange(len(array)) % 3)[:, None, None].astype(array.dtype)


def dice(volume, written):
    labels = nib.load(written)
    assert labels.shape == volume.shape and np.allclose(labels.affine, volume.affine)
    assert labels.get_data_dtype() == np.uint8
    return evaluate.dice(np.asarray(volume.dataobj) / 100, np.asarray(labels.dataobj), 4)


@pytest.mark.parametrize("axes, size", [*((axes, None) for axes in ("RAS", "LPS", "SAR", "PIR", "ASL")),
                                        ("RAS", 128), ("PIR", 128)])
def test_a_volume_of_any_orientation_gets_its_labels_back_on_its_own_grid(axes, size, tmp_path):
    image, _ = head()
    image = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes)))
    nib.save(image, tmp_path / "my.scan.nii.gz")
    before = (tmp_path / "my.scan.nii.gz").read_bytes()
    predictor = pictures(256, size=size) if size else brains()
    found = scan.segment(predictor, tmp_path / "my.scan.nii.gz", tmp_path / "run")
    assert found.file.parent == tmp_path / "run" and re.fullmatch(r"my\.scan-\w{8}_labels\.nii\.gz", found.file.name)
    truth = np.bincount((np.asarray(image.dataobj) // 100).ravel().astype(int))
    if size is None:
        assert dice(image, found.file).tolist() == [1, 1, 1, 1]
        assert found.table["voxels"].tolist() == truth.tolist()
        assert found.table["millilitres"].tolist() == (truth / 1000).round(1).tolist()  # voxels of 1 mm
    else:  # pixels of 2 mm: up to half of one is lost at each border, but nothing is moved
        assert dice(image, found.file)[[0, 2, 3]].min() > 0.92
        middles = [np.mean(np.nonzero(array), axis=1) for array in (image.dataobj, nib.load(found.file).dataobj)]
        assert np.abs(np.subtract(*middles)).max() < 0.6
    assert found.split.images.shape == (30, 256, 256, 1) and found.split.labels.max() == 3
    assert found.split.task.title == "labels by a network trained on heads" and not found.warning
    assert "30 slices" in repr(found) and "white matter" in found._repr_html_()
    assert (tmp_path / "my.scan.nii.gz").read_bytes() == before


def forms(image):
    """Both affines of a NIfTI header, with their codes."""
    return [(form if code else None, code) for form, code in (image.get_qform(coded=True), image.get_sform(coded=True))]


@pytest.mark.parametrize("qcode, scode", [(0, 0), (1, 0), (0, 2), (1, 1), (1, 4), (2, 3)])
def test_a_mask_lies_where_the_scan_does_in_every_viewer(qcode, scode, tmp_path):
    image = nib.Nifti1Image(next(head()).dataobj, None)
    image.header.set_zooms((1, 1.1, 1.2))
    image.set_qform(nib.affines.from_matvec(np.diag([1, 1.1, 1.2]), [-20, -30, -15]) if qcode else None, qcode)
    image.set_sform(nib.affines.from_matvec(np.diag([1.05, 1.1, 1.2]), [9, 8, 7]) if scode else None, scode)
    image.header["cal_max"] = 300
    nib.save(image, tmp_path / "a.nii.gz")
    found = scan.segment(brains(), tmp_path / "a.nii.gz", tmp_path / "run")
    scanned, mask = nib.load(tmp_path / "a.nii.gz"), nib.load(found.file)
    for ours, theirs in zip(forms(mask), forms(scanned)):
        assert ours[1] == theirs[1] and np.array_equal(ours[0], theirs[0])
    assert np.array_equal(mask.affine, scanned.affine) and mask.header.get_zooms() == scanned.header.get_zooms()
    assert mask.get_data_dtype() == np.uint8 and mask.header["cal_max"] == 0 and mask.get_fdata().max() == 3
    assert ("No orientation is stored: it was read as axial" in repr(found)) == (qcode == scode == 0)
    if viewer := importlib.util.find_spec("SimpleITK") and importlib.import_module("SimpleITK"):
        ours, theirs = (viewer.ReadImage(str(file)) for file in (found.file, tmp_path / "a.nii.gz"))
        assert ours.GetOrigin() == theirs.GetOrigin() and ours.GetDirection() == theirs.GetDirection()


@pytest.mark.parametrize("kind, ending", [(nib.Nifti2Image, "nii"), (nib.Nifti1Pair, "hdr")])
def test_other_kinds_of_nifti_keep_their_header_and_are_quiet(kind, ending, tmp_path, caplog, capfd):
    image = kind(next(head()).dataobj, nib.affines.from_matvec(np.eye(3), [-20, -30, -15]))
    image.set_qform(image.affine, 1)
    nib.save(image, tmp_path / f"a.{ending}")
    found = scan.segment(brains(), tmp_path / f"a.{ending}", tmp_path / "run")
    assert [code for _, code in forms(nib.load(found.file))] == [1, 2] and "No orientation" not in repr(found)
    assert not caplog.records and capfd.readouterr().err == ""


@pytest.mark.parametrize("orient, axes", [(0, "LAS"), (1, "LSA"), (2, "ASL"), (3, "LPS"), (4, "LIA"), (5, "ASR")])
def test_an_analyze_scan_is_turned_by_its_orient_byte_and_its_mask_has_its_header(orient, axes, tmp_path):
    upright = next(head())
    array = upright.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))).dataobj
    image = nib.AnalyzeImage(np.asarray(array), None)
    image.header["orient"] = bytes([orient])
    nib.save(image, tmp_path / "a.hdr")
    found = scan.segment(brains(), tmp_path / "a.img", tmp_path / "run")
    assert found.file.suffix == ".hdr" and not list(tmp_path.rglob("*.mat"))
    assert np.array_equal(np.asarray(nib.load(found.file).dataobj, int) * 100, array)  # as ByGrey has it
    nib.save(upright, tmp_path / "b.nii.gz")
    expected = scan.segment(brains(), tmp_path / "b.nii.gz", tmp_path / "run")
    assert np.array_equal(found.split.labels, expected.split.labels)  # the network saw it upright
    assert nib.load(found.file).header["orient"].item() == nib.load(tmp_path / "a.hdr").header["orient"].item()


@pytest.mark.parametrize("spacing", [(1, 1.5, 0.8), (0.7, 0.7, 3), (2, 2, 2)])
def test_a_volume_of_any_spacing_and_tilt(spacing, tmp_path):
    image, _ = head(spacing=spacing)
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.05, 0.1))
    image = nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)
    nib.save(image, tmp_path / "tilted.nii")
    found = scan.segment(brains(), tmp_path / "tilted.nii", tmp_path / "run")
    scores = dice(image, found.file)
    assert scores[0] > 0.97 and scores[2:].min() > 0.9  # the thin label lies between greys that interpolation mixes
    truth = (np.asarray(image.dataobj) == 300).sum() * np.prod(spacing) / 1000
    assert found.table.loc["white matter", "millilitres"] == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("at", [0, 130, 261])
def test_a_head_anywhere_in_a_wide_field_of_view_is_found_whole(at, tmp_path):
    array = np.zeros((301, 60, 30), np.int16)
    array[at:at + 40] = next(head()).dataobj
    image = nib.Nifti1Image(array, np.eye(4))
    nib.save(image, tmp_path / "wide.nii.gz")
    found = scan.segment(brains(), tmp_path / "wide.nii.gz", tmp_path)
    assert dice(image, found.file).tolist() == [1, 1, 1, 1] and not found.warning


@pytest.mark.parametrize("axis, seen", [(0, 176), (1, 208)])
def test_what_does_not_fit_into_the_box_is_background_and_said(axis, seen, tmp_path):
    shape = [60, 60, 20]
    shape[axis] = 301
    nib.save(nib.Nifti1Image(grained(np.full(shape, 200, np.int16)), np.eye(4)), tmp_path / "wide.nii.gz")
    found = scan.segment(brains(), tmp_path / "wide.nii.gz", tmp_path)
    labels = np.asarray(nib.load(found.file).dataobj)
    rows = np.flatnonzero(labels.any((1 - axis, 2)))
    assert len(rows) == seen and abs(rows.mean() - 150) <= 1 and set(np.unique(labels)) == {0, 3}
    assert "WARNING: tissue was found at the border of the 176 x 208 mm" in repr(found)


class Brain(ByGrey):
    """A network that sees white matter everywhere."""

    def predict_on_batch(self, images):
        return np.eye(4, dtype=np.float32)[np.full(images.shape[:3], 3)]


def test_a_large_scan_takes_at_most_16_bytes_a_voxel(tmp_path):
    """Beyond what its slices of 1 mm take, which is the same whatever its voxels' size; with true labels beside it."""
    peaks, voxels = [], []
    for n in (40, 200):
        labels = np.zeros((n, n, n), np.uint8)
        labels[n // 8:-n // 8, n // 8:-n // 8, n // 8:-n // 8] = 3
        affine = np.diag([50 / n, 50 / n, 50 / n, 1])
        nib.save(nib.Nifti1Image(grained(labels * 100), affine), tmp_path / f"{n}.nii")
        nib.save(nib.Nifti1Image(labels.astype(np.float32), affine), tmp_path / f"{n}_seg.nii")
        tracemalloc.start()
        found = scan.segment(brains(), tmp_path / f"{n}.nii", tmp_path / "run")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        voxels.append(labels.size)
        assert found.table.filter(like="Dice")["Dice on the scan's own grid"]["white matter"] > 0.85
    assert np.diff(peaks)[0] < 16 * np.diff(voxels)[0]


def test_empty_slices_are_background_and_labels_in_the_void_are_doubted(tmp_path):
    array = np.zeros((40, 40, 12), np.int16)
    array[10:30, 10:30, 3:9] = 100
    nib.save(nib.Nifti1Image(grained(array), np.eye(4)), tmp_path / "stripped.nii.gz")
    doubted = scan.segment(brains(Brain()), tmp_path / "stripped.nii.gz", tmp_path)
    labels = np.asarray(nib.load(doubted.file).dataobj)
    assert not labels[..., :3].any() and not labels[..., 9:].any() and (labels[..., 3:9] == 3).all()
    assert repr(doubted).startswith("DO NOT USE THESE LABELS: 99% of them lie where stripped.nii.gz is as dark as air.")
    assert repr(doubted).splitlines()[1].startswith("stripped.nii.gz, 12 slices")
    assert "at the border" not in repr(doubted)  # which is true as well, but nobody needs to know
    believed = scan.segment(brains(), tmp_path / "stripped.nii.gz", tmp_path)
    assert repr(believed).startswith("stripped.nii.gz") and believed.table["in the mask"].tolist() == [0, 1, 2, 3]


class Where(ByGrey):
    """A network whose labels are a function of the images."""

    def __init__(self, labels):
        self.labels = labels

    def predict_on_batch(self, images):
        return np.eye(4, dtype=np.float32)[self.labels(images)]


def noisy(image, share):
    """A volume with Rician noise, whose standard deviation is a share of the brightest grey."""
    array, rng = np.asarray(image.dataobj, float), np.random.default_rng(0)
    real, imaginary = rng.normal(0, share * array.max(), (2, *array.shape))
    return nib.Nifti1Image(np.hypot(array + real, imaginary).astype(np.float32), image.affine)


@pytest.mark.parametrize("share", [0, 0.01, 0.03])
def test_noise_in_the_air_hides_no_labels_there(share, tmp_path):
    array = np.zeros((180, 212, 20), np.int16)  # its own air fills what the network sees
    array[70:110, 75:135] = np.asarray(next(head()).dataobj)[..., 5:25]
    nib.save(noisy(nib.Nifti1Image(array, np.eye(4)), share), tmp_path / "noisy.nii.gz")
    found = scan.segment(brains(Brain()), tmp_path / "noisy.nii.gz", tmp_path)
    assert re.match(r"DO NOT USE THESE LABELS: \d\d% of them lie where noisy.nii.gz is as dark as air", found.warning)
    assert not scan.segment(brains(), tmp_path / "noisy.nii.gz", tmp_path).warning


def test_a_practice_scan_with_its_true_labels_is_not_doubted(tmp_path, monkeypatch):
    file, true = scan.practice.write_scan(tmp_path / "brain.nii.gz")
    truth = np.moveaxis(nib.as_closest_canonical(nib.load(true)).get_fdata().astype(int), 2, 0)
    monkeypatch.setattr(scan, "frame_corner", lambda *_: (-OASIS_BOX.top, -OASIS_BOX.left))  # where it came from
    batches = iter(np.split(truth, range(16, len(truth), 16)))  # as the slices come
    found = scan.segment(brains(Where(lambda images: next(batches))), file, tmp_path)
    assert not found.warning and found.table["Dice on the scan's own grid"].tolist() == [1, 1, 1, 1]


def test_dark_fluid_that_tissue_encloses_is_no_air(tmp_path):
    array = np.zeros((60, 60, 20), np.int16)
    array[10:50, 10:50], array[12, 10:50], array[20:40, 20:40] = 200, 150, 1
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "ventricle.nii.gz")
    predictor = brains(Where(lambda images: 3 * (images[..., 0] > 50) + (images[..., 0] == 1)))
    found = scan.segment(predictor, tmp_path / "ventricle.nii.gz", tmp_path)
    assert found.table["voxels"].tolist() == [40000, 8000, 0, 24000] and not found.warning


@pytest.mark.parametrize("litres, said", [
    ((9, 0.9, 0.8, 0.6), "no such head has 2.3 l of CSF, grey and white matter, 0.8 l of it grey matter"),
    ((0, 0.2, 1.3, 0.5), "no such head has 2.0 l of CSF, grey and white matter, 1.3 l of it grey matter"),
    ((9, 0.4, 0.9, 0.7), "")])
def test_litres_that_no_head_holds_are_doubted(litres, said):
    image = np.full((1, 16, 16, 1), 200, np.uint8)
    found = scan.warning(Split("head", image, image[..., 0] // 200, np.array(["head"]), TASK), 0.05, litres, least=0.3)
    assert found.startswith(f"DO NOT USE THESE LABELS: {said}") if said else not found


@pytest.mark.parametrize("height, label, said", [(120, 3, "0.2"), (32, 3, ""), (32, 0, "0.0")])
def test_a_slab_may_hold_little_of_a_brain_a_whole_head_not(height, label, said, tmp_path):
    array = np.zeros((60, 60, height // 2), np.int16)
    array[15:45, 15:45, :30] = 200
    nib.save(nib.Nifti1Image(grained(array), np.diag([2.0, 2, 2, 1])), tmp_path / "head.nii.gz")
    predictor = brains(Where(lambda images: label * (images[..., 0] > 50)))
    warning = scan.segment(predictor, tmp_path / "head.nii.gz", tmp_path).warning
    assert warning.startswith(f"DO NOT USE THESE LABELS: no such head has {said} l") if said else not warning


@pytest.mark.parametrize("bright, said", [(8, True), (48, False)])
def test_labels_in_the_dark_of_a_picture_are_doubted(bright, said, tmp_path):
    picture = np.zeros((64, 64), np.uint8)
    picture[:, :bright] = 255
    Image.fromarray(picture).save(tmp_path / "dark.png")
    found = scan.segment(pictures(network=Brain()), tmp_path / "dark.png", tmp_path)
    assert found.warning.startswith("DO NOT USE THESE LABELS: 88% of them lie where dark.png" if said else "")
    assert bool(found.warning) == said


def test_an_empty_picture_is_background(tmp_path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "empty.png")
    found = scan.segment(pictures(network=Brain()), tmp_path / "empty.png", tmp_path)
    assert found.table["pixels"].tolist() == [4096, 0, 0, 0] and not found.warning


def test_analyze_pairs_are_read(tmp_path):
    nib.save(nib.Spm99AnalyzeImage(np.asarray(next(head()).dataobj), np.diag([1.0, 1, 1, 1])), tmp_path / "old.hdr")
    for ending in ("hdr", "img"):
        found = scan.segment(brains(), tmp_path / f"old.{ending}", tmp_path)
        assert found.file.name.startswith("old-") and found.table["voxels"].sum() == 40 * 60 * 30


@pytest.mark.parametrize("shape", [(64, 64), (64, 40), (40, 64)])
def test_a_picture_gets_a_mask_of_its_size_in_the_labels_greys(shape, tmp_path):
    picture = np.zeros(shape, np.uint8)
    picture[10:30, 8:36], picture[12:20, 10:20] = 170, 255
    Image.fromarray(picture).save(tmp_path / "slice.png")
    found = scan.segment(pictures(), tmp_path / "slice.png", tmp_path / "run")
    assert re.fullmatch(r"slice-\w{8}_labels\.png", found.file.name)
    assert np.array_equal(np.array(Image.open(found.file)), picture)
    assert found.table["pixels"].tolist() == [picture.size - 560, 0, 480, 80]


def test_a_picture_of_the_frames_own_size_is_used_pixel_for_pixel(tmp_path):
    picture = np.random.default_rng(0).choice(np.array([0, 85, 170, 255], np.uint8), (40, 48))
    Image.fromarray(picture).save(tmp_path / "slice.png")
    predictor = predictor_of(ByGrey(), Box(8, 16, 16, 32), (40, 48), task=TASK)
    found = scan.segment(predictor, tmp_path / "slice.png", tmp_path)
    expected = np.zeros_like(picture)
    expected[8:24, 16:48] = picture[8:24, 16:48]
    assert np.array_equal(np.array(Image.open(found.file)), expected)
    assert np.array_equal(found.split.images[0, ..., 0], picture)


def test_a_colour_picture(tmp_path):
    picture = np.full((20, 20, 4), 255, np.uint8)
    picture[0, 0, 0] = 250
    Image.fromarray(picture).save(tmp_path / "cells.png")
    task = Task("cells", (Label("background", 0, "#000000"), Label("nuclei", 255, "#56B4E9")), "made", (1, 2))

    class Colour(ByGrey):
        def predict_on_batch(self, images):
            assert images.shape[1:] == (32, 32, 3)
            return super().predict_on_batch(images)[..., [0, 3]]

    found = scan.segment(pictures(32, 3, Colour(), task), tmp_path / "cells.png", tmp_path)
    assert (np.array(Image.open(found.file)) == 255).all()


def test_a_colour_picture_that_is_not_square_is_stretched_as_in_training(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :40] = 255
    Image.fromarray(picture).save(tmp_path / "wide.png")
    found = scan.segment(pictures(32, 3), tmp_path / "wide.png", tmp_path)
    assert np.array_equal(found.split.images[0, :, :16], np.full((32, 16, 3), 255))
    assert np.array_equal(np.array(Image.open(found.file)), picture[..., 0])


def test_a_picture_that_a_camera_marked_as_turned_is_turned(tmp_path):
    picture = Image.fromarray(np.tile(np.repeat([0, 255], 20).astype(np.uint8), (40, 1)))
    marks = Image.Exif()
    marks[0x0112] = 6  # show it turned by 90 degrees
    picture.save(tmp_path / "phone.jpg", exif=marks, quality=95)
    found = scan.segment(pictures(), tmp_path / "phone.jpg", tmp_path)
    mask = np.array(Image.open(found.file))
    assert (mask[:19] == 0).all() and (mask[21:] == 255).all()


def test_scans_of_one_name_keep_their_masks_and_a_users_file_stays(tmp_path):
    image, _ = head()
    for place, factor in (("a", 1), ("b", 2)):
        (tmp_path / place).mkdir()
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * factor, image.affine), tmp_path / place / "t1.nii.gz")
    (tmp_path / "a" / "t1_labels.nii.gz").write_text("mine")
    masks = {scan.segment(brains(), tmp_path / place / "t1.nii.gz", tmp_path / "a").file for place in "aba"}
    assert len(masks) == 2 and (tmp_path / "a" / "t1_labels.nii.gz").read_text() == "mine"
    (tmp_path / "mended").mkdir()
    nib.save(nib.Nifti1Image(image.dataobj, np.diag([1.1, 1.1, 1.1, 1])), tmp_path / "mended" / "t1.nii.gz")
    masks.add(scan.segment(brains(), tmp_path / "mended" / "t1.nii.gz", tmp_path / "a").file)
    assert len(masks) == 3  # the same voxels lie elsewhere


@pytest.mark.parametrize("change", [lambda v: 0 * v, lambda v: (v - v.mean()) / v.std(), lambda v: v - 1024.0])
def test_greys_that_do_not_start_at_0_are_refused(change, tmp_path):
    image, _ = head()
    nib.save(nib.Nifti1Image(change(image.get_fdata()), image.affine), tmp_path / "odd.nii.gz")
    with pytest.raises(DataError, match="odd.nii.gz has no values above 0, or many far below"):
        scan.segment(brains(), tmp_path / "odd.nii.gz", tmp_path)


def test_what_cannot_be_read_is_named(tmp_path):
    def refused(name, sentence, predictor=brains(), to=tmp_path):
        with pytest.raises(DataError, match=sentence):
            scan.segment(predictor, tmp_path / name, to)

    refused("nowhere.png", "No file is at .*nowhere.png")
    refused("", "No file is at")
    for name in ("text.txt", "broken.png", "broken.nii.gz", "broken.hdr"):
        (tmp_path / name).write_text("not a scan")
        refused(name, f"{name} ")
    (tmp_path / "slice.dcm").write_bytes(bytes(128) + b"DICM" + bytes(99))
    refused("slice.dcm", "slice.dcm is DICOM.*dcm2niix")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    refused("deep.png", "deep.png is a picture of mode I;16")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "clear.png")
    refused("clear.png", "clear.png is partly transparent")
    pages = [Image.fromarray(np.full((8, 8), grey, np.uint8)) for grey in (0, 255)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    refused("pages.tif", "pages.tif holds 2 pictures")
    (tmp_path / "file").write_text("")
    refused("clear.png", "cannot be reached, or its mask not written", to=tmp_path / "file" / "run")
    nib.save(next(head()), tmp_path / "grey.nii.gz")
    refused("grey.nii.gz", "grey.nii.gz is a volume.*3 channels", pictures(channels=3))
    assert not list(tmp_path.glob("*_labels*"))


@pytest.mark.parametrize("name, options", [
    ("a.png", dict(mode="P", transparency=0)), ("a.png", dict(mode="L", transparency=0)), ("a.gif", dict(mode="P", transparency=0)),
    ("a.png", dict(mode="RGB", transparency=(0, 0, 0))), ("a.png", dict(mode="LA"))])
def test_transparency_of_any_kind_is_refused(name, options, tmp_path):
    mode = options.pop("mode")
    Image.new(mode, (64, 64)).save(tmp_path / name, **options)
    with pytest.raises(DataError, match=f"{name} is partly transparent"):
        scan.segment(pictures(), tmp_path / name, tmp_path)


def test_what_is_no_scan_is_told_what_it_is(tmp_path):
    def refused(file, sentence):
        with pytest.raises(DataError, match=sentence):
            scan.segment(brains(), tmp_path / file, tmp_path)

    image = next(head())
    array, raw = np.asarray(image.dataobj), image.to_bytes()
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 1200), np.uint8), np.diag([9, 9, 9, 1])), tmp_path / "series.nii")
    refused("series.nii", r"has 4 axes .*1200\) .* Of a series, save one volume")
    nib.save(nib.Nifti1Image(array[..., :8], np.eye(4)), tmp_path / "slab.nii")
    refused("slab.nii", "is 40 x 60 x 8 mm large, .* Heads have 10 to 512 mm")
    axes = [nib.cifti2.ScalarAxis(["a"]), nib.cifti2.BrainModelAxis.from_mask(np.ones((3, 3, 3)), affine=np.eye(4))]
    nib.save(nib.Cifti2Image(np.zeros((1, 27), np.float32), axes), tmp_path / "a.dscalar.nii")
    refused("a.dscalar.nii", r"surfaces \(CIFTI\) are none")
    (tmp_path / "packed.nii").write_bytes(gzip.compress(raw))
    refused("packed.nii", "Is it gzipped and not called .gz")
    (tmp_path / "plain.nii.gz").write_bytes(raw)
    refused("plain.nii.gz", "or the reverse")
    nib.save(nib.AnalyzeImage(array, None), tmp_path / "b.hdr")
    for content in (b"affine = 1", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(999)):
        (tmp_path / "b.mat").write_bytes(content)
        refused("b.hdr", "Is a .mat beside it another program's")
    header = nib.Nifti1Header()
    header.set_data_shape((700, 700, 700))
    header.set_zooms((0.4, 0.4, 0.4))
    (tmp_path / "huge.nii").write_bytes(header.binaryblock.ljust(352, b"\0"))
    refused("huge.nii", "at most 268,435,456 voxels")


def test_labels_that_were_computed_with_are_rounded(tmp_path):
    image, labels = head()
    nib.save(image, tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(labels.get_fdata() * 0.9999999, labels.affine), tmp_path / "a_seg.nii.gz")
    found = scan.segment(brains(), tmp_path / "a.nii.gz", tmp_path / "run")
    assert found.table["Dice on the scan's own grid"].tolist() == [1, 1, 1, 1]


def test_wrong_true_labels_cost_the_dice_not_the_mask(tmp_path):
    image, labels = head()
    nib.save(image, tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(labels.dataobj) * 85, labels.affine), tmp_path / "a_seg.nii.gz")
    found = scan.segment(brains(), tmp_path / "a.nii.gz", tmp_path / "run")
    assert dice(image, found.file).tolist() == [1, 1, 1, 1] and found.table.filter(like="Dice").empty
    assert "There is no Dice: a_seg.nii.gz has the labels 85, 170, 255; expected 0 background" in repr(found)
    assert scan.of_folder(brains_of(tmp_path / "run"), tmp_path, tmp_path / "run" / "results")  # no problem of the mask's
    [table] = (tmp_path / "run" / "results").glob("*.csv")
    assert "There is no Dice: a_seg" in pd.read_csv(table).set_index("scan").loc["a.nii.gz", "note"]


def test_the_stop_button_stops_the_command(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(scan.backend, "set_up", lambda: None)
    monkeypatch.setattr(scan.Predictor, "open", lambda folder: brains())

    def stop(predictor, file, folder):
        """Press it at the first scan."""
        asked.append(file)
        raise KeyboardInterrupt

    monkeypatch.setattr(scan, "segment", stop)
    with pytest.raises(SystemExit, match="Stopped at a.nii. Started again, a folder goes on where it was"):
        scan.main([str(tmp_path), "a.nii", "b.nii"])
    assert asked == ["a.nii"]


def test_one_grey_everywhere_is_no_scan(tmp_path):
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(tmp_path / "flat.png")
    with pytest.raises(DataError, match="flat.png is of one grey, 9, everywhere"):
        scan.segment(brains(), tmp_path / "flat.png", tmp_path)


def test_an_example_is_a_practice_brain_of_no_split_or_a_test_picture(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(scan.practice, "write_scan", lambda file, **options: asked.append(options) or (file, None))
    for title, seed in (("varied practice brains", 5), ("heads", 0)):
        brains = SimpleNamespace(image_shape=(16, 16, 1), task=replace(TASK, title=title))
        assert scan.example(brains, tmp_path / "new", seed) == tmp_path / "new" / "practice_brain_synthetic.nii.gz"
    assert asked == [{"seed": 5, "spread": scan.practice.VARIED}, {"seed": 0, "spread": scan.practice.COURSE}]
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    cells = SimpleNamespace(image_shape=(16, 16, 3),
                            test=Split("test", images, images[..., 0] % 4, np.array(list("abc")), TASK))
    assert np.array_equal(np.array(Image.open(scan.example(cells, tmp_path))), images[1])


def test_the_command_goes_on_after_a_file_that_is_no_scan(tmp_path):
    run = made_by_hand(tmp_path)
    (tmp_path / "bad.nii.gz").write_text("not a scan")
    nib.save(next(head()), tmp_path / "good.nii.gz")
    done = subprocess.run([sys.executable, "-m", "helpers.scan", run.folder, "bad.nii.gz", "good.nii.gz"], text=True,
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    [mask] = (run.folder / "results").iterdir()
    assert done.returncode == 1 and "Traceback" not in done.stderr and "bad.nii.gz is not a rea" in done.stderr
    assert "precision: " in done.stderr and "precision" not in done.stdout  # as in the notebook, but out of the way
    assert str(mask) in done.stdout
    told = re.findall(r"^\w.*? +([0-3]) +(\d+) +[\d.]+ *$", done.stdout, re.MULTILINE)
    voxels = np.bincount(np.asarray(nib.load(mask).dataobj).ravel(), minlength=4)
    assert [(int(a), int(b)) for a, b in told] == list(enumerate(voxels)) and voxels.sum() == 40 * 60 * 30


@pytest.mark.parametrize("network, status", [(ByGrey, 0), (Brain, 1)])
def test_the_exit_status_says_whether_labels_may_be_used(network, status, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(scan.backend, "set_up", lambda: calls.append("set up") or print("the device"))
    monkeypatch.setattr(scan.Predictor, "open", lambda folder: calls.append(folder) or brains(network()))
    nib.save(next(head()), tmp_path / "head.nii.gz")
    assert scan.main([str(tmp_path / "run"), str(tmp_path / "head.nii.gz")]) == status
    told = capsys.readouterr()
    assert told.out.startswith("DO NOT USE" if status else "head.nii.gz, 30 slices") and "the device" in told.err
    assert calls == ["set up", tmp_path / "run"]  # the precision first: networks are made in it


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_the_usage_says_what_goes_in_and_out(words, capsys):
    with pytest.raises(SystemExit):
        scan.main(words)
    told = capsys.readouterr().out
    for word in ("RUN is the folder", "SCAN is a", "RUN/results/NAME-CODE_labels", "CODE stands for",
                 "0 background, 1 CSF", "the labels' greys", "Dice where", "NAME_seg", "Exit status: 0"):
        assert word in told


def test_the_command_needs_a_scan(capsys):
    with pytest.raises(SystemExit, match="2"):
        scan.main([str(scan.run.SYNTHETIC)])
    assert "network is a run: name a scan after it" in capsys.readouterr().err


def test_without_a_run_the_network_that_comes_along_serves_and_stays_as_it_is(tmp_path, monkeypatch, capsys):
    before = {file.name: file.read_bytes() for file in scan.run.SYNTHETIC.iterdir()}
    monkeypatch.setattr(scan.backend, "set_up", lambda: None)
    monkeypatch.chdir(tmp_path)
    scan.practice.write_scan(tmp_path / "head.nii.gz")
    assert scan.main(["head.nii.gz"]) == 0
    [mask], told = (tmp_path / "runs" / "synthetic" / "results").iterdir(), capsys.readouterr().out
    assert "trained on practice brains (synthetic)" in told and str(mask.relative_to(tmp_path)) in told
    both = (np.asarray(nib.load(file).dataobj) for file in ("head_seg.nii.gz", mask))
    assert evaluate.dice(*both, 4).min() > 0.9
    assert scan.main(["."]) == 0 and "1 scans, 0 of them done before" in capsys.readouterr().out
    assert scan.main(["."]) == 0 and "1 scans, 1 of them done before" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in scan.run.SYNTHETIC.iterdir()} == before


def test_a_folder_that_is_no_run_is_refused_and_the_runs_in_it_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(scan.backend, "set_up", lambda: None)
    with pytest.raises(SystemExit, match="nowhere is not the folder of a run: it has no run.json.$"):
        scan.main(["nowhere", "scan.nii"])
    for name, files in (("practice-2", ["run.json", "network.keras"]), ("lgg-1", ["run.json", "network.keras"]),
                        ("nuclei-3", ["run.json"])):  # the last is not finished
        (tmp_path / "runs" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "runs" / name / file).touch()
    with pytest.raises(SystemExit, match="no run.json. Give one of the finished runs in it: lgg-1, practice-2.$"):
        scan.main([str(tmp_path / "runs"), "scan.nii"])


def a_folder(tmp_path):
    """A folder of two scans in subfolders, one with true labels, a picture, a file that is no scan, and others."""
    folder = tmp_path / "clinic"
    (folder / "deeper").mkdir(parents=True)
    image, labels = head()
    nib.save(image, folder / "a.nii.gz")
    nib.save(labels, folder / "a_seg.nii.gz")
    nib.save(nib.AnalyzeImage(np.asarray(image.dataobj) * 2, None), folder / "deeper" / "a.hdr")
    picture = np.full((64, 64), 170, np.uint8)
    picture[0, 0] = 0  # outside the box
    Image.fromarray(picture).save(folder / "slice.png")
    (folder / "bad.nii").write_text("not a scan")
    (folder / "notes.txt").write_text("none either")
    (folder / "._a.nii.gz").write_bytes(b"\0\5\26\7")  # as macOS leaves beside each file on some drives
    (folder / "latest").symlink_to("latest")
    return folder


def test_a_folder_is_segmented_scan_by_scan_into_a_table(tmp_path, capsys):
    folder, results = a_folder(tmp_path), tmp_path / "run" / "results"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert not scan.of_folder(brains_of(tmp_path / "run"), folder, results)
    said, wrong = capsys.readouterr()
    [table] = results.glob("clinic-*.csv")
    table = pd.read_csv(table).set_index("scan")
    assert sorted(table.index) == ["a.nii.gz", "bad.nii", "deeper/a.hdr", "slice.png"]
    assert "4 scans, 0 of them done before; 4 other files left out" in said  # labels, .img, .txt, link
    assert f"4 scans, 1 of them with a problem; the table is {results}" in said
    assert table["note"].dropna().empty
    assert table.loc["a.nii.gz"].filter(like="Dice").tolist() == [1, 1, 1, 1]
    alone = scan.segment(brains(), folder / "a.nii.gz", tmp_path).table["millilitres"]
    assert table.loc["a.nii.gz"].filter(like="millilitres").tolist() == alone.tolist()
    assert table.loc["slice.png", "grey matter, % of the picture"] == round(100 * 176 * 208 / 256**2, 2)  # the box
    assert re.search("bad.nii: bad.nii is not a readable volume", wrong) and "not a readable" in table.loc["bad.nii", "problem"]
    assert all((results / mask).exists() for mask in table["mask"].dropna()) and table["mask"].count() == 3
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_folder_started_again_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    folder, results, made = a_folder(tmp_path), tmp_path / "run" / "results", brains_of(tmp_path / "run")
    scan.of_folder(made, folder, results)
    [table] = results.glob("clinic-*.csv")
    whole, asked, segment = table.read_text(), [], scan.segment
    monkeypatch.setattr(scan, "segment", lambda predictor, file, to: asked.append(file.name) or segment(predictor, file, to))

    def again(*wanted):
        """Start again: these are segmented, and the table is the same."""
        asked.clear()
        scan.of_folder(made, folder, results)
        assert sorted(asked) == sorted(wanted)
        assert sorted(table.read_text().splitlines()) == sorted(whole.splitlines())

    again("bad.nii")
    next(results.glob("slice-*")).unlink()
    again("bad.nii", "slice.png")
    table.write_text(whole[:whole.rindex("slice.png") + 20])  # killed while a row was written
    again("bad.nii", "slice.png")
    os.utime(folder / "slice.png", (1, 1))  # another file of that name, an older one
    again("bad.nii", "slice.png")
    (tmp_path / "run" / "run.json").touch()  # it predicts otherwise now
    again("a.nii.gz", "a.hdr", "bad.nii", "slice.png")
    other = shutil.copytree(folder, tmp_path / "elsewhere" / "clinic", symlinks=True)  # of the same name
    asked.clear()
    scan.of_folder(made, other, results)
    assert len(asked) == 4 and len(list(results.glob("clinic-*.csv"))) == 2
    table.write_bytes(b"\xff\x00")
    scan.of_folder(made, folder, results)
    assert len(pd.read_csv(table)) == 4
    with pytest.raises(DataError, match="No scan .* is below"):
        scan.of_folder(made, results.parent, results)  # what a run wrote is no scan
