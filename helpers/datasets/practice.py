"""Practice brains: synthetic subjects grown from nilearn's MNI152 tissue maps, so nothing is downloaded.

Every subject is the average brain, bent and folded at random, with its own amount of CSF, contrast, bias
field and noise, inside a skull and scalp, lying sideways as in the course's slices. The label of a pixel
is its largest tissue share and its grey is the shares times that subject's greys, so image and label agree.
They take the way of real slices: made at 1 mm in the atlas's 176x208 pixels, the maximum of every slice 255, padded
to 256x256.
"""

from dataclasses import dataclass
from functools import lru_cache

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template
from scipy import ndimage
from scipy.spatial.transform import Rotation

from helpers.data import FRAME, OASIS_BOX, TISSUES, Dataset, Split, Task, thin
from helpers.datasets.files import in_parallel

SUBJECTS = {"train": range(40), "validation": range(40, 46), "test": range(46, 54)}  # by number
UNSEEN = 54  # a subject in none of them
SLICES = 32  # per subject, 1 mm apart, from the thalamus upwards
CENTRE = np.array([98.0, 117.0, 87.0])  # of the brain at the middle slice, in MNI152 voxels (x, y, z)
SCALE = 0.95  # the OASIS atlas is smaller than MNI152: brain 171 x 137 mm on the real slice


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
    spacing: tuple[float, float] = ()  # mm between slices; 1 where not given
    stripped: float = 0  # share of subjects without skull and scalp


COURSE = Spread()  # as alike as the course's slices are
VARIED = Spread(4, 0.06, 5, 12, (0.4, 1.6), (1.5, 8), 0.18, (1, 3.5), 0.5)


def load(recipe, spread=COURSE, title="practice brains (synthetic)"):
    """Make 40 / 6 / 8 subjects of 32 slices; only the slices that the recipe takes are made."""
    splits, task = [], Task(title, TISSUES, "made from the MNI152 maps that nilearn carries")
    for split, subjects in SUBJECTS.items():
        numbers = np.repeat(subjects, SLICES)
        chosen = thin(numbers, *recipe.taken(split))
        positions = chosen % SLICES
        images, labels = make_slices(numbers[chosen], positions, recipe.seed, spread)
        names = np.array([f"practice_{number:03d}" for number in numbers[chosen]])
        splits.append(Split(split, images, labels, names, task, positions, len(numbers)))
    return Dataset(*splits, OASIS_BOX)


def make_slices(subjects, positions, seed=0, spread=COURSE):
    """Images (N, 256, 256, 1) and labels (N, 256, 256) of slices, given by subject number and position, in order."""
    atlas()  # made once, before the threads ask for it
    made = in_parallel(lambda s: make_subject(s, positions[subjects == s], seed, spread), np.unique(subjects))
    images, labels = (OASIS_BOX.paste(np.concatenate(arrays), (FRAME, FRAME)) for arrays in zip(*made))
    return images[..., None], labels


def make_subject(number, slices, seed=0, spread=COURSE):
    """Images and labels, uint8 (n, 176, 208), of the given slices (0..31) of subject `number`."""
    rng = np.random.default_rng([seed, number])
    tissues, distance = atlas()
    head = where_slices_lie(slices, rng, spread)  # (3, n, H, W)
    away = sample(distance, head, cval=60)  # mm from the brain's surface, negative inside
    inside = away < 3
    shares = np.zeros((3, *away.shape), np.float32)  # CSF, grey matter, white matter
    brain = head[:, inside]  # bent at random: registered heads are alike, the folds inside are not
    bent = brain + np.stack([smooth_field(brain, 30, 2.0, rng) + smooth_field(brain, 12, 0.8, rng) for _ in range(3)])
    shares[:, inside] = individual(tissues, bent, away[inside], rng)
    labels = np.where(away < 0, 1 + shares.argmax(0), 0).astype(np.uint8)
    image = paint(shares, away, head, rng, spread, slices)
    if rng.random() < spread.stripped:  # cut off what is not brain, and CSF on it down to some depth
        cut = (away >= 0) | (labels == 1) & (away > -rng.uniform(0, 15))
        image[cut], labels[cut] = 0, 0
    top = np.maximum(image.max((1, 2), keepdims=True), 1)
    return (image * (255 / top)).round().astype(np.uint8), labels


def write_scan(file, number=UNSEEN, seed=0, axes="PSR", spread=COURSE):
    """Write subject `number` (UNSEEN is in no split) and its labels as two volumes whose axes run towards `axes`.

    `file` ends in .nii.gz; the labels go to NAME_seg.nii.gz beside it. Returns both paths.
    """
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", axes)))
    written = file, file.with_name(file.name.replace(".nii.gz", "_seg.nii.gz"))
    file.parent.mkdir(parents=True, exist_ok=True)
    for slices, to in zip(make_subject(number, range(SLICES), seed, spread), written):
        upright = nib.Nifti1Image(slices.transpose(1, 2, 0), np.eye(4))  # left to right, back to front, 1 mm
        nib.save(upright.as_reoriented(turn), to)
    return written


@lru_cache(1)
def atlas():
    """MNI152 shares of grey and white matter (2, x, y, z), and the distance from the brain's surface in mm."""
    maps = load_mni152_gm_template(1), load_mni152_wm_template(1), load_mni152_brain_mask(1)
    grey, white, mask = (image.get_fdata(dtype=np.float32) for image in maps)
    brain = ndimage.binary_closing(mask > 0.5, iterations=8)  # the space between the folds belongs to it
    distance = ndimage.distance_transform_edt(~brain) - ndimage.distance_transform_edt(brain)
    return np.stack([grey, white]), ndimage.gaussian_filter(distance.astype(np.float32), 3)


def where_slices_lie(slices, rng, spread):
    """MNI152 voxel coordinates (3, n, H, W) of the slices' pixels, of a head that is turned, stretched and shifted.

    Rows run left to right, columns back to front.
    """
    row, column = OASIS_BOX.cut(np.indices((FRAME, FRAME))) + 0.5 - FRAME / 2
    spacing = rng.uniform(*spread.spacing) if spread.spacing else 1
    height = (np.asarray(slices)[:, None, None] - SLICES / 2) * spacing
    points = np.stack(np.broadcast_arrays(row, column, height)).astype(np.float32)  # mm in the scanner
    turn = Rotation.from_euler("xyz", rng.normal(0, spread.turn, 3), degrees=True).as_matrix()
    stretch = np.diag(rng.normal(1, spread.stretch, 3) / SCALE)
    shift = (CENTRE + rng.normal(0, spread.shift, 3)).astype(np.float32)
    return np.tensordot((turn @ stretch).astype(np.float32), points, 1) + shift[:, None, None, None]


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


def paint(shares, away, points, rng, spread, slices):
    """Grey images, float32 (n, H, W) from 0, from tissue shares and the distance to the brain's surface in mm."""
    greys = rng.normal([25, 74, 109], np.array([1, 1, 1.25]) * spread.grey)
    blur = rng.uniform(*spread.blur)  # mm: a scanner mixes tissues at borders
    tissue = ndimage.gaussian_filter(np.tensordot(greys.astype(np.float32), shares, 1), (0, blur, blur))
    bias = 1 + smooth_field(points, 70, spread.bias, rng)
    depth = away + smooth_field(points, 25, 0.8, rng)  # uneven thickness of skull and scalp
    shell = np.interp(depth, *shell_profile(rng)).astype(np.float32)
    blend = np.clip(away + 0.5, 0, 1)  # the edge of the brain is not a knife's
    image = ((1 - blend) * tissue + blend * shell) * bias
    sd, own = rng.uniform(*spread.noise), rng.spawn(SLICES)  # a slice's noise is the same whatever others are made
    noise = np.stack([own[k].normal(0, sd, (2, *image.shape[1:])) for k in slices], 1).astype(np.float32)
    # Rician noise, as in magnitude images; beyond 26 mm the release has cut the air to zero
    return np.hypot(image + noise[0], noise[1]) * (depth < 26)


def shell_profile(rng):
    """Depths (mm from the brain) and greys of what surrounds it: skull with marrow, scalp, air."""
    skull, scalp, fat, marrow = rng.normal([5.5, 6.8, 215, 45], [0.6, 0.7, 20, 10])
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
