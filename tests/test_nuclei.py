import numpy as np
import pytest
from PIL import Image

from helpers import data
from helpers.data import DataError


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
    made = data.load("nuclei", folder)
    assert made.image_shape == (128, 128, 3) and [len(s) for s in made.splits] == [7, 1, 2]
    expected = np.zeros((128, 128))
    expected[0:32, :32] = expected[64:96, :32] = 1
    assert all(np.array_equal(label, expected) for split in made.splits for label in split.labels)


def test_every_split_has_both_looks(folder):
    made = data.load("nuclei", folder)
    assert sorted(made.test.images[:, 0, 0, 0].tolist()) == [20, 200]


@pytest.mark.parametrize("gone", ["images/id3.png", "masks"])
def test_missing_parts_are_named(folder, gone):
    target = folder / "id3" / gone
    for file in [target] if target.is_file() else target.iterdir():
        file.unlink()
    with pytest.raises(DataError, match="lack their image or their masks: id3"):
        data.load("nuclei", folder)


def test_damaged_or_misfitting_mask_is_named(folder):
    mask = folder / "id4" / "masks" / "0.png"
    Image.new("L", (9, 9)).save(mask)
    with pytest.raises(DataError, match="id4/masks/0.png is"):
        data.load("nuclei", folder)
    mask.write_bytes(b"no picture")
    with pytest.raises(DataError, match="id4/masks/0.png in stage1_train is not a readable picture"):
        data.load("nuclei", folder)


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match="BBBC038"):
        data.load("nuclei")
    with pytest.raises(DataError, match="no pictures laid out as"):
        data.load("nuclei", tmp_path)


def test_real_nuclei(real_data):
    made = data.load("nuclei", real_data / "nuclei.zip")
    assert sum(map(len, made.splits)) == 465
    looks = [np.mean([np.median(image) > 127 for image in split.images]) for split in made.splits]
    assert np.ptp(looks) < 0.05
