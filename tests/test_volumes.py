import shutil

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from test_datasets import nothing_lost

from helpers import datasets
from helpers.data import FRAME, DataError
from helpers.datasets import oasis, volumes
from helpers.recipe import Recipe


def load(path):
    return datasets.load(Recipe("volumes", str(path)))


def head(shape=(40, 60, 30), spacing=(1, 1, 1), own=0):
    """A box of a head: CSF at the left, grey in the middle, white at the front, bright where the label is high.

    CSF is brighter by `own`, by which people differ.
    """
    labels = np.zeros(shape, np.int16)
    labels[10:30, 10:50, 4:26] = 2
    labels[10:14, 10:50, 4:26] = 1
    labels[10:30, 40:50, 4:26] = 3
    image = (labels * 100 + own * (labels == 1)).astype(np.int16)
    return (nib.Nifti1Image(array, np.diag([*spacing, 1.0])) for array in (image, labels))


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        image, labels = head(own=9 * number)
        nib.save(image, tmp_path / f"scan{number}.nii.gz")
        nib.save(labels, tmp_path / f"scan{number}_seg.nii.gz")
    return tmp_path


def test_slices_lie_as_in_the_course():
    images, labels = volumes.to_slices(*head())
    assert images.shape == labels.shape == (11, 256, 256) and images.dtype == labels.dtype == np.uint8  # 22 mm, every 2
    rows, columns = np.nonzero(labels[5])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (118, 137, 108, 147)  # 20 x 40 mm, in the middle
    assert labels[5, 128, 145] == 3 and labels[5, 119, 115] == 1  # front to the right, left side at the top
    assert images.max() == 255 and np.array_equal(images[5] == 255, labels[5] == 3)


@pytest.mark.parametrize("axes", ["LPS", "SAR", "PIR", "ASL"])
def test_any_orientation_gives_the_same_slices(axes):
    expected = volumes.to_slices(*head())
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    turned = volumes.to_slices(*(image.as_reoriented(turn) for image in head()))
    assert all(np.array_equal(a, b) for a, b in zip(expected, turned))


def test_any_spacing_gives_millimetres():
    images, labels = volumes.to_slices(*head(spacing=(1, 1.5, 0.8)))
    rows, columns = np.nonzero(labels[len(labels) // 2])
    assert np.ptp(rows) + 1 == 20 and abs(np.ptp(columns) + 1 - 60) <= 1 and abs(len(labels) - 22 * 0.8 / 2) <= 1


def test_load_splits_by_subject(folder):
    made = load(folder)
    assert [s.n_subjects for s in made.splits] == [2, 1, 1] and made.image_shape == (FRAME, FRAME, 1)
    assert made.train.positions.tolist() == [*range(11)] * 2 and made.box.shape == (32, 48)  # of 20 x 40 mm
    nothing_lost(made)


def test_a_scan_of_1_mm_keeps_every_labelled_pixel(folder):
    labels = np.random.default_rng(0).integers(0, 4, (4, 40, 60, 30)).astype(np.int16)
    for number in range(4):
        for end, factor in (("", 100), ("_seg", 1)):
            nib.save(nib.Nifti1Image(labels[number] * factor, np.eye(4)), folder / f"scan{number}{end}.nii.gz")
    made = load(folder)
    nothing_lost(made)
    for split in made.splits:
        for name in set(split.subjects.tolist()):
            planes = labels[int(name[-1])].transpose(2, 0, 1)[::2]  # (z, x, y); slices are 2 mm apart
            ours = split.labels[split.subjects == name]
            assert np.array_equal(ours[:, 108:148, 98:158], planes)  # 40 x 60 mm in the middle of 256 x 256
            assert np.count_nonzero(ours) == np.count_nonzero(planes)


def test_a_scan_that_is_there_under_another_name_is_no_other_person(folder):
    labels = np.random.default_rng(0).integers(0, 4, (100, 100, 30)).astype(np.int16)
    for number in (1, 3):
        for end, factor in (("", 100), ("_seg", 1)):
            nib.save(nib.Nifti1Image(labels * factor, np.eye(4)), folder / f"scan{number}{end}.nii.gz")
    with pytest.raises(DataError, match=r"Slice \d+ of scan[13] in .* is the same as Slice \d+ of scan[13] in .*. Remove one"):
        load(folder)


def test_pairs_and_files_are_checked(folder):
    with pytest.raises(DataError, match="read from a folder"):
        load(folder / "scan0.nii.gz")
    file = folder / "scan1_seg.nii.gz"
    raw = file.read_bytes()
    file.write_bytes(raw[:len(raw) // 2])
    with pytest.raises(DataError, match="scan1_seg.nii.gz is not a readable volume"):
        load(folder)
    file.unlink()
    with pytest.raises(DataError, match="have no .*: scan1.nii.gz. Add it"):
        load(folder)


def test_greys_that_do_not_start_at_0_are_refused(folder):
    image, _ = head()
    values = image.get_fdata()
    nib.save(nib.Nifti1Image((values - values.mean()) / values.std(), image.affine), folder / "scan2.nii.gz")
    with pytest.raises(DataError, match="scan2.nii.gz has no values above 0, or many far below"):
        load(folder)


def test_strange_labels_and_grids_are_named(folder):
    image, labels = head()
    nib.save(nib.Nifti1Image(np.asarray(labels.dataobj) * 85, labels.affine), folder / "scan2_seg.nii.gz")
    with pytest.raises(DataError, match="scan2_seg.nii.gz has the labels 85, 170, 255"):
        load(folder)
    nib.save(labels.slicer[:-1], folder / "scan2_seg.nii.gz")
    with pytest.raises(DataError, match="scan2_seg.nii.gz .* does not lie on the grid of scan2.nii.gz"):
        load(folder)


def test_labels_saved_again_by_another_program_lie_where_the_volume_does(folder):
    """Some programs keep one of the two affines that a NIfTI file may have."""
    image, labels = head()
    moved = nib.affines.from_matvec(np.eye(3), [-20, -30, -15])
    image.set_qform(moved, 1)
    image.set_sform(np.diag([1.02, 1.02, 1.02, 1]), 4)
    nib.save(image, folder / "scan2.nii.gz")
    nib.save(nib.Nifti1Image(labels.dataobj, moved), folder / "scan2_seg.nii.gz")
    volume, drawn = volumes.read_pair(folder / "scan2.nii.gz", folder / "scan2_seg.nii.gz")
    assert np.array_equal(drawn.affine, volume.affine) and np.array_equal(drawn.dataobj, labels.dataobj)


def test_labels_that_lost_their_affine_are_not_to_be_resampled(folder):
    nib.save(nib.Nifti1Image(next(head()).dataobj, np.diag([2, 2, 2, 1])), folder / "scan2.nii.gz")
    with pytest.raises(DataError, match="scan2_seg.nii.gz has as many voxels .* its affine is lost: copy the volume's"):
        load(folder)


def test_voxels_that_are_no_numbers(folder):
    image, labels = head(own=40)
    values = image.get_fdata()
    values[values == 0] = np.nan  # as some programs leave what is outside a brain
    nib.save(nib.Nifti1Image(values, image.affine), folder / "scan1.nii.gz")
    load(folder)
    values[:, :, :2] = np.inf
    nib.save(nib.Nifti1Image(values, image.affine), folder / "scan1.nii.gz")
    with pytest.raises(DataError, match="scan1.nii.gz has .* voxels that are no number"):
        load(folder)
    nib.save(image, folder / "scan1.nii.gz")
    drawn = labels.get_fdata()
    drawn[drawn == 0] = np.nan
    nib.save(nib.Nifti1Image(drawn, image.affine), folder / "scan1_seg.nii.gz")
    with pytest.raises(DataError, match="scan1_seg.nii.gz has .* voxels that are no number"):
        load(folder)


def test_scans_of_one_person_stay_together(tmp_path):
    names = [f"sub-0{n}{scan}" for n in (1, 2, 3) for scan in ("_ses-1_T1w", "_ses-2_T1w", "_ses-2_run-2_T1w")]
    for number, name in enumerate([*names, "OAS1_0004_MR1", "oas1_0004_MR2"]):
        for end, part in zip(("", "_seg"), head(own=9 * number)):
            nib.save(part, tmp_path / f"{name}{end}.nii")
    made = load(tmp_path)
    assert {s for split in made.splits for s in split.subjects.tolist()} == {"sub-01", "sub-02", "sub-03", "OAS1_0004"}
    assert "11 volumes of 4 people" in made.task.origin
    counts = {who: int((s.subjects == who).sum()) for s in made.splits for who in set(s.subjects.tolist())}
    assert counts == {"sub-01": 33, "sub-02": 33, "sub-03": 33, "OAS1_0004": 22}


def test_a_head_at_the_edge_of_a_wide_field_of_view_is_kept_whole(folder):
    for end, part in zip(("", "_seg"), head(own=40)):
        wide = np.zeros((340, 340, 30), np.int16)
        wide[5:45, 270:330] = part.dataobj
        nib.save(nib.Nifti1Image(wide, np.eye(4)), folder / f"scan1{end}.nii.gz")
    made = load(folder)
    sizes = {who: np.count_nonzero(s.labels[s.subjects == who]) for s in made.splits for who in set(s.subjects.tolist())}
    assert sizes["scan1"] == sizes["scan0"] > 0


def test_no_stored_orientation_is_said(folder):
    assert "no orientation" not in load(folder).task.origin
    for end, part in zip(("", "_seg"), head(own=40)):
        nib.save(nib.Nifti1Image(part.dataobj, None), folder / f"scan1{end}.nii.gz")
    assert load(folder).task.origin.endswith("split by person; 1 store no orientation and are read as axial: look at them")


def test_a_name_that_is_no_text_is_named(folder):
    name = b"scan\xe9.nii.gz".decode(errors="surrogateescape")
    try:
        shutil.copy(folder / "scan1.nii.gz", folder / name)
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DataError, match=r"scan.udce9.nii.gz' has a name that is not plain text"):
        load(folder)


def test_people_whose_names_end_alike_stay_apart(tmp_path):
    for number in range(4):
        for end, part in zip(("", "_seg"), head(own=9 * number)):
            nib.save(part, tmp_path / f"site_MR{number}{end}.nii")
    assert [split.n_subjects for split in load(tmp_path).splits] == [2, 1, 1]


def test_a_header_of_nonsense(folder):
    image = nib.Nifti1Image(np.zeros((40, 60, 30), np.int16), np.diag([1000, 1000, 1000, 1]))
    nib.save(image, folder / "scan3.nii.gz")
    with pytest.raises(DataError, match="scan3.nii.gz is 40000 x 60000 x 30000 mm large"):
        load(folder)
    image.header.set_xyzt_units("meter")
    nib.save(image, folder / "scan3.nii.gz")
    with pytest.raises(DataError, match="scan3.nii.gz is .* x 30000 metres large"):
        load(folder)
    for array in (np.zeros((40, 60, 30), np.int16), np.full((40, 60, 30), 7, np.int16)):
        array[10:30] = 7
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "scan3.nii.gz")
        with pytest.raises(DataError, match=r"scan3.nii.gz has only the values \[(0.0, )?7.0\], like a mask"):
            load(folder)
    nib.save(nib.load(folder / "scan3_seg.nii.gz"), folder / "scan3.nii.gz")
    with pytest.raises(DataError, match=r"scan3.nii.gz has only the values \[0.0, 1.0, 2.0, 3.0\], like a mask"):
        load(folder)


def test_units_that_nobody_knows_are_millimetres(folder):
    image, _ = head(own=40)
    image.header["xyzt_units"] = 66
    nib.save(image, folder / "scan3.nii.gz")
    load(folder)


def test_half_an_analyze_pair(folder):
    image, labels = head(own=40)
    nib.save(nib.AnalyzeImage(np.asarray(image.dataobj), image.affine), folder / "scan9.img")
    nib.save(nib.AnalyzeImage(np.asarray(labels.dataobj), labels.affine), folder / "scan9_seg.img")
    assert sum(s.n_subjects for s in load(folder).splits) == 5
    (folder / "scan9.img").unlink()
    with pytest.raises(DataError, match=r"scan9.hdr needs the file beside it .* scan9.img is not there"):
        load(folder)
    (folder / "scan9.hdr").rename(folder / "scan9.img")
    with pytest.raises(DataError, match="scan9.img needs its header beside it, scan9.hdr"):
        load(folder)


def test_capitals_are_read_and_a_scan_that_is_there_twice_is_named(folder):
    plain = load(folder)
    for file in ("scan1.nii.gz", "scan1_seg.nii.gz"):
        (folder / file).rename(folder / file.replace("nii.gz", "NII.GZ").replace("seg", "SEG"))
    assert np.array_equal(load(folder).train.images, plain.train.images)
    nib.save(nib.load(folder / "scan2.nii.gz"), folder / "scan2.nii")
    with pytest.raises(DataError, match="holds scan2.nii and scan2.nii.gz: the same scan by name"):
        load(folder)


def test_real_volumes_look_like_the_real_slices(real_data):
    pair = volumes.read_pair(real_data / "ibsr" / "IBSR_01.nii.gz", real_data / "ibsr" / "IBSR_01_seg.nii.gz")
    labels = volumes.to_slices(*pair)[1]
    course = oasis.load(Recipe("oasis", str(real_data / "brains.zip"))).train
    theirs = course.labels[course.subjects == "case_001"]
    # the same brain: lay the two stacks' silhouettes on each other; mirrored or turned they fit worse
    ours, theirs = ((stack > 0).mean(0) for stack in (labels, theirs))
    fit = {name: np.corrcoef(changed.ravel(), theirs.ravel())[0, 1] for name, changed in {
        "as it is": ours, "back to front": ours[:, ::-1], "turned": ours.T}.items()}
    assert max(fit, key=fit.get) == "as it is" and fit["as it is"] > 0.95


def test_volumes_that_are_no_scalar_head_are_named(folder):
    colour = np.zeros((40, 60, 30), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), folder / "scan1.nii.gz")
    with pytest.raises(DataError, match="scan1.nii.gz has 3 axes .* one number a voxel"):
        load(folder)
    image, _ = head()
    for wrong in (np.diag([400.0, 1, 1, 1]), np.diag([np.nan, 1, 1, 1])):
        broken = nib.Nifti1Image(np.asarray(image.dataobj), np.eye(4))
        broken.header["sform_code"], broken.header["srow_x"] = 1, wrong[0]
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, broken.header), folder / "scan1.nii.gz")
        with pytest.raises(DataError, match="scan1.nii.gz is .* mm along each axis"):
            load(folder)


def test_real_volumes_lose_nothing_from_their_frame_on(real_data, tmp_path):
    for number in ("01", "05", "16"):
        for end in ("", "_seg"):
            (tmp_path / f"IBSR_{number}{end}.nii.gz").symlink_to(real_data / "ibsr" / f"IBSR_{number}{end}.nii.gz")
    made = volumes.load(Recipe("volumes", str(tmp_path)))
    nothing_lost(made)
    for split in made.splits:  # and that frame has as many mm3 of each tissue as the scan's own grid
        [name] = set(split.subjects.tolist())
        scan = nib.load(tmp_path / f"{name}_seg.nii.gz")
        theirs = np.bincount(np.asarray(scan.dataobj).ravel(), minlength=4) * np.prod(scan.header.get_zooms()[:3])
        ours = np.bincount(split.labels.ravel(), minlength=4) * 2
        assert np.allclose(ours[1:], theirs[1:], rtol=0.04)
