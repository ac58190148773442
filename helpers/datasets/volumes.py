"""MR volumes of one's own, T1 with tissue labels, laid out as slices the way the course does."""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to, resample_to_output

from helpers.data import FRAME, TISSUES, Box, DataError, Split, Task, split_dataset
from helpers.datasets.files import Files, find_pairs, in_parallel

SPACING = 2.0  # mm between slices
FEWEST = 100  # labelled voxels
LARGEST, LARGEST_MM = 2**28, 512  # voxels, mm along an axis
# where an Analyze file's axes lead, by its orient byte; without one LAS
ORIENT = {b"\1": "LSA", b"\2": "ASL", b"\3": "LPS", b"\4": "LIA", b"\5": "ASR"}
NUMBERS = "0 background, 1 CSF, 2 grey matter, 3 white matter"
INFINITE = 0.001  # share of a scan's voxels, at most
HEAD = 25  # grey values above this are taken for head, those below for air
NAME = r"(?P<subject>.+?)(?P<mask>_seg)?\.(?:nii\.gz|nii|hdr)"
PERSON = re.compile(r"(sub-[^_]+|OAS\d_\d{4})_.*", re.IGNORECASE)  # as BIDS and OASIS name several scans of one


def load(recipe):
    """Read NAME.nii.gz with NAME_seg.nii.gz (or .nii, or .hdr with .img), split by subject 70 / 10 / 20 %.

    Labels are 0 background, 1 CSF, 2 grey matter, 3 white matter. Scans such as sub-01_ses-1 and sub-01_ses-2, or
    OAS1_0001_MR1 and OAS1_0001_MR2, are of one person; else each is. Any orientation and
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
    spelled = {}
    people = [spelled.setdefault(who.lower(), who) for who in (PERSON.sub(r"\1", name) for name, _ in pairs)]
    task = Task(f"{path.name} (volumes)", TISSUES, f"{len(pairs)} volumes of {len(spelled)} people in {path.name}/, "
                f"brought to axial slices of 1 mm pixels, {SPACING:g} mm apart, split by person")

    def read(pair):
        """A pair's slices, their labels, and whether its volume stores no orientation."""
        volume, drawn = read_pair(*(path / name for name in pair))
        return *to_slices(volume, drawn), not has_orientation(volume)

    made = in_parallel(read, pairs.values())
    images, labels = (np.concatenate([one[k] for one in made]) for k in (0, 1))
    if unknown := sum(one[2] for one in made):
        task = replace(task, origin=f"{task.origin}; {unknown} store no orientation and are read as axial: look at them")
    subjects = np.repeat(people, [len(own) for own, *_ in made])
    return split_dataset(Split("all", images[..., None], labels, subjects, task), recipe.seed)


def read_pair(volume, labels, axial=False):
    """Volume and label volume as nibabel images with the same grid and three axes."""
    images = read_volume(volume, axial=axial), read_volume(labels, 1, axial)
    check_pair(*images, volume.name, labels.name)
    return images[0], nib.Nifti1Image(images[1].dataobj, images[0].affine)


def read_volume(file, numbers=0, axial=False):
    """One volume as a nibabel image in memory, trailing axes of length 1 removed; DataError on what is no head.

    What is not a number becomes 0, as outside a brain; the share `numbers` of voxels must be some. Both places that a
    NIfTI file may give are kept; an Analyze file lies as its orient byte says, unless it is known to be `axial`.
    """
    try:
        image = nib.load(file)
        analyze = isinstance(image.header, nib.AnalyzeHeader) and not isinstance(image.header, nib.Nifti1Header)
        if analyze and not axial and not file.with_suffix(".mat").exists() and image.header["orient"].item() in ORIENT:
            image = type(image)(image.dataobj, turned(image, ORIENT[image.header["orient"].item()]), image.header)
        if getattr(image, "affine", None) is None or image.ndim < 3 or max(image.shape[3:], default=1) > 1 or (
                image.get_data_dtype().kind not in "iuf"):
            raise DataError(f"{file.name} has {image.ndim} axes {image.shape} of {image.get_data_dtype()}; expected "
                            "three, one number a voxel. Of a series, save one volume; surfaces (CIFTI) are none.")
        millimetres = nib.affines.voxel_sizes(image.affine) * image.shape[:3]
        if not np.isfinite(image.affine).all() or np.prod(image.shape, dtype=float) > LARGEST or not np.all(
                (millimetres > 10) & (millimetres < LARGEST_MM)):
            unit = {1: "metres", 3: "microns"}.get(int(image.header.get("xyzt_units", 0)) % 8, "mm")
            raise DataError(f"{file.name} is {' x '.join(f'{mm:g}' for mm in millimetres)} {unit} large, {image.shape} "
                            f"voxels. Heads have 10 to {LARGEST_MM} mm along each axis, at most {LARGEST:,} voxels.")
        array = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    except FileNotFoundError as error:
        other = Path(str(error.filename)).name
        raise DataError(f"{file.name} needs the file beside it with its other half: {other} is not there.") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # nibabel, scipy and zlib raise nearly anything
        raise DataError(f"{file.name} is not a readable volume ({error}). Is it gzipped and not called .gz, or the "
                        "reverse? Is a .mat beside it another program's? Else copy or download it again.") from error
    array = array.astype(np.float32)
    if np.isinf(array).mean() > INFINITE or np.isfinite(array).mean() < numbers:
        raise DataError(f"{file.name} has {(~np.isfinite(array)).sum():,} voxels that are no number. Export it again.")
    array = np.nan_to_num(array, copy=False, posinf=0, neginf=0)
    if numbers == 1:  # labels, perhaps computed with, such as 2.9999998
        for plane in array:
            np.copyto(plane, np.round(plane), where=abs(np.round(plane) - plane) < 0.001)
    made = nib.Nifti1Image(array, image.affine)
    with suppress(nib.spatialimages.HeaderDataError, AttributeError):  # not NIfTI, or half of its header damaged
        made.set_sform(*image.get_sform(coded=True), update_affine=False)
        made.set_qform(*image.get_qform(coded=True), update_affine=False)
    return made


def turned(image, towards):
    """The affine of an image whose axes lead `towards`, such as LAS, its middle at 0."""
    affine = np.eye(4)
    affine[:3, :3] = [[zoom * ((code == ahead) - (code == behind)) for code, zoom in zip(towards, image.header.get_zooms())]
                      for ahead, behind in ("RL", "AP", "SI")]
    affine[:3, 3] = -affine[:3, :3] @ (np.array(image.shape[:3]) - 1) / 2
    return affine


def has_orientation(volume):
    """Whether its file says how a volume lies; Analyze files do, if only by what is usual."""
    return bool(volume.header["sform_code"] or volume.header["qform_code"])


def places(volume):
    """The affines that a volume's file gives it: viewers differ in which they take."""
    with suppress(nib.spatialimages.HeaderDataError):
        forms = volume.get_sform(coded=True), volume.get_qform(coded=True)
        return [volume.affine, *(form for form, code in forms if code)]
    return [volume.affine]


def check_pair(volume, labels, name, other):
    """Raise DataError, with the files' names, unless shapes and positions agree and the labels are 0, 1, 2 and 3."""
    if volume.shape != labels.shape:
        raise DataError(f"{other} {labels.shape} does not lie on the grid of {name} {volume.shape}. Resample it to that.")
    if not any(np.allclose(one, two, atol=0.01) for one in places(volume) for two in places(labels)):
        raise DataError(f"{other} has as many voxels as {name}, but its header puts them elsewhere. If it was drawn on "
                        "that volume, its affine is lost: copy the volume's. If not, resample the labels to the volume.")
    strange = np.setdiff1d(labels.dataobj, range(len(TISSUES)))
    if len(strange):
        raise DataError(f"{other} has the labels {', '.join(f'{v:g}' for v in strange[:8])}; expected {NUMBERS}.")
    if (tissue := np.count_nonzero(labels.dataobj)) < FEWEST:
        raise DataError(f"{other} labels {tissue} voxels as tissue; a brain has many more.")
    check_greys(volume.dataobj, name)


def check_greys(values, name):
    """Raise DataError, with the file's name, on values that are no greys of MR: standardised ones, or a mask's."""
    if not (values > 0).any() or (values < -0.05 * values.max()).mean() > 0.01:
        raise DataError(f"{name} has no values above 0, or many far below. Export the scan without rescaling it.")
    if np.isin(values, [*range(len(TISSUES)), values.max()]).all():
        raise DataError(f"{name} has only the values {np.unique(values).tolist()}, like a mask. Give the scan itself.")


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
