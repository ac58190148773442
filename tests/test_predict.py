import re

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image
from test_volumes import head

from helpers import evaluate, predict
from helpers.data import TISSUES, DataError, Label, Task

TASK = Task("heads", TISSUES, "made")


class ByGrey:
    """In a network's place: the label is the grey value's quarter, whichever way the slice is mirrored."""

    def __init__(self, size=256, channels=1):
        self.input_shape = (None, size, size, channels)

    def predict(self, images, batch_size, verbose):
        greys = images.mean(-1)
        return np.stack([greys < 42, (greys >= 42) & (greys < 127), (greys >= 127) & (greys < 212), greys >= 212],
                        axis=-1).astype("float32")


def dice(volume, written):
    labels = nib.load(written)
    assert labels.shape == volume.shape and np.allclose(labels.affine, volume.affine)
    assert labels.get_data_dtype() == np.uint8
    return evaluate.dice(np.asarray(volume.dataobj) / 100, np.asarray(labels.dataobj), 4)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIR", "ASL"])
@pytest.mark.parametrize("size", [256, 128])
def test_a_volume_of_any_orientation_gets_its_labels_back_on_its_own_grid(axes, size, tmp_path):
    image, _ = head()
    image = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes)))
    nib.save(image, tmp_path / "my.scan.nii.gz")
    before = (tmp_path / "my.scan.nii.gz").read_bytes()
    found = predict.scan(ByGrey(size), tmp_path / "my.scan.nii.gz", TASK, tmp_path / "run")
    assert found.file.parent == tmp_path / "run" and re.fullmatch(r"my\.scan-\w{8}_labels\.nii\.gz", found.file.name)
    truth = np.bincount((np.asarray(image.dataobj) // 100).ravel().astype(int))
    if size == 256:
        assert dice(image, found.file).tolist() == [1, 1, 1, 1]
        assert found.table["voxels"].tolist() == truth.tolist()
        assert found.table["millilitres"].tolist() == (truth / 1000).round(1).tolist()  # voxels of 1 mm
    else:  # pixels of 2 mm: up to half of one is lost at each border, but nothing is moved
        assert dice(image, found.file)[[0, 2, 3]].min() > 0.92
        middles = [np.mean(np.nonzero(array), axis=1) for array in (image.dataobj, nib.load(found.file).dataobj)]
        assert np.abs(np.subtract(*middles)).max() < 0.6
    assert found.split.images.shape == (30, size, size, 1) and found.split.labels.max() == 3
    assert found.split.task.title == "labels by a network trained on heads"
    assert "30 slices" in repr(found) and "white matter" in found._repr_html_()
    assert (tmp_path / "my.scan.nii.gz").read_bytes() == before


@pytest.mark.parametrize("spacing", [(1, 1.5, 0.8), (0.7, 0.7, 3), (2, 2, 2)])
def test_a_volume_of_any_spacing_and_tilt(spacing, tmp_path):
    image, _ = head(spacing=spacing)
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.05, 0.1))
    image = nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)
    nib.save(image, tmp_path / "tilted.nii")
    found = predict.scan(ByGrey(), tmp_path / "tilted.nii", TASK, tmp_path / "run")
    scores = dice(image, found.file)
    assert scores[0] > 0.97 and scores[2:].min() > 0.9  # the thin label lies between greys that interpolation mixes
    truth = (np.asarray(image.dataobj) == 300).sum() * np.prod(spacing) / 1000
    assert found.table.loc["white matter", "millilitres"] == pytest.approx(truth, rel=0.1)


def test_a_volume_larger_than_the_frame_is_cut_and_background_outside(tmp_path):
    array = np.full((301, 60, 20), 200, np.int16)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "wide.nii.gz")
    labels = np.asarray(nib.load(predict.scan(ByGrey(), tmp_path / "wide.nii.gz", TASK, tmp_path).file).dataobj)
    seen = np.flatnonzero(labels.any((1, 2)))
    assert len(seen) == 256 and seen[0] in (22, 23) and set(np.unique(labels)) == {0, 3}


class Brain(ByGrey):
    """A network that sees white matter everywhere."""

    def predict(self, images, batch_size, verbose):
        return np.eye(4)[np.full(images.shape[:3], 3)]


def test_empty_slices_are_background_and_labels_in_the_void_are_doubted(tmp_path):
    array = np.zeros((40, 40, 12), np.int16)
    array[10:30, 10:30, 3:9] = 100
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "stripped.nii.gz")
    doubted = predict.scan(Brain(), tmp_path / "stripped.nii.gz", TASK, tmp_path)
    labels = np.asarray(nib.load(doubted.file).dataobj)
    assert not labels[..., :3].any() and not labels[..., 9:].any() and (labels[..., 3:9] == 3).all()
    assert "WARNING: 75% of the labelled voxels lie where the scan is empty" in repr(doubted)
    believed = predict.scan(ByGrey(), tmp_path / "stripped.nii.gz", TASK, tmp_path)
    assert "WARNING" not in repr(believed) and believed.table["in the mask"].tolist() == [0, 1, 2, 3]


def test_analyze_pairs_are_read(tmp_path):
    nib.save(nib.Spm99AnalyzeImage(np.asarray(next(head()).dataobj), np.diag([1.0, 1, 1, 1])), tmp_path / "old.hdr")
    for ending in ("hdr", "img"):
        found = predict.scan(ByGrey(), tmp_path / f"old.{ending}", TASK, tmp_path)
        assert found.file.name.startswith("old-") and found.table["voxels"].sum() == 40 * 60 * 30


@pytest.mark.parametrize("shape", [(64, 64), (64, 40), (40, 64)])
def test_a_picture_gets_a_mask_of_its_size_in_the_labels_greys(shape, tmp_path):
    picture = np.zeros(shape, np.uint8)
    picture[10:30, 8:36], picture[12:20, 10:20] = 170, 255
    Image.fromarray(picture).save(tmp_path / "slice.png")
    found = predict.scan(ByGrey(64), tmp_path / "slice.png", TASK, tmp_path / "run")
    assert re.fullmatch(r"slice-\w{8}_labels\.png", found.file.name)
    assert np.array_equal(np.array(Image.open(found.file)), picture)
    assert found.table["pixels"].tolist() == [picture.size - 560, 0, 480, 80]


def test_a_colour_picture(tmp_path):
    Image.fromarray(np.full((20, 20, 4), 255, np.uint8)).save(tmp_path / "cells.png")
    task = Task("cells", (Label("background", 0, "#000000"), Label("nuclei", 255, "#56B4E9")), "made", (1, 2))

    class Colour(ByGrey):
        def predict(self, images, **options):
            assert images.shape == (1, 32, 32, 3)
            return super().predict(images, **options)[..., [0, 3]]

    found = predict.scan(Colour(32, 3), tmp_path / "cells.png", task, tmp_path)
    assert (np.array(Image.open(found.file)) == 255).all()


def test_a_colour_picture_that_is_not_square_is_stretched_as_in_training(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :40] = 255
    Image.fromarray(picture).save(tmp_path / "wide.png")
    found = predict.scan(ByGrey(32, 3), tmp_path / "wide.png", TASK, tmp_path)
    assert np.array_equal(found.split.images[0, :, :16], np.full((32, 16, 3), 255))
    assert np.array_equal(np.array(Image.open(found.file)), picture[..., 0])


def test_a_picture_that_a_camera_marked_as_turned_is_turned(tmp_path):
    picture = Image.fromarray(np.tile(np.repeat([0, 255], 20).astype(np.uint8), (40, 1)))
    marks = Image.Exif()
    marks[0x0112] = 6  # show it turned by 90 degrees
    picture.save(tmp_path / "phone.jpg", exif=marks, quality=95)
    found = predict.scan(ByGrey(64), tmp_path / "phone.jpg", TASK, tmp_path)
    mask = np.array(Image.open(found.file))
    assert (mask[:19] == 0).all() and (mask[21:] == 255).all()


def test_mirror_images_are_averaged_only_when_asked_for(tmp_path):
    class LeftOnly(ByGrey):
        def predict(self, images, batch_size, verbose):
            guess = np.zeros((*images.shape[:3], 4), np.float32)
            guess[..., 0], guess[:, :, :, 3] = 0.6, np.linspace(1.3, 0, images.shape[2])
            return guess

    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(tmp_path / "flat.png")
    alone, both = (np.array(Image.open(predict.scan(LeftOnly(64), tmp_path / "flat.png", TASK, tmp_path, way).file))
                   for way in ((), (2,)))
    assert alone[0, 0] == 255 and alone[0, -1] == 0
    assert (both == both[:, :1]).all()


def test_scans_of_one_name_keep_their_masks_and_a_users_file_stays(tmp_path):
    image, _ = head()
    for place, factor in (("a", 1), ("b", 2)):
        (tmp_path / place).mkdir()
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * factor, image.affine), tmp_path / place / "t1.nii.gz")
    (tmp_path / "a" / "t1_labels.nii.gz").write_text("mine")
    masks = {predict.scan(ByGrey(), tmp_path / place / "t1.nii.gz", TASK, tmp_path / "a").file for place in "aba"}
    assert len(masks) == 2 and (tmp_path / "a" / "t1_labels.nii.gz").read_text() == "mine"


@pytest.mark.parametrize("change", [lambda v: 0 * v, lambda v: (v - v.mean()) / v.std(), lambda v: v - 1024.0])
def test_greys_that_do_not_start_at_0_are_refused(change, tmp_path):
    image, _ = head()
    nib.save(nib.Nifti1Image(change(image.get_fdata()), image.affine), tmp_path / "odd.nii.gz")
    with pytest.raises(DataError, match="odd.nii.gz has no values above 0, or many far below"):
        predict.scan(ByGrey(), tmp_path / "odd.nii.gz", TASK, tmp_path)


def test_what_cannot_be_read_is_named(tmp_path):
    network = ByGrey()
    with pytest.raises(DataError, match="No file is at .*nowhere.png"):
        predict.scan(network, tmp_path / "nowhere.png", TASK, tmp_path)
    with pytest.raises(DataError, match="No file is at"):
        predict.scan(network, tmp_path, TASK, tmp_path)
    for name in ("text.txt", "broken.png", "broken.nii.gz", "broken.hdr"):
        (tmp_path / name).write_text("not a scan")
        with pytest.raises(DataError, match=f"{name} "):
            predict.scan(network, tmp_path / name, TASK, tmp_path)
    (tmp_path / "slice.dcm").write_bytes(bytes(128) + b"DICM" + bytes(99))
    with pytest.raises(DataError, match="slice.dcm is DICOM.*dcm2niix"):
        predict.scan(network, tmp_path / "slice.dcm", TASK, tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="deep.png is a picture of mode I;16"):
        predict.scan(network, tmp_path / "deep.png", TASK, tmp_path)
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "clear.png")
    with pytest.raises(DataError, match="clear.png is partly transparent"):
        predict.scan(network, tmp_path / "clear.png", TASK, tmp_path)
    pages = [Image.fromarray(np.full((8, 8), grey, np.uint8)) for grey in (0, 255)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="pages.tif holds 2 pictures"):
        predict.scan(network, tmp_path / "pages.tif", TASK, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be reached, or its mask not written"):
        predict.scan(network, tmp_path / "clear.png", TASK, tmp_path / "file" / "run")
    nib.save(next(head()), tmp_path / "grey.nii.gz")
    with pytest.raises(DataError, match="grey.nii.gz is a volume.*3 channels"):
        predict.scan(ByGrey(64, 3), tmp_path / "grey.nii.gz", TASK, tmp_path)
    assert not list(tmp_path.glob("*_labels*"))
