"""Practice brains: synthetic subjects grown from nilearn's MNI152 tissue maps, so nothing is downloaded.

Every subject is the average brain, bent and folded at random, with its own amount of CSF, contrast, bias
field and noise, inside a skull and scalp, lying sideways as in the course's slices. The label of a pixel
is its largest tissue share and its grey is the shares times that subject's greys, so image and label agree.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import nibabel as nib
import numpy as np
from nilearn import datasets as nilearn_data
from scipy import ndimage
from scipy.spatial.transform import Rotation

from helpers.data import TISSUES, Dataset, Split, Task, evenly

SUBJECTS = {"train": 40, "validation": 6, "test": 8}
UNSEEN = sum(SUBJECTS.values())  # number of a subject in none of them
SLICES = 32  # per subject, 1 mm apart, from the thalamus upwards
FRAME = 256  # mm, and pixels unless another size is asked for
CENTRE = np.array([98.0, 117.0, 87.0])  # of the brain at the middle slice, in MNI152 voxels (x, y, z)
SCALE = 0.95  # the OASIS atlas is smaller than MNI152: brain 171 x 137 mm on the real slice
ORIGIN = "made from the MNI152 maps that nilearn carries"


@dataclass(frozen=True)
class Spread:
    """How much subjects differ: standard deviations, or ranges (from, to) that a subject's value is drawn from."""

    turn: float = 1.5  # degrees
    stretch: float = 0.02  # of the size
    shift: float = 1.5  # mm
    grey: float = 4  # of a tissue's mean grey
    blur: tuple[float, float] = (0.4, 0.8)  # mm
    noise: tuple[float, float] = (1.5, 3.5)  # grey values
    bias: float = 0.06  # of the grey value
    spacing: tuple[float, float] = (1, 1)  # mm between slices
    stripped: float = 0  # share of subjects without skull and scalp


COURSE = Spread()  # as alike as the course's slices are
VARIED = Spread(4, 0.06, 5, 12, (0.4, 1.6), (1.5, 8), 0.18, (1, 3.5), 0.5)


def load(path=None, size=None, limit=None, seed=0, spread=COURSE, title="practice brains (synthetic)"):
    """Make 40 / 6 / 8 subjects of 32 slices: see `helpers.data.load`.

    A smaller `size` has larger pixels, each with the tissue at its middle. `path` is not used.
    """
    splits, task = [], Task(title, TISSUES, ORIGIN)
    for split, subjects in numbered_subjects().items():
        chosen = evenly(len(subjects) * SLICES, limit)
        splits.append(Split(split, *make_split(subjects, chosen, size or FRAME, seed, spread), task))
    return Dataset(*splits)


def numbered_subjects():
    """Subject numbers of each split: consecutive, never shared."""
    ends = np.cumsum(list(SUBJECTS.values()))
    return {name: range(end - SUBJECTS[name], end) for name, end in zip(SUBJECTS, ends)}


def make_split(subjects, chosen, size, seed, spread):
    """Images, labels and subject names of the `chosen` slices, counted over all subjects of a split."""
    atlas()  # made once, before the threads ask for it
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda s: make_subject(
            subjects[s], chosen[chosen // SLICES == s] % SLICES, size, seed, spread), np.unique(chosen // SLICES)))
    images, labels = (np.concatenate(arrays) for arrays in zip(*made))
    names = np.array([f"practice_{subjects[index // SLICES]:03d}" for index in chosen])
    return images[..., None], labels, names


def make_subject(number, slices, size=FRAME, seed=0, spread=COURSE):
    """Images and labels, uint8 (n, size, size), of the given slices (0..31) of subject `number`."""
    rng = np.random.default_rng([seed, number])
    tissues, distance = atlas()
    head, brain = where_slices_lie(slices, size, rng, spread)  # (3, n, H, W) each
    away = sample(distance, head, cval=60)  # mm from the brain's surface, negative inside
    inside = away < 3
    shares = np.zeros((3, *away.shape), np.float32)  # CSF, grey matter, white matter
    shares[:, inside] = individual(tissues, brain[:, inside], away[inside], rng)
    labels = np.where(away < 0, 1 + shares.argmax(0), 0).astype(np.uint8)
    image = paint(shares, away, head, rng, spread)
    if rng.random() < spread.stripped:  # cut off what is not brain, and CSF on it down to some depth
        cut = (away >= 0) | (labels == 1) & (away > -rng.uniform(0, 15))
        image[cut], labels[cut] = 0, 0
    return image, labels


def write_scan(file, number=UNSEEN, seed=0, axes="PSR", spread=COURSE):
    """Write subject `number` (UNSEEN is in no split) and its labels as two volumes whose axes run towards `axes`.

    `file` ends in .nii.gz; the labels go to NAME_seg.nii.gz beside it. Returns both paths.
    """
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", axes)))
    written = file, file.with_name(file.name.replace(".nii.gz", "_seg.nii.gz"))
    file.parent.mkdir(parents=True, exist_ok=True)
    for slices, to in zip(make_subject(number, range(SLICES), seed=seed, spread=spread), written):
        upright = nib.Nifti1Image(slices.transpose(1, 2, 0), np.eye(4))  # left to right, back to front, 1 mm
        nib.save(upright.as_reoriented(turn), to)
    return written


@lru_cache(1)
def atlas():
    """MNI152 shares of grey and white matter (2, x, y, z), and the distance from the brain's surface in mm."""
    grey, white, mask = (load_map(resolution=1).get_fdata(dtype=np.float32) for load_map in (
        nilearn_data.load_mni152_gm_template, nilearn_data.load_mni152_wm_template,
        nilearn_data.load_mni152_brain_mask))
    brain = ndimage.binary_closing(mask > 0.5, iterations=8)  # the space between the folds belongs to it
    distance = ndimage.distance_transform_edt(~brain) - ndimage.distance_transform_edt(brain)
    return np.stack([grey, white]), ndimage.gaussian_filter(distance.astype(np.float32), 3)


def where_slices_lie(slices, size, rng, spread):
    """MNI152 voxel coordinates (3, n, H, W) of the slices' pixels, twice: for the head, and bent for the brain.

    Rows run left to right, columns back to front. The head is only turned and stretched, the brain within it
    is bent as well: registered heads are alike, the folds inside are not.
    """
    row, column = (np.mgrid[:size, :size] + 0.5) * FRAME / size - FRAME / 2
    height = (np.asarray(slices)[:, None, None] - SLICES / 2) * between(*spread.spacing, rng)
    points = np.stack(np.broadcast_arrays(row, column, height)).astype(np.float32)  # mm in the scanner
    turn = Rotation.from_euler("xyz", rng.normal(0, spread.turn, 3), degrees=True).as_matrix()
    stretch = np.diag(rng.normal(1, spread.stretch, 3) / SCALE)
    shift = (CENTRE + rng.normal(0, spread.shift, 3)).astype(np.float32)
    head = np.tensordot((turn @ stretch).astype(np.float32), points, 1) + shift[:, None, None, None]
    bend = [smooth_field(head, 30, 2.0, rng) + smooth_field(head, 12, 0.8, rng) for _ in range(3)]
    return head, head + np.stack(bend)


def individual(tissues, points, away, rng):
    """One person's shares of CSF, grey and white matter (3, n) at `points`, `away` mm from the brain's surface.

    The average's shares are perturbed, folded and sharpened: sulci run where a smooth random field crosses
    zero, deepest at the surface, CSF along the crossing, grey matter on both sides, white matter beyond.
    """
    grey, white = (sample(tissue, points) for tissue in tissues)
    logs = np.log(np.clip([1 - grey - white, grey, white], 2e-3, 1)).astype(np.float32)
    logs[0] += rng.normal(1.5, 0.35)  # older brains have more CSF
    for tissue in range(3):
        logs[tissue] += smooth_field(points, 6, 0.35, rng)
    fold = smooth_field(points, 9, 1, rng)
    cortex = np.clip(1 + away / 25, 0, 1)
    logs += cortex * np.stack([2.8 * np.exp(-((fold / 0.3) ** 2)) - 0.4, 1.1 * np.exp(-((fold / 0.6) ** 2)),
                               0.8 - 1.3 * np.exp(-((fold / 0.6) ** 2))])
    sharp = np.exp(3 * (logs - logs.max(0)))
    return sharp / sharp.sum(0)


def paint(shares, away, points, rng, spread):
    """Grey images, uint8 (n, H, W), from tissue shares and the distance to the brain's surface in mm."""
    greys = np.array([rng.normal(26, spread.grey), rng.normal(78, spread.grey), rng.normal(116, 1.25 * spread.grey)])
    blur = rng.uniform(*spread.blur) * shares.shape[-1] / FRAME  # mm, in pixels: a scanner mixes tissues at borders
    tissue = np.tensordot(greys.astype(np.float32), shares, 1)
    tissue = ndimage.gaussian_filter(tissue, (0, blur, blur))
    bias = 1 + smooth_field(points, 70, spread.bias, rng)
    depth = away + smooth_field(points, 25, 0.8, rng)  # uneven thickness of skull and scalp
    shell = np.interp(depth, *shell_profile(rng)).astype(np.float32)
    blend = np.clip(away + 0.5, 0, 1)  # the edge of the brain is not a knife's
    image = ((1 - blend) * tissue + blend * shell) * bias
    noise = rng.normal(0, rng.uniform(*spread.noise), (2, *image.shape)).astype(np.float32)
    scanned = depth < 26  # beyond, the release has cut the air to zero
    image = np.hypot(image + noise[0], noise[1]) * scanned  # Rician noise, as in magnitude images
    return np.clip(image, 0, 255).round().astype(np.uint8)


def between(low, high, rng):
    """A value drawn from a range; where the range is a point, nothing is drawn."""
    return rng.uniform(low, high) if high > low else low


def shell_profile(rng):
    """Depths (mm from the brain) and greys of what surrounds it: skull with marrow, scalp, air."""
    skull, scalp = rng.normal(5.5, 0.6), rng.normal(6.8, 0.7)
    fat, marrow = rng.normal(215, 20), rng.normal(45, 10)
    at = np.cumsum([0, 0.8, 0.8, skull / 2 - 0.5, skull / 2 - 0.5, 1.0, 1.5, scalp - 2.5, 1.5])
    return at, np.array([10, 8, 10, marrow, 16, 60, fat, fat * 0.65, 4])


def smooth_field(points, spacing, sd, rng):
    """Random values of standard deviation about `sd` that vary smoothly over `spacing` mm, at `points`."""
    shape = np.ceil(np.array([210, 250, 200]) / spacing).astype(int) + 3
    knots = ndimage.spline_filter(rng.normal(0, sd * 1.3, shape), order=2).astype(np.float32)
    return ndimage.map_coordinates(knots, points / spacing + 1, order=2, prefilter=False, mode="nearest",
                                   output=np.float32)


def sample(volume, points, cval=0.0):
    """Values of a volume at voxel coordinates, linearly interpolated, `cval` outside."""
    return ndimage.map_coordinates(volume, points, order=1, cval=cval, output=np.float32)
