"""A trained network on a scan of your own: a volume or a picture in, a mask on the scan's own grid out."""

import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to, resample_to_output
from PIL import Image, ImageOps

from helpers import evaluate
from helpers.data import Captioned, DataError, Split, resize
from helpers.datasets.volumes import FRAME, check_greys, framed, read_volume, to_greys

VOLUME = re.compile(r"(.+?)\.(nii|nii\.gz|hdr|img)", re.IGNORECASE)  # a volume's file name
EMPTY = 0.05  # share of labelled voxels that may lie where a scan is empty
MODES = ("L", "LA", "P", "RGB", "RGBA")  # 8-bit pictures


@dataclass(frozen=True, repr=False)
class Segmented(Captioned):
    """A scan with the labels found: as a Split of slices to look at, as a mask file, as a table of volumes.

    `file` is the mask, written on the scan's own grid; `table` says how much of each label there is; `warning` why
    not to believe it, if anything speaks against it.
    """

    split: Split
    file: Path
    table: pd.DataFrame
    warning: str = ""

    def captioned(self):
        """Where the mask is, whose labels it holds, what speaks against them; how much of each label there is."""
        return (f"{self.split.name}, {len(self.split)} slices: {self.split.task.title}; the mask is in {self.file}"
                f"{self.warning}", self.table)


def scan(network, file, task, folder, mirrors=()):
    """Segment one scan, a NIfTI or Analyze volume or an 8-bit picture, and write its mask into `folder`.

    A volume may have any orientation and spacing; its mask, `NAME-CODE_labels.nii.gz`, has the same grid and the
    labels 0 to L - 1, and the table gives millilitres. A picture must lie as the training slices do; its mask,
    `NAME-CODE_labels.png`, has the same size and the labels' greys. The code stands for the scan's content, so that
    scans of one name keep their masks apart. Every slice that is not empty is predicted, those far from what the
    network was trained on too; with `mirrors`, axes of `helpers.data.Task`, mirror images too, as in
    `evaluate.predict`. Raises DataError, naming the file, on what cannot be read.
    """
    try:
        file, folder = Path(file).expanduser(), Path(folder).expanduser()
        if not file.is_file():
            raise DataError(f"No file is at {file}. Give a volume (.nii, .nii.gz, .hdr) or a picture (.png).")
        if is_dicom(file):
            raise DataError(f"{file.name} is DICOM, one slice of a scan. Bring its folder to NIfTI first, for instance "
                            "with dcm2niix, and give that.")
        folder.mkdir(parents=True, exist_ok=True)
        kind = of_volume if VOLUME.fullmatch(file.name) else of_picture
        return kind(network, file, task, folder, mirrors)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{file} cannot be reached, or its mask not written into {folder} ({error}).") from error


def is_dicom(file):
    """True for a DICOM file: four letters after 128 bytes of anything."""
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def of_volume(network, file, task, folder, mirrors):
    """Segment a volume: axial slices of 1 mm, as `helpers.datasets.volumes` lays them out, and back to its grid."""
    size, channels = network.input_shape[2:]
    if channels != 1:
        raise DataError(f"{file.name} is a volume, with one grey value a voxel; this network takes {channels} "
                        "channels. Train on brain slices first.")
    volume = read_volume(file)
    check_greys(volume, file.name)
    upright = resample_to_output(volume, (1, 1, 1), order=1)
    greys = to_greys(upright)
    images = np.stack([resize(framed(plane), size) for plane in np.moveaxis(greys, 2, 0)])[..., None]
    guesses = evaluate.probabilities(network, images, mirrors)
    guesses[images.max(axis=(1, 2, 3)) == 0] = np.eye(len(task.labels))[0]  # an empty slice is background
    place = upright.affine @ frame_affine(upright.shape, size)
    labels = np.argmax([on_grid(volume, guesses[..., k], place, outside=k == 0)
                        for k in range(len(task.labels))], axis=0).astype(np.uint8)
    written = folder / f"{VOLUME.fullmatch(file.name)[1]}-{code(volume.dataobj)}_labels.nii.gz"
    nib.save(nib.Nifti1Image(labels, volume.affine), written)
    voxels = np.bincount(labels.ravel(), minlength=len(task.labels))
    millilitres = voxels * abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    table = pd.DataFrame({"in the mask": range(len(task.labels)), "voxels": voxels,
                          "millilitres": millilitres.round(1)}, [label.name for label in task.labels])
    return Segmented(to_split(file, images, guesses, task), written, table, doubt(np.asarray(volume.dataobj), labels))


def doubt(scan, labels):
    """A warning where labels (x, y, z) lie where a scan of the same grid is empty, as of a skull taken off; else ""."""
    share = (scan[labels > 0] == scan.min()).mean() if labels.any() else 0
    return (f". WARNING: {share:.0%} of the labelled voxels lie where the scan is empty. It differs too much from the "
            "slices that the network was trained on: do not use these labels.") if share > EMPTY else ""


def frame_affine(shape, size):
    """From pixels of the network's slices (row, column, slice) to voxels of the upright volume that was framed."""
    step = FRAME / size
    affine = np.diag([step, step, 1.0, 1.0])
    first = step // 2 if step.is_integer() else (step - 1) / 2
    affine[:2, 3] = [first - (FRAME - n) // 2 for n in shape[:2]]  # the pixel `resize` picks; then the padding
    return affine


def on_grid(volume, maps, affine, outside):
    """Probabilities (n, H, W) of one label, linearly interpolated on the grid of a volume; `outside` the slices."""
    return np.asarray(resample_from_to(nib.Nifti1Image(np.moveaxis(maps, 0, 2), affine), volume, order=1,
                                       cval=float(outside)).dataobj, np.float32)


def code(array):
    """Eight hexadecimal digits that stand for an array's content."""
    return f"{zlib.crc32(np.ascontiguousarray(array)):08x}"


def of_picture(network, file, task, folder, mirrors):
    """Segment a picture, brought to the network's size; the mask has the picture's own.

    A grey picture is padded to a square first, so that a brain keeps its shape; a colour picture that is not square is
    stretched, as its data set's are. One that a camera marked as turned (EXIF) is turned, and so is its mask.
    """
    size, channels = network.input_shape[2:]
    try:
        with Image.open(file) as opened:
            if opened.mode not in MODES:
                raise DataError(f"{file.name} is a picture of mode {opened.mode}; save it as 8-bit grey or colour.")
            if getattr(opened, "n_frames", 1) > 1:
                raise DataError(f"{file.name} holds {opened.n_frames} pictures; save the one you mean by itself.")
            if opened.mode in ("LA", "RGBA") and opened.getextrema()[-1][0] < 255:
                raise DataError(f"{file.name} is partly transparent; save it without transparency.")
            picture = np.array(ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file.name} is neither a readable picture nor a volume (.nii, .nii.gz, .hdr) ({error}). "
                        "Copy or export it again.") from error
    height, width = picture.shape[:2]
    top, left = (channels == 1) * (max(height, width) - np.array([height, width])) // 2
    padded = np.pad(picture, [(top, top), (left, left)] + [(0, 0)] * (picture.ndim - 2))
    image = resize(padded, size).reshape(1, size, size, channels)
    guess = evaluate.probabilities(network, image, mirrors)
    maps = [Image.fromarray(guess[0, ..., k]).resize(padded.shape[1::-1], Image.Resampling.BILINEAR)
            for k in range(len(task.labels))]
    labels = np.argmax(maps, axis=0)[top:top + height, left:left + width]
    written = folder / f"{file.stem}-{code(picture)}_labels.png"
    Image.fromarray(np.array([label.grey for label in task.labels], np.uint8)[labels]).save(written)
    pixels = np.bincount(labels.ravel(), minlength=len(task.labels))
    table = pd.DataFrame({"in the mask": [label.grey for label in task.labels], "pixels": pixels,
                          "% of the picture": (100 * pixels / labels.size).round(2)},
                         [label.name for label in task.labels])
    return Segmented(to_split(file, image, guess, task), written, table)


def to_split(file, images, probabilities, task):
    """The slices of one scan, with their most probable labels in the place of truth."""
    task = replace(task, title=f"labels by a network trained on {task.title}")
    return Split(file.name, images, probabilities.argmax(-1).astype(np.uint8), np.full(len(images), file.name), task)
