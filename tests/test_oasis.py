import gzip
import hashlib
import json
import shutil
import zipfile

import numpy as np
import pytest
from conftest import write_course
from PIL import Image
from test_datasets import nothing_lost, same

from helpers import datasets
from helpers.data import FRAME, OASIS_BOX, Box, DataError
from helpers.datasets import oasis
from helpers.recipe import Recipe


def load(path):
    return datasets.load(Recipe("oasis", str(path)))


def zip_of(folder, target, prefix=""):
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(file, f"{prefix}{file.relative_to(folder.parent)}")
        archive.writestr(f"__MACOSX/{folder.name}/keras_png_slices_train/._case_001_slice_0.nii.png", b"litter")
        archive.writestr(f"{folder.name}/.DS_Store", b"litter")
    return target


def test_pairs_by_number_in_anatomical_order(course):
    train = load(course).train
    # the image of case c, slice s is c * 20 + s everywhere: 10 must come after 2
    assert train.images[:, 0, 0, 0].tolist() == [20, 21, 22, 30, 40, 41, 42, 50]
    assert train.subjects.tolist() == ["case_001"] * 4 + ["case_002"] * 4
    assert train.positions.tolist() == [0, 1, 2, 10] * 2
    assert train.labels[:, 0, 0].tolist() == [1] * 4 + [2] * 4  # written beside the image's grey
    assert load(course).image_shape == (16, 16, 1)


def test_zip_nested_folder_and_litter_read_the_same(course, tmp_path):
    plain = load(course)
    assert same(plain, load(zip_of(course, tmp_path / "once.zip")))
    assert same(plain, load(zip_of(course, tmp_path / "twice.zip", f"{course.name}/")))
    nested = tmp_path / "nested" / course.name / course.name
    shutil.copytree(course, nested)
    (nested / "keras_png_slices_train" / "._case_001_slice_0.nii.png").write_bytes(b"litter")
    (nested / ".DS_Store").write_bytes(b"litter")
    assert same(plain, load(tmp_path / "nested"))


@pytest.mark.parametrize("rename", [lambda name: f"./{name}", lambda name: name.replace("/", "\\")])
def test_zips_made_elsewhere_read_the_same(course, tmp_path, rename):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for file in course.rglob("*.png"):
            archive.writestr(rename(file.relative_to(course).as_posix()), file.read_bytes())
    assert same(load(course), load(tmp_path / "other.zip"))


def test_a_data_folder_is_only_read(course):
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in course.rglob("*") if f.is_file()}
    load(course)
    assert before == {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in course.rglob("*") if f.is_file()}


def test_missing_folders_are_named_and_what_was_found(course):
    shutil.rmtree(course / "keras_png_slices_seg_test")
    with pytest.raises(DataError, match=r"lacks keras_png_slices_seg_test\. Found: .*slices_train/ \(8 files"):
        load(course)
    with pytest.raises(DataError, match="Found: nothing"):
        load(shutil.rmtree(course) or course.mkdir() or course)


@pytest.mark.parametrize("gone, complaint", [
    ("keras_png_slices_seg_train/seg_002_slice_10.nii.png", "no mask: .*case_002_slice_10.nii.png"),
    ("keras_png_slices_test/case_441_slice_1.nii.png", "no image: .*seg_441_slice_1.nii.png")])
def test_unpaired_file_is_named(course, gone, complaint):
    (course / gone).unlink()
    with pytest.raises(DataError, match=complaint):
        load(course)


def test_strange_greys_are_named_with_their_file(course):
    file = course / "keras_png_slices_seg_train" / "seg_001_slice_2.nii.png"
    mask = np.array(Image.open(file))
    mask[3, 3:5] = 7, 84
    Image.fromarray(mask).save(file)
    with pytest.raises(DataError, match=r"seg_001_slice_2.nii.png .* greys \[7, 84\]"):
        load(course)


def test_slice_of_another_size(course):
    file = course / "keras_png_slices_train" / "case_002_slice_1.nii.png"
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(file)
    with pytest.raises(DataError, match="case_002_slice_1.nii.png .* 16x20 .* 16x16"):
        load(course)


def test_splits_of_another_size(course):
    shutil.rmtree(course / "keras_png_slices_test")
    shutil.rmtree(course / "keras_png_slices_seg_test")
    write_course(course, {"test": (441,)}, side=32)
    with pytest.raises(DataError, match="one size"):
        load(course)


@pytest.mark.parametrize("damage", [lambda raw: raw[:len(raw) // 2], lambda raw: b"", lambda raw: b"not a picture"])
def test_unreadable_png_is_named(course, damage):
    file = course / "keras_png_slices_validate" / "case_402_slice_1.nii.png"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match="case_402_slice_1.nii.png .* not a readable picture"):
        load(course)


def test_colour_picture_is_not_guessed_at(course):
    file = course / "keras_png_slices_train" / "case_001_slice_1.nii.png"
    Image.open(file).convert("RGB").save(file)
    with pytest.raises(DataError, match="case_001_slice_1.nii.png .* mode RGB"):
        load(course)


def test_zip_cut_short(course, tmp_path):
    file = zip_of(course, tmp_path / "whole.zip")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match="whole.zip is not a folder and not a whole zip"):
        load(file)


def test_damaged_file_inside_a_zip_is_named(course, tmp_path):
    file = zip_of(course, tmp_path / "whole.zip")
    raw = file.read_bytes()
    at = raw.index(b"case_001_slice_0.nii.png") + 60  # inside the stored picture
    file.write_bytes(raw[:at] + bytes(8) + raw[at + 8:])
    with pytest.raises(DataError, match="case_001_slice_0.nii.png in whole.zip"):
        load(file)


def test_subject_in_two_splits(tmp_path):
    folder = write_course(tmp_path / "d", {"train": (1, 2), "validate": (402,), "test": (2,)})
    with pytest.raises(DataError, match="case_002 is in both train and test"):
        load(folder)


def test_same_slice_twice(course):
    copy = course / "again" / "keras_png_slices_train"
    copy.mkdir(parents=True)
    shutil.copy(course / "keras_png_slices_train" / "case_001_slice_0.nii.png", copy)
    with pytest.raises(DataError, match="case_001_slice_0.nii.png twice"):
        load(course)


def reference_of(course):
    files, found = oasis.Files(course), {}
    for split, word in oasis.FOLDERS.items():
        for case, number in oasis.find_slices(files, split):
            for start, kind in (("", "case"), ("seg_", "seg")):
                file = course / f"keras_png_slices_{start}{word}" / f"{kind}_{case}_slice_{number}.nii.png"
                found.setdefault(file.parent.name, {}).setdefault(case, []).append(file)
    return {folder: {case: hashlib.sha256("".join(
        hashlib.sha256(file.read_bytes()).hexdigest() for file in own).encode()).hexdigest()[:8]
        for case, own in cases.items()} for folder, cases in found.items()}


def compare(course):
    files = oasis.Files(course)
    return oasis.compare_with_reference(files, {split: oasis.find_slices(files, split) for split in oasis.FOLDERS})


def test_is_this_the_real_thing(course, tmp_path, monkeypatch):
    for kind in ("case", "seg"):  # 32 slices a case, as in the real set
        for file in list(course.rglob(f"{kind}_*_slice_0.nii.png")):
            for number in {*range(32)} - {0, 1, 2, 10}:
                shutil.copy(file, file.with_name(file.name.replace("slice_0", f"slice_{number}")))
    assert "slices: same names, other bytes in cases 1-2, 402, 441" in load(course).task.origin
    (tmp_path / "reference.json").write_text(json.dumps(reference_of(course)))
    monkeypatch.setattr(oasis, "REFERENCE", tmp_path / "reference.json")
    assert compare(course) == (True, "identical to the reference copy of the course's slices")
    whole, few = Recipe("oasis", str(course)), Recipe("oasis", str(course), people=1, slices=5, test_slices=3)
    taken = oasis.load(few)  # which reads only those, of the course's own
    assert [(len(s), s.whole) for s in taken.splits] == [(5, 64), (32, 32), (3, 32)] and taken.box == OASIS_BOX
    assert same(taken, datasets.thinned(oasis.load(whole), few)) and same(taken, datasets.thinned(taken, few))
    for file in course.glob("*_train/*_002_*"):
        file.unlink()
    assert compare(course) == (True, "a subset of the reference copy: cases 1, 402, 441")
    file = course / "keras_png_slices_test" / "case_441_slice_2.nii.png"
    Image.open(file).save(file, compress_level=0)  # same pixels, other bytes
    genuine, finding = compare(course)
    assert not genuine and finding == "not the course's slices: same names, other bytes in cases 441"
    write_course(course / "more", {"train": (999,)}, range(32))
    _, finding = compare(course)
    assert "cases that the reference copy does not have 999;" in finding
    shutil.rmtree(course / "more")
    for file in course.glob("*_test/*_441_slice_2.nii.png"):
        file.unlink()
    genuine, finding = compare(course)
    assert not genuine and finding == "not the course's slices: incomplete cases, which cannot be compared 441"


def test_shipped_reference_is_of_the_whole_set():
    reference = json.loads(oasis.REFERENCE.read_text())
    assert {folder: len(cases) for folder, cases in reference.items()} == {
        f"keras_png_slices_{kind}{word}": n for kind in ("", "seg_")
        for word, n in (("train", 302), ("validate", 35), ("test", 17))}


def test_shipped_reference_knows_the_hashes(real_data):
    hashes = {}
    with gzip.open(real_data / "oasis_sha256.txt.gz", "rt") as lines:
        for line in lines:
            digest, name = line.split()
            hashes[name] = digest
    joined = "".join(hashes[f"keras_png_slices_test/case_441_slice_{n}.nii.png"] for n in range(32))
    reference = json.loads(oasis.REFERENCE.read_text())
    assert reference["keras_png_slices_test"]["441"] == hashlib.sha256(joined.encode()).hexdigest()[:8]


@pytest.mark.parametrize("name, complaint", [("../evil.png", "leads out of the archive"),
                                             ("..\\evil.png", "leads out of the archive"),
                                             ("/evil.png", "leads out of the archive")])
def test_names_that_climb_out_of_a_zip(tmp_path, name, complaint):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, b"")
    with pytest.raises(DataError, match=complaint):
        load(tmp_path / "bad.zip")


def test_absurd_archive(tmp_path):
    from helpers.datasets.files import check_archive

    with pytest.raises(DataError, match="bomb.zip would unpack to 93 GB"):
        check_archive(tmp_path / "bomb.zip", {"a": 10**11})


@pytest.mark.parametrize("drawn, box", [((40, 231), OASIS_BOX), ((39, 231), None), ((40, 232), None)])
def test_the_box_of_a_set_that_lies_as_oasis_does_is_oasis(tmp_path, drawn, box):
    folder = write_course(tmp_path / "d", slices=(0,), side=FRAME)
    for file in folder.rglob("*.png"):
        picture = np.zeros((FRAME, FRAME), np.uint8)
        picture[drawn] = 255
        Image.fromarray(picture).save(file)
    found = oasis.load(Recipe("oasis", str(folder)))
    assert found.box == (box or Box.around(picture > 0))
    nothing_lost(found)


def test_real_pair(real_data):
    files = oasis.Files(real_data / "oasis_sample")
    split = oasis.read_split(files, "train", oasis.find_slices(files, "train"), task=None)
    assert split.images.shape == (1, 256, 256, 1) and split.subjects.tolist() == ["case_001"]
    greys = [split.images[..., 0][split.labels == label].mean() for label in range(4)]
    assert np.allclose(greys, [15.6, 35.2, 77.3, 115.1], atol=0.05)  # read independently with Pillow
    assert np.bincount(split.labels.ravel()).tolist() == [46847, 4633, 7184, 6872]


def as_pillow_reads(dataset, file, every):
    """Assert that every so many slices are, pixel by pixel, what Pillow reads from the zip, at its own size."""
    with zipfile.ZipFile(file) as archive:
        for split in dataset.splits:
            for i in range(0, len(split), every):
                end = f"{split.subjects[i].removeprefix('case_')}_slice_{split.positions[i]}.nii.png"
                for part, kind, start in ((split.images[i, ..., 0], "", "case"), (split.labels[i] * 85, "seg_", "seg")):
                    folder = f"keras_png_slices_data/keras_png_slices_{kind}{oasis.FOLDERS[split.name]}"
                    with archive.open(f"{folder}/{start}_{end}") as stream:
                        assert np.array_equal(part, np.asarray(Image.open(stream))), end


def test_real_brains(real_data):
    brains = oasis.load(Recipe("oasis", str(real_data / "brains.zip")))
    assert [(len(s), s.n_subjects) for s in brains.splits] == [(462, 7), (58, 1), (139, 2)]
    assert brains.box.shape == (176, 224) and brains.task.title == "brains.zip (OASIS layout)"
    nothing_lost(brains)
    as_pillow_reads(brains, real_data / "brains.zip", every=3)


def test_the_courses_own_slices(real_data):
    brains = oasis.load(Recipe("oasis", str(real_data / "oasis_part.zip")))
    assert [(len(s), s.n_subjects) for s in brains.splits] == [(1208, 302), (1120, 35), (544, 17)]
    assert set(brains.train.positions.tolist()) == {0, 8, 16, 24} and brains.box == OASIS_BOX
    nothing_lost(brains)
    as_pillow_reads(brains, real_data / "oasis_part.zip", every=36)
