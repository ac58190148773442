import shutil
from zlib import crc32

import nibabel as nib
import numpy as np
import pytest
from test_datasets import nothing_lost

from helpers import datasets
from helpers.data import OASIS_BOX, DataError
from helpers.datasets import discs, oasis
from helpers.datasets.files import digest
from helpers.recipe import Recipe


def load(path):
    return datasets.load(Recipe("oasis", str(path)))


def write_scan(folder, scan, n="n4", labels=True):
    """One scan in OASIS-1's layout: Analyze 7.5, 16-bit big-endian, 176x208x176 at 1 mm."""
    place = folder / scan / "PROCESSED" / "MPRAGE" / "T88_111"
    (place / "FSL_SEG").mkdir(parents=True)
    drawn = np.zeros((176, 208, 176), np.int16)
    drawn[20:156, 18:190, 20:160] = 2
    drawn[60:110, 60:140, 60:120] = 3
    drawn[30:50, 120:180, 20:160] = 3  # low x, far forward
    drawn[84:92, 90:120, 80:110] = 1
    for z in range(20, 160):
        drawn[20, 18:z, z] = 0  # every plane has a mask of its own
    image = drawn * 300 + np.random.default_rng(crc32(scan.encode())).integers(0, 50, drawn.shape, np.int16) * (drawn > 0)
    kinds = {f"{scan}_mpr_{n}_anon_111_t88_gfc": image}
    if labels:
        kinds[f"FSL_SEG/{scan}_mpr_{n}_anon_111_t88_masked_gfc_fseg"] = drawn
    for name, array in kinds.items():
        header = nib.Spm2AnalyzeHeader(endianness=">")
        header.set_data_dtype(">i2")
        nib.save(nib.Spm2AnalyzeImage(array.astype(">i2"), None, header), place / f"{name}.img")
        (place / f"{name}.mat").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def disc(tmp_path_factory):
    """disc1 with three subjects, one of them scanned twice, and one without labels."""
    folder = tmp_path_factory.mktemp("oasis1")
    for scan, n in (("OAS1_0001_MR1", "n4"), ("OAS1_0002_MR1", "n3"), ("OAS1_0002_MR2", "n4"), ("OAS1_0003_MR1", "n5")):
        write_scan(folder / "disc1", scan, n)
    write_scan(folder / "disc1", "OAS1_0005_MR1", labels=False)
    return folder


@pytest.fixture(scope="module")
def made(disc):
    """The disc's Dataset."""
    return oasis.load(Recipe("oasis", str(disc)))


def stored(disc, scan, kind):
    """A scan's planes (z, x, y) as they lie in its file, read by nibabel alone."""
    file = next((disc / "disc1" / scan).rglob(f"*_{kind}.hdr"))
    return np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj).squeeze().transpose(2, 0, 1)


def test_layout_is_the_courses(made):
    assert made.image_shape == (256, 256, 1) and made.n_labels == 4
    counts = {s: int((split.subjects == s).sum()) for split in made.splits for s in set(split.subjects.tolist())}
    assert counts == {"OAS1_0001": 32, "OAS1_0002": 64, "OAS1_0003": 32}  # repeat scan: same person
    assert made.task.origin.endswith("4 scans; split by subject; in 4 scans planes are inferred: their brain masks are "
                                     "not the course's; incomplete, left out: OAS1_0005_MR1")
    rows, columns = np.nonzero(made.train.labels[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (60, 195, 42, 213)  # padded by 40 and 24
    rows, columns = np.nonzero(made.train.labels[0] == 3)
    assert columns.max() == 24 + 179  # forward is to the right
    assert (rows[columns > 170].mean() < 128) == (nib.AnalyzeHeader.default_x_flip is False)  # stored flipped in x
    assert made.train.images.max() == 255 and set(np.unique(made.train.labels)) == {0, 1, 2, 3}


def test_no_labelled_pixel_is_lost_and_greys_are_cut_down_plane_by_plane(disc, made):
    [split] = [split for split in made.splits if "OAS1_0001" in split.subjects]
    own = split.take(split.subjects == "OAS1_0001")
    assert np.array_equal(made.box.cut(own.labels), stored(disc, "OAS1_0001_MR1", "fseg")[73:105])
    greys = stored(disc, "OAS1_0001_MR1", "gfc")[73:105].astype(int)
    assert np.array_equal(made.box.cut(own.images)[..., 0], 255 * greys // greys.max((1, 2), keepdims=True))
    assert own.positions.tolist() == list(range(32)) and made.box == OASIS_BOX
    nothing_lost(made)


def test_planes_are_known_by_their_masks_and_people_split_as_the_course_has_them(tmp_path, monkeypatch):
    scans = ("OAS1_0001_MR1", "OAS1_0001_MR2", "OAS1_0402_MR1", "OAS1_0441_MR1", "OAS1_0442_MR1", "OAS1_0004_MR1")
    for scan in scans:
        write_scan(tmp_path / "disc1", scan)
    labels = stored(tmp_path, "OAS1_0001_MR1", "fseg")
    monkeypatch.setattr(discs, "MASKS", [digest(np.ascontiguousarray(plane > 0)) for plane in labels[50:82]])
    made = oasis.load(Recipe("oasis", str(tmp_path)))
    assert [sorted(set(split.subjects.tolist())) for split in made.splits] == [
        ["OAS1_0001", "OAS1_0004"], ["OAS1_0402"], ["OAS1_0441", "OAS1_0442"]]
    assert made.task.origin.endswith("5 scans; split as the course is; planes known by the course's brain masks")
    assert np.array_equal(made.box.cut(made.validation.labels), labels[50:82])
    assert made.test.positions.tolist() == 2 * list(range(32)) and [s.whole for s in made.splits] == [64, 32, 64]


def test_masks_are_those_of_the_courses_slices(real_data):
    brains = oasis.load(Recipe("oasis", str(real_data / "oasis_part.zip"), slices=1))
    for labels, position in zip(brains.box.cut(brains.test.labels), brains.test.positions):
        assert digest(np.ascontiguousarray(labels > 0)) == discs.MASKS[position]


def test_a_packed_disc_is_to_be_unpacked(tmp_path):
    for name in ("oasis_cross-sectional_disc1.tar.gz", "disc1.tar"):
        (tmp_path / name).write_bytes(b"packed")
        with pytest.raises(DataError, match=f"{name} is packed. Unpack it, tar xzf {name}, and give the folder"):
            load(tmp_path / name)


def test_a_folder_without_whole_scans(tmp_path):
    write_scan(tmp_path / "disc1", "OAS1_0007_MR1", labels=False)
    with pytest.raises(DataError, match="has no whole OASIS-1 scan .*; parts: OAS1_0007_MR1."):
        load(tmp_path)


def test_header_without_image(disc, tmp_path):
    shutil.copytree(disc / "disc1" / "OAS1_0001_MR1", tmp_path / "disc1" / "OAS1_0001_MR1")
    next(tmp_path.rglob("*_gfc.img")).unlink()
    with pytest.raises(DataError, match="gfc.hdr needs the file beside it .*_t88_gfc.img is not there"):
        load(tmp_path)


def test_volumes_of_different_shape(disc, tmp_path):
    shutil.copytree(disc / "disc1" / "OAS1_0001_MR1", tmp_path / "disc1" / "OAS1_0001_MR1")
    [file] = tmp_path.rglob("*_fseg.img")
    nib.save(nib.Spm2AnalyzeImage(np.ones((90, 90, 90), np.int16), None), file)
    with pytest.raises(DataError, match=r"fseg.hdr \(90, 90, 90\) does not lie on the grid of .*gfc.hdr \(176, "):
        load(tmp_path)


def test_disc_slices_lie_like_the_real_pair(made, real_data):
    files = oasis.Files(real_data / "oasis_sample")
    real = oasis.read_split(files, "train", oasis.find_slices(files, "train"), task=None)
    ours, theirs = (np.argwhere(split.labels[0] > 0) for split in (made.train, real))
    assert np.abs(ours.min(0) - theirs.min(0)).max() <= 3 and np.abs(ours.max(0) - theirs.max(0)).max() <= 3
