"""A scan of your own: a volume or a picture in, a mask on the scan's own grid out.

    python -m helpers.scan RUN SCAN...

RUN is the folder of a finished run; masks go to RUN/results. Needs neither the notebook nor the training data.
"""

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to, resample_to_output
from PIL import Image, ImageOps

from helpers.data import Box, DataError, Shown, Split
from helpers.datasets import practice
from helpers.datasets.files import digest, open_picture
from helpers.datasets.volumes import check_greys, check_pair, frame_corner, framed, read_volume, to_greys
from helpers.evaluate import dice
from helpers.predict import Predictor
from helpers.recipe import UserError

VOLUME = re.compile(r"(.+?)\.(nii|nii\.gz|hdr|img)", re.IGNORECASE)  # a volume's file name
EMPTY = 0.05  # share of labelled voxels that may lie where a scan is empty
MODES = ("L", "LA", "P", "RGB", "RGBA")  # 8-bit pictures


@dataclass(frozen=True, repr=False)
class ScanLabels(Shown):
    """A scan with the labels found: as a Split of slices to look at, as a mask file, as a table of volumes.

    `file` is the mask, written on the scan's own grid; `table` says how much of each label there is; `warning` why
    not to believe it, if anything speaks against it.
    """

    split: Split
    file: Path
    table: pd.DataFrame
    warning: str = ""

    def as_table(self):
        """Where the mask is, whose labels it holds, what speaks against them; how much of each label there is."""
        return (f"{self.split.name}, {len(self.split)} slices: {self.split.task.title}; the mask is in {self.file}"
                f"{self.warning}", self.table)


def segment(predictor, file, folder):
    """Segment one scan, a NIfTI or Analyze volume or an 8-bit picture, and write its mask into `folder`.

    A volume may have any orientation and spacing. Its mask, `NAME-CODE_labels.nii.gz`, has the same grid and the labels
    0 to L - 1; the table gives millilitres and, where true labels lie beside the scan as NAME_seg, Dice. A picture must
    lie as the training slices do. Its mask, `NAME-CODE_labels.png`, has the same size and the labels' greys. The code
    stands for the scan's content, so that scans of one name keep their masks apart. Every slice that is not empty is
    predicted. Raises DataError, naming the file, on what cannot be read.
    """
    try:
        file, folder = Path(file).expanduser(), Path(folder).expanduser()
        if not file.is_file():
            raise DataError(f"No file is at {file}. Give a volume (.nii, .nii.gz, .hdr) or a picture (.png).")
        with file.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                raise DataError(f"{file.name} is DICOM, one slice. Make its folder NIfTI (dcm2niix) and give that.")
        folder.mkdir(parents=True, exist_ok=True)
        return (of_volume if VOLUME.fullmatch(file.name) else of_picture)(predictor, file, folder)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{file} cannot be reached, or its mask not written into {folder} ({error}).") from error


def example(dataset, folder, seed=0):
    """A scan to try where the reader has none: for brains a practice brain of no split, else a test picture."""
    folder.mkdir(parents=True, exist_ok=True)
    if dataset.image_shape[-1] == 1:
        spread = practice.VARIED if "varied" in dataset.task.title else practice.COURSE
        return practice.write_scan(folder / "practice_brain_synthetic.nii.gz", seed=seed, spread=spread)[0]
    Image.fromarray(dataset.test.images[len(dataset.test) // 2]).save(folder / "test_picture.png")
    return folder / "test_picture.png"


def of_volume(predictor, file, folder):
    """Segment a volume: axial slices of 1 mm, the head in the middle of the frame, and back to the volume's grid."""
    task, n_labels = predictor.task, len(predictor.task.labels)
    if predictor.channels != 1:
        raise DataError(f"{file.name} is a volume, with one grey value a voxel; this network takes "
                        f"{predictor.channels} channels. Train on brain slices first.")
    volume = read_volume(file)
    check_greys(volume, file.name)
    upright = resample_to_output(volume, (1, 1, 1), order=1)
    greys = to_greys(upright)
    corner = frame_corner(greys, predictor.frame)
    images = framed(greys, corner, predictor.frame)[..., None]
    maps = predictor.probabilities(images)
    maps[images.max(axis=(1, 2, 3)) == 0] = np.eye(n_labels)[0]  # an empty slice is background
    place = upright.affine @ nib.affines.from_matvec(np.eye(3), [*corner, 0])
    grids = (nib.Nifti1Image(np.moveaxis(maps[..., k], 0, 2), place) for k in range(n_labels))
    labels = np.argmax([np.asarray(resample_from_to(grid, volume, order=1, cval=float(k == 0)).dataobj, np.float32)
                        for k, grid in enumerate(grids)], axis=0).astype(np.uint8)
    name, ending = VOLUME.fullmatch(file.name).groups()
    written = folder / f"{name}-{digest(np.ascontiguousarray(volume.dataobj))}_labels.nii.gz"
    nib.save(nib.Nifti1Image(labels, volume.affine), written)
    voxels = np.bincount(labels.ravel(), minlength=n_labels)
    millilitres = voxels * abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    table = pd.DataFrame({"in the mask": range(n_labels), "voxels": voxels, "millilitres": millilitres.round(1)},
                         task.names)
    if (true := file.with_name(f"{name}_seg.{ending}")).exists():
        check_pair(volume, truth := read_volume(true), file.name, true.name)
        table["Dice on the scan's own grid"] = dice(truth.get_fdata().astype(int), labels, n_labels).round(4)
    found = to_split(file, images, maps, task)
    return ScanLabels(found, written, table, warning(np.asarray(volume.dataobj), labels, found.labels, predictor.box))


def warning(scan, labels, slices, box):
    """A warning where labels (x, y, z) lie where a scan of that grid is empty, or in slices touch the box; or ""."""
    share = (scan[labels > 0] == scan.min()).mean() if labels.any() else 0
    said = (f". WARNING: {share:.0%} of the labelled voxels lie where the scan is empty. It differs too much from the "
            "slices that the network was trained on: do not use these labels") if share > EMPTY else ""
    if box.cut(slices)[:, [0, -1]].any() or box.cut(slices)[:, :, [0, -1]].any():
        said += (f". WARNING: tissue was found at the border of the {box.height} x {box.width} mm that the network "
                 "sees: some of the brain may lie outside")
    return said


def of_picture(predictor, file, folder):
    """Segment a picture, brought to the frame of the training slices; the mask has the picture's own size.

    A grey picture of another shape is padded first, so that a brain keeps its form; a colour picture is stretched, as
    its data set's are. One that a camera marked as turned (EXIF) is turned, and so is its mask.
    """
    channels, frame, task = predictor.channels, predictor.frame, predictor.task
    picture = read_picture(file, "L" if channels == 1 else "RGB")
    size = picture.shape[:2]
    full = [round(n * np.divide(size, frame).max()) for n in frame] if channels == 1 else size
    padding = Box(*-(np.subtract(full, size) // 2), *full)  # around the picture, in its middle
    padded = Image.fromarray(padding.cut(picture[None])[0])
    images = np.array(padded.resize(frame[::-1], Image.Resampling.NEAREST)).reshape(1, *frame, channels)
    maps = predictor.probabilities(images)
    large = [Image.fromarray(chances).resize(padded.size, Image.Resampling.BILINEAR)
             for chances in np.moveaxis(maps[0], -1, 0)]
    labels = padding.paste(np.argmax(large, axis=0)[None], size)[0]
    written, greys = folder / f"{file.stem}-{digest(picture)}_labels.png", np.array([lb.grey for lb in task.labels])
    Image.fromarray(greys.astype(np.uint8)[labels]).save(written)
    pixels = np.bincount(labels.ravel(), minlength=len(greys))
    shares = (100 * pixels / labels.size).round(2)
    table = pd.DataFrame({"in the mask": greys, "pixels": pixels, "% of the picture": shares}, task.names)
    return ScanLabels(to_split(file, images, maps, task), written, table)


def read_picture(file, mode):
    """An 8-bit picture as an array, grey (mode L) or colour (RGB), the way up that its camera marked."""
    image = open_picture(file.read_bytes(), file.name, MODES)
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{file.name} holds {image.n_frames} pictures; save the one you mean by itself.")
    if image.mode in ("LA", "RGBA") and image.getextrema()[-1][0] < 255:
        raise DataError(f"{file.name} is partly transparent; save it without transparency.")
    return np.array(ImageOps.exif_transpose(image).convert(mode))


def to_split(file, images, probabilities, task):
    """The slices of one scan, with their most probable labels in the place of truth."""
    task = replace(task, title=f"labels by a network trained on {task.title}")
    return Split(file.name, images, probabilities.argmax(-1).astype(np.uint8), np.full(len(images), file.name), task)


def main(words):
    """Segment the scans named on a command line; the number of those that could not be."""
    if len(words) < 2:
        raise SystemExit("python -m helpers.scan RUN SCAN...: RUN is the folder of a run, such as runs/practice-3f9c2a")
    run, failed = Path(words[0]), 0
    try:
        predictor = Predictor.open(run)
    except UserError as error:
        raise SystemExit(str(error)) from None
    for file in words[1:]:
        try:
            print(segment(predictor, file, run / "results"), "\n", flush=True)
        except UserError as error:
            failed += 1
            print(error, file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
