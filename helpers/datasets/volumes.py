"""MR volumes of one's own, T1 with tissue labels, laid out as slices the way the course does."""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to, resample_to_output

from helpers.data import FRAME, TISSUES, Box, DataError, Split, Task, split_dataset
from helpers.datasets.files import Files, find_pairs, in_parallel

SPACING = 2.0  # mm between slices
FEWEST = 100  # labelled voxels
LARGEST, LARGEST_MM = 1024, 512  # voxels, mm along an axis
HEAD = 25  # grey values above this are taken for head, those below for air
NAME = r"(?P<subject>.+?)(?P<mask>_seg)?\.(?:nii\.gz|nii|hdr)"


def load(recipe):
    """Read NAME.nii.gz with NAME_seg.nii.gz (or .nii, or .hdr with .img), split by subject 70 / 10 / 20 %.

    Labels are 0 background, 1 CSF, 2 grey matter, 3 white matter; one volume is one subject. Any orientation and
    spacing: volumes are brought to 1 mm pixels, axial slices 2 mm apart, in a frame of 256x256.
    """
    path = Path(recipe.data).expanduser()
    if not path.is_dir():
        raise DataError(f"Volumes are read from a folder with NAME.nii.gz and NAME_seg.nii.gz in it; {path} is none.")
    names = [name for name in Files(path).names if "/" not in name]
    headers, halves = ({name[:-4] for name in names if name.lower().endswith(end)} for end in (".hdr", ".img"))
    for name in sorted(halves - headers):
        raise DataError(f"{name}.img needs its header beside it, {name}.hdr. Copy it there, or remove {name}.img.")
    pairs = find_pairs(names, NAME, path.name, "NAME.nii.gz with NAME_seg.nii.gz beside it")
    task = Task(f"{path.name} (volumes)", TISSUES, f"{len(pairs)} volumes of {path.name}/, brought to axial slices of "
                f"1 mm pixels, {SPACING:g} mm apart, split by subject")
    made = in_parallel(lambda pair: to_slices(*read_pair(*(path / name for name in pair))), pairs.values())
    images, labels = map(np.concatenate, zip(*made))
    subjects = np.repeat([subject for subject, _ in pairs], [len(own) for own, _ in made])
    return split_dataset(Split("all", images[..., None], labels, subjects, task), recipe.seed)


def read_pair(volume, labels):
    """Volume and label volume as nibabel images with the same grid and three axes."""
    images = read_volume(volume), read_volume(labels)
    check_pair(*images, volume.name, labels.name)
    return images


def read_volume(file):
    """One volume as a nibabel image in memory, trailing axes of length 1 removed; DataError on what is no head."""
    try:
        image = nib.load(file)
        millimetres = nib.affines.voxel_sizes(image.affine)[:image.ndim] * image.shape[:3]
        if (not np.isfinite(image.affine).all() or max(image.shape) > LARGEST
                or not np.all((millimetres > 10) & (millimetres < LARGEST_MM))):
            raise DataError(f"{file.name} is {' x '.join(f'{mm:g}' for mm in millimetres)} mm large, {image.shape} "
                            "voxels, which is no head. Is its header damaged?")
        if image.ndim < 3 or max(image.shape[3:], default=1) > 1 or image.get_data_dtype().kind not in "iuf":
            raise DataError(f"{file.name} has {image.ndim} axes {image.shape} of {image.get_data_dtype()}; expected "
                            "three, one number a voxel.")
        array = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    except FileNotFoundError as error:
        other = Path(str(error.filename)).name
        raise DataError(f"{file.name} needs the file beside it with its other half: {other} is not there.") from error
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, nib.filebasedimages.ImageFileError,
            nib.spatialimages.HeaderDataError) as error:
        raise DataError(f"{file.name} is not a readable volume ({error}). Copy or download it again.") from error
    return nib.Nifti1Image(np.nan_to_num(array.astype(np.float32)), image.affine)


def check_pair(volume, labels, name, other):
    """Raise DataError, with the files' names, unless shapes and positions agree and the labels are 0, 1, 2 and 3."""
    if volume.shape != labels.shape or not np.allclose(volume.affine, labels.affine, atol=0.01):
        raise DataError(f"{other} {labels.shape} does not lie on the grid of {name} {volume.shape}. Resample the "
                        "labels to the volume, by nearest neighbour.")
    strange = np.setdiff1d(labels.dataobj, range(len(TISSUES)))
    if len(strange):
        raise DataError(f"{other} has the labels {', '.join(f'{v:g}' for v in strange[:8])}; expected 0 background, "
                        "1 CSF, 2 grey matter, 3 white matter.")
    if (tissue := np.count_nonzero(labels.dataobj)) < FEWEST:
        raise DataError(f"{other} labels {tissue} voxels as tissue; a brain has many more.")
    check_greys(volume, name)


def check_greys(volume, name):
    """Raise DataError, with the file's name, on values that are no greys of MR, such as standardised ones."""
    values = np.asarray(volume.dataobj)
    if not (values > 0).any() or (values < -0.05 * values.max()).mean() > 0.01:
        raise DataError(f"{name} has no values above 0, or many far below. Export the scan without rescaling it.")


def to_slices(volume, labels):
    """Axial slices uint8 (n, 256, 256) and their labels, brain sideways: rows left to right, columns back to front.

    Pixels are 1 mm, slices SPACING mm apart, as many as have labels, the head in the middle of the frame. Greys run
    from 0 to the volume's 99.9th percentile above 0.
    """
    volume = resample_to_output(volume, (1, 1, SPACING), order=1)
    labels = resample_from_to(labels, volume, order=0)
    greys, labels = to_greys(volume), np.asarray(labels.dataobj).round().astype(np.uint8)
    heights = np.flatnonzero(labels.any((0, 1)))
    if not len(heights):
        raise DataError(f"A label volume has no tissue on slices {SPACING} mm apart: it labels next to nothing.")
    corner = frame_corner(greys)
    return tuple(framed(array, corner)[heights[0]:heights[-1] + 1] for array in (greys, labels))


def to_greys(volume):
    """A volume's values as greys, uint8: from 0 to its 99.9th percentile above 0."""
    values = np.asarray(volume.dataobj)
    top = np.percentile(values[values > 0], 99.9) if (values > 0).any() else 1
    return np.clip(values * (255 / top), 0, 255).round().astype(np.uint8)


def frame_corner(greys, frame=(FRAME, FRAME)):
    """Row and column of an upright volume (x, y, z) at which a frame begins that has the head in its middle."""
    corner = []
    for axis, length in enumerate(frame):
        counts = (greys > HEAD).sum(axis=(1 - axis, 2))
        head = np.flatnonzero(counts > 0.1 * counts.max())  # not a nose, not a single bright voxel
        middle = (head[0] + head[-1] + 1) / 2 if len(head) else greys.shape[axis] / 2
        corner.append(int(np.floor(middle - length / 2)))
    return tuple(corner)


def framed(volume, corner, frame=(FRAME, FRAME)):
    """The axial planes of an upright volume (x, y, z) as slices (z, H, W) of a frame that begins at `corner`."""
    return Box(*corner, *frame).cut(np.moveaxis(volume, 2, 0))
