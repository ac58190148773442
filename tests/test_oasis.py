import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

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


def test_linked_folders_are_read_and_loops_end(course, tmp_path):
    linked = tmp_path / "linked" / "deep"
    linked.mkdir(parents=True)
    for folder in course.iterdir():
        (linked / folder.name).symlink_to(folder)
    (linked / "loop").symlink_to(tmp_path / "linked")
    (tmp_path / "beside").write_text("not to be looked at")
    (linked / "up").symlink_to(tmp_path)
    assert same(load(tmp_path / "linked"), load(course))
    assert not [name for name in oasis.Files(tmp_path / "linked").names if "beside" in name]
    file = next(course.glob("keras_png_slices_train/*_10.nii.png"))
    file.rename(tmp_path / "moved.png")
    file.symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=f"{file.name} in .* cannot be read .*No such file"):
        load(tmp_path / "linked")


def test_a_link_does_not_hide_the_folder_beside_it(course):
    for number in range(6):
        (course / f"a_link{number}").symlink_to(course / "keras_png_slices_train")
    assert len(load(course).train) == 8


def test_a_folder_that_cannot_be_listed_is_named(course, monkeypatch):
    real = os.scandir

    def fail(path):
        if str(path).endswith("slices_test"):
            raise OSError(5, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(DataError, match="slices_test cannot be listed .Input/output error"):
        load(course)


def test_a_folder_of_zips_and_a_zip_that_cannot_be_unpacked(course, tmp_path):
    (tmp_path / "folder").mkdir()
    file = zip_of(course, tmp_path / "folder" / "slices.zip")
    with pytest.raises(DataError, match="folder holds nothing but slices.zip. Unpack it"):
        load(tmp_path / "folder")
    raw = file.read_bytes()
    for at, value, complaint in ((8, 9, "compression method is not supported"), (6, 1, "encrypted")):
        changed = bytearray(raw)
        for signature, place in ((b"PK\1\2", at + 2), (b"PK\3\4", at)):
            start = changed.find(signature)
            while start >= 0:
                changed[start + place] = value
                start = changed.find(signature, start + 4)
        file.write_bytes(changed)
        with pytest.raises(DataError, match=f"slices.zip cannot be unpacked here .*{complaint}.* give the folder"):
            load(file)


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


@pytest.mark.parametrize("damage, why", [(lambda raw: raw[:len(raw) // 2], ".*"), (lambda raw: b"not a picture", "cannot id"),
                                         (lambda raw: b"", "it is empty; is it still in the cloud")])
def test_unreadable_png_is_named(course, damage, why):
    file = course / "keras_png_slices_validate" / "case_402_slice_1.nii.png"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=rf"case_402_slice_1.nii.png .* not a readable picture \({why}[^<]*\). Copy"):
        load(course)


def test_colour_picture_is_not_guessed_at(course):
    file = course / "keras_png_slices_train" / "case_001_slice_1.nii.png"
    Image.open(file).convert("RGB").save(file)
    with pytest.raises(DataError, match="case_001_slice_1.nii.png .* mode RGB"):
        load(course)


def test_zip_cut_short(course, tmp_path):
    file = zip_of(course, tmp_path / "whole.zip")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match="whole.zip is no folder and no whole zip"):
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
    with pytest.raises(DataError, match="Subject case_002 in test is the same as Subject case_002 in train"):
        load(folder)


def test_slices_of_one_person_under_another_number(tmp_path):
    folder = write_course(tmp_path / "d", slices=(0,), side=32)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    for word, case in (("train", "001"), ("test", "441")):
        Image.fromarray(picture).save(folder / f"keras_png_slices_{word}" / f"case_{case}_slice_0.nii.png")
    with pytest.raises(DataError, match="Slice 0 of case_441 in test is the same as Slice 0 of case_001 in train. Remove one"):
        load(folder)


def test_slices_that_show_next_to_nothing_may_be_alike(tmp_path):
    folder = write_course(tmp_path / "d", slices=(0,), side=128)
    framed = np.pad(np.zeros((126, 126), np.uint8), 1, constant_values=255)  # as some programs export
    for word, case in (("train", "001"), ("test", "441")):
        Image.fromarray(framed).save(folder / f"keras_png_slices_{word}" / f"case_{case}_slice_0.nii.png")
    load(folder)


def test_masks_copied_over_the_images(course):
    for file in course.glob("keras_png_slices_seg_*/*"):
        folder = course / file.parent.name.replace("seg_", "")
        (folder / file.name.replace("seg", "case", 1)).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="case_.* and its mask .*seg_.* are the same picture"):
        load(course)


def test_same_slice_twice(course):
    copy = course / "again" / "keras_png_slices_train"
    copy.mkdir(parents=True)
    shutil.copy(course / "keras_png_slices_train" / "case_001_slice_0.nii.png", copy)
    with pytest.raises(DataError, match="case_001_slice_0.nii.png: the same scan by name"):
        load(course)


def reference_of(course):
    found = {}
    for file in course.rglob("*.png"):
        case, number = re.search(r"_(\d+)_slice_(\d+)", file.name).groups()
        code = base64.b64encode(hashlib.sha256(file.read_bytes()).digest()[:3]).decode()
        found.setdefault(file.parent.name, {}).setdefault(case, {})[int(number)] = code
    return {folder: {case: "".join(own[n] for n in range(32)) for case, own in sorted(cases.items())}
            for folder, cases in found.items()}


def compare(course):
    files = oasis.Files(course)
    return oasis.compare_with_reference(files, {split: oasis.find_slices(files, split) for split in oasis.FOLDERS})


CAN, CANNOT = (f"Scores on its test {word} be compared with those of others." for word in ("can", "cannot"))


@pytest.fixture
def whole(course, tmp_path, monkeypatch):
    """The practice course with 32 slices a case, known as the course's own."""
    for kind in ("case", "seg"):
        for file in list(course.rglob(f"{kind}_*_slice_0.nii.png")):
            for number in {*range(32)} - {0, 1, 2, 10}:
                shutil.copy(file, file.with_name(file.name.replace("slice_0", f"slice_{number}")))
    (tmp_path / "reference.json").write_text(json.dumps(reference_of(course)))
    monkeypatch.setattr(oasis, "REFERENCE", tmp_path / "reference.json")
    return course


def test_the_courses_own_are_known_whole_and_read_as_asked(whole):
    assert compare(whole) == (True, f"all of the course's slices, byte by byte. {CAN}")
    every, few = Recipe("oasis", str(whole)), Recipe("oasis", str(whole), people=1, slices=5, test_slices=3)
    taken = oasis.load(few)  # which reads only those, of the course's own
    assert [(len(s), s.whole) for s in taken.splits] == [(5, 64), (32, 32), (3, 32)] and taken.box == OASIS_BOX
    assert same(taken, datasets.thinned(oasis.load(every), few)) and same(taken, datasets.thinned(taken, few))


def test_a_part_of_the_courses_own_says_what_is_missing(whole):
    for file in whole.glob("*_train/*_002_*"):
        file.unlink()
    assert compare(whole) == (True, f"32 of the course's 64 train slices, incomplete cases: 2. {CAN}")
    for file in whole.glob("*_validate/*_slice_3.*"):
        file.unlink()
    assert compare(whole) == (True, "32 of the course's 64 train slices, incomplete cases: 2; "
                              f"31 of the course's 32 validation slices. {CAN}")
    for file in whole.glob("*_test/*_441_slice_2.nii.png"):
        file.unlink()
    genuine, finding = compare(whole)
    assert genuine and finding.endswith(f"; 31 of the course's 32 test slices. {CANNOT}")


def test_other_bytes_and_other_names_are_named(whole):
    file = whole / "keras_png_slices_test" / "case_441_slice_2.nii.png"
    old = file.read_bytes()
    Image.open(file).save(file, compress_level=0)  # same pixels, other bytes
    assert compare(whole) == (False, "1 file(s) with other bytes than the course's, such as "
                              f"{file.parent.name}/{file.name}; 31 of the course's 32 test slices. {CANNOT}")
    file.write_bytes(old)
    write_course(whole / "more", {"train": (999,)}, [0])
    assert compare(whole) == (False, "2 file(s) the course has not, such as "
                              "more/keras_png_slices_train/case_999_slice_0.nii.png, "
                              f"more/keras_png_slices_seg_train/seg_999_slice_0.nii.png. {CAN}")
    write_course(whole / "more", {"test": (998,)}, [0])
    assert compare(whole)[1].endswith(CANNOT)


def test_made_up_slices_are_not_taken_for_the_courses(course):
    assert "32 file(s) with other bytes than the course's, such as" in load(course).task.origin
    assert load(course).task.origin.endswith(CANNOT)


def test_shipped_reference_is_of_the_whole_set():
    reference = json.loads(oasis.REFERENCE.read_text())
    assert {folder: len(cases) for folder, cases in reference.items()} == {
        f"keras_png_slices_{kind}{word}": n for kind in ("", "seg_")
        for word, n in (("train", 302), ("validate", 35), ("test", 17))}
    assert {len(codes) for cases in reference.values() for codes in cases.values()} == {4 * 32}


def test_shipped_reference_knows_the_hashes(real_data):
    reference, known = json.loads(oasis.REFERENCE.read_text()), 0
    with gzip.open(real_data / "oasis_sha256.txt.gz", "rt") as lines:
        for line in lines:
            folder, case, number = re.search(r"(\S+)/\w+?_(\d+)_slice_(\d+)", line).groups()
            code = base64.b64encode(bytes.fromhex(line[:6])).decode()
            known += reference[folder][case][4 * int(number):4 * int(number) + 4] == code
    assert known == 2 * 11328


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
        picture[drawn] = 255 if "seg" in file.name else 100
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
    assert brains.task.greys
    nothing_lost(brains)
    as_pillow_reads(brains, real_data / "brains.zip", every=3)


def test_the_courses_own_slices(real_data):
    brains = oasis.load(Recipe("oasis", str(real_data / "oasis_part.zip")))
    assert [(len(s), s.n_subjects) for s in brains.splits] == [(1208, 302), (1120, 35), (544, 17)]
    assert set(brains.train.positions.tolist()) == {0, 8, 16, 24} and brains.box == OASIS_BOX
    assert brains.task.title == "OASIS brain slices" and not brains.task.greys and brains.task.origin == (
        f"oasis_part.zip: 1,208 of the course's 9,664 train slices. {CAN}")
    nothing_lost(brains)
    as_pillow_reads(brains, real_data / "oasis_part.zip", every=36)


def test_no_slice_is_in_the_project(real_data):
    with gzip.open(real_data / "oasis_sha256.txt.gz", "rt") as lines:
        known = {line.split()[0] for line in lines}
    root = Path(__file__).parent.parent
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = listed.stdout.splitlines()
    assert len(known) == 2 * 11328 and "README.md" in files
    assert not [file for file in files if hashlib.sha256((root / file).read_bytes()).hexdigest() in known]
