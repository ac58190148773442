import io
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from test_datasets import nothing_lost

from helpers import datasets
from helpers.data import DataError
from helpers.datasets import nuclei
from helpers.recipe import Recipe


def load(path):
    return datasets.load(Recipe("nuclei", str(path)))


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of several sizes and modes, half of them on a bright background, two nuclei each."""
    made = tmp_path / "stage1_train"
    for number in range(10):
        mode, side = ("RGBA", "RGB", "L")[number % 3], 128 if number % 2 else 256
        for kind in ("images", "masks"):
            (made / f"id{number}" / kind).mkdir(parents=True)
        Image.new("L", (side, side), 200 if number < 5 else 20).convert(mode).save(
            made / f"id{number}" / "images" / f"id{number}.png")
        for corner in (0, side // 2):
            mask = np.zeros((side, side), np.uint8)
            mask[corner:corner + side // 4, :side // 4] = 255
            Image.fromarray(mask).save(made / f"id{number}" / "masks" / f"{corner}.png")
    return made


def test_masks_are_merged_and_everything_is_128(folder):
    made = load(folder)
    assert made.image_shape == (128, 128, 3) and [len(s) for s in made.splits] == [7, 1, 2]
    expected = np.zeros((128, 128))
    expected[0:32, :32] = expected[64:96, :32] = 1
    assert all(np.array_equal(label, expected) for split in made.splits for label in split.labels)
    nothing_lost(made)


def test_every_split_has_both_kinds(folder):
    made = load(folder)
    assert sorted(made.test.images[:, 0, 0, 0].tolist()) == [20, 200]


@pytest.mark.parametrize("gone", ["images/id3.png", "masks"])
def test_missing_parts_are_named(folder, gone):
    target = folder / "id3" / gone
    for file in [target] if target.is_file() else target.iterdir():
        file.unlink()
    with pytest.raises(DataError, match="lack their image or their masks: id3"):
        load(folder)


def test_damaged_or_misfitting_mask_is_named(folder):
    mask = folder / "id4" / "masks" / "0.png"
    Image.new("L", (9, 9)).save(mask)
    with pytest.raises(DataError, match="id4/masks/0.png is"):
        load(folder)
    mask.write_bytes(b"no picture")
    with pytest.raises(DataError, match="id4/masks/0.png in stage1_train is not a readable picture"):
        load(folder)


@pytest.mark.parametrize("change, greys", [
    (lambda mask: mask.resize((200, 200)).resize(mask.size, Image.Resampling.BILINEAR), r"\[0, "),
    (lambda mask: mask.point(lambda grey: 255), r"\[255\]")])
def test_masks_that_were_resized_or_are_all_white_are_refused(folder, change, greys):
    file = folder / "id4" / "masks" / "0.png"
    change(Image.open(file)).save(file)
    with pytest.raises(DataError, match=f"id4/masks/0.png has the greys {greys}.*Was it resized, saved as JPEG, or painted"):
        load(folder)


def test_a_picture_that_is_there_twice_is_refused(folder, tmp_path):
    shutil.copytree(folder / "id3", tmp_path / "stage1_train" / "corrected" / "id3")
    with pytest.raises(DataError, match="has one picture, or its masks, twice: corrected/id3/images/id3.png, id3/images"):
        load(folder)
    shutil.rmtree(folder / "corrected")
    shutil.copy(folder / "id3" / "images" / "id3.png", folder / "id3" / "images" / "again.png")
    with pytest.raises(DataError, match="has one picture, or its masks, twice: id3/images/again.png"):
        load(folder)


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match="no pictures laid out as"):
        load(tmp_path)


def test_real_nuclei(real_data, tmp_path):
    with zipfile.ZipFile(real_data / "nuclei.zip") as archive:
        found = nuclei.find_pictures(nuclei.Files(real_data / "nuclei.zip"))
        assert len(found) == 465
        some = dict(list(found.items())[::16])
        archive.extractall(tmp_path, [name for image, masks in some.values() for name in (image, *masks)])
        made = nuclei.load(Recipe("nuclei", str(tmp_path)))
        assert [len(split) for split in made.splits] == [21, 3, 6] and sum(map(len, made.splits)) == len(some)
        kinds = [np.mean([np.median(image) > 127 for image in split.images]) for split in made.splits]
        assert np.ptp(kinds) < 0.2
        nothing_lost(made)
        for split in made.splits:
            for labels, name in zip(split.labels, split.subjects):  # a pixel is a nucleus where any mask has one
                masks = [np.asarray(Image.open(io.BytesIO(archive.read(mask)))) > 0 for mask in some[name][1]]
                rows, columns = (((np.arange(128) + 0.5) * side / 128).astype(int) for side in masks[0].shape)
                assert np.array_equal(labels, np.any(masks, 0)[rows][:, columns]), name
