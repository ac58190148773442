import io
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from test_datasets import nothing_lost

from helpers import datasets
from helpers.data import DataError
from helpers.datasets import lgg
from helpers.recipe import Recipe


def load(path):
    return datasets.load(Recipe("lgg", str(path)))


@pytest.fixture
def folder(tmp_path):
    """Five patients with three slices, numbered 9, 10 and 11."""
    made = tmp_path / "kaggle_3m"
    for patient in range(5):
        name = f"TCGA_CS_{4940 + patient}_1996090{patient}"
        (made / name).mkdir(parents=True)
        for number in (9, 10, 11):
            Image.new("RGB", (16, 16), (patient * 40, number, 3)).save(made / name / f"{name}_{number}.tif")
            mask = np.zeros((16, 16), np.uint8)
            mask[:patient + 1, :4] = 255
            Image.fromarray(mask).save(made / name / f"{name}_{number}_mask.tif")
    return made


def test_split_by_patient_in_order_with_three_channels(folder):
    made = load(folder)
    assert [s.n_subjects for s in made.splits] == [3, 1, 1] and made.image_shape == (16, 16, 3)
    for split in made.splits:
        for image, label, subject in zip(split.images, split.labels, split.subjects):
            patient = int(subject[-1])
            assert image[0, 0].tolist()[0] == patient * 40 and label.sum() == 4 * (patient + 1)
        assert split.images[:3, 0, 0, 1].tolist() == [9, 10, 11] == split.positions[:3].tolist()  # not 10, 11, 9
    nothing_lost(made)


def test_kaggles_second_copy_is_not_read_twice(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "whole" / "kaggle_3m")
    shutil.copytree(folder, tmp_path / "whole" / "lgg-mri-segmentation" / "kaggle_3m")
    assert sum(map(len, load(tmp_path / "whole").splits)) == 15


def test_two_files_of_one_name_must_be_the_same(folder):
    picture = next(folder.rglob("*_10.tif"))
    Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / picture.name)
    assert sum(map(len, load(folder).splits)) == 15  # of one grey: a mirrored copy of it is the same file
    Image.new("RGB", (16, 16), (1, 2, 3)).save(folder / picture.name)
    with pytest.raises(DataError, match=f"{picture.name} and .*{picture.name} in kaggle_3m differ, but have one name"):
        load(folder)


def test_a_patient_spelled_in_two_ways_is_one(folder):
    for file in list(folder.rglob("*4940*_11*.tif")):
        file.rename(file.with_name(file.name.lower()))
    assert [s.n_subjects for s in load(folder).splits] == [3, 1, 1]


def test_masks_that_are_all_empty_or_have_pages_are_refused(folder):
    masks = sorted(folder.rglob("*_mask.tif"))
    page = Image.open(masks[0])
    page.save(masks[0], save_all=True, append_images=[page])
    with pytest.raises(DataError, match=f"{masks[0].name} in kaggle_3m holds 2 pictures"):
        load(folder)
    for mask in masks:
        Image.new("L", (16, 16)).save(mask)
    with pytest.raises(DataError, match="All masks of LGG .* are empty: nothing to learn"):
        load(folder)


def test_damaged_pictures_are_left_out_and_named(folder):
    file = next(folder.rglob("*_10.tif"))
    file.write_bytes(file.read_bytes()[:100])
    made = load(folder)
    assert sum(map(len, made.splits)) == 14
    assert "1 damaged slices left out" in made.task.origin and file.name in made.task.origin


def test_missing_mask_strange_grey_and_other_size_are_named(folder):
    masks = sorted(folder.rglob("*_mask.tif"))
    Image.new("L", (16, 16), 7).save(masks[0])
    with pytest.raises(DataError, match=rf"{masks[0].name} has the greys \[7\]"):
        load(folder)
    Image.new("L", (8, 8)).save(masks[0])
    with pytest.raises(DataError, match="must be equal"):
        load(folder)
    masks[0].unlink()
    with pytest.raises(DataError, match="have no mask: .*_10.tif"):
        load(folder)


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match="No file in .* is named like TCGA"):
        load(tmp_path)


def test_real_tumours(real_data):
    made = lgg.load(Recipe("lgg", str(real_data / "lgg.zip")))
    assert sum(s.n_subjects for s in made.splits) == 77 and sum(map(len, made.splits)) == 894
    assert 0.02 < made.train.label_shares()[1] < 0.05 and made.box.shape == (256, 256)  # there is no air to cut
    nothing_lost(made)
    with zipfile.ZipFile(real_data / "lgg.zip") as archive:  # each slice is what Pillow reads, at its own size
        for split in made.splits:
            for i in range(0, len(split), 8):
                name = f"kaggle_3m/{split.subjects[i]}/{split.subjects[i]}_{split.positions[i]}"
                image, mask = (np.asarray(Image.open(io.BytesIO(archive.read(f"{name}{end}.tif")))) for end in
                               ("", "_mask"))
                assert np.array_equal(split.images[i], image) and np.array_equal(split.labels[i] * 255, mask), name
