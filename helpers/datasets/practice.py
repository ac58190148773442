"""Practice brains: synthetic subjects grown from nilearn's MNI152 tissue maps, so nothing is downloaded.

Every subject is the average brain, bent and folded at random, with its own age (an old one has more CSF and less
contrast), bias field and noise, inside a skull and scalp, lying sideways as in the course's slices. As theirs, labels
follow greys, the brain mask is the atlas's for all, the maximum of every slice is 255, and 176x208 pixels of 1 mm are
padded to 256x256. How much of all this, and the outline of the mask, is statistics of OASIS's training people; which
thresholds part the labels was chosen on its validation people.
"""

from dataclasses import dataclass
from functools import lru_cache

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template
from scipy import ndimage, special
from scipy.spatial.transform import Rotation

from helpers.data import FRAME, OASIS_BOX, TISSUES, Dataset, Split, Task, thin
from helpers.datasets.files import in_parallel

SUBJECTS = {"train": range(600), "validation": range(600, 606), "test": range(606, 614)}  # by number
SLICES = 32  # per subject, 1 mm apart, from the thalamus upwards
CENTRE = np.array([97.0, 118.0, 86.4], np.float32)[:, None, None, None]  # of the frame, in MNI152 voxels (x, y, z)
FRAME_TO_MNI = np.array([[1.081, 0.007, 0.02], [-0.019, 1.063, 0.005], [-0.012, -0.076, 0.977]], np.float32)


@dataclass(frozen=True)
class Spread:
    """How much subjects differ: standard deviations, or ranges (from, to) that a subject's value is drawn from."""

    moved: tuple[float, float, float] = (0, 0, 0)  # a head in the frame: degrees, share of its size, mm
    grey: float = 4  # of white matter's grey; the others', and the brightest one, follow
    blur: tuple[float, float] = (0.5, 0.9)  # mm
    noise: tuple[float, float] = (1.5, 3.5)  # grey values
    bias: float = 0.06  # of the grey value
    spacing: tuple[float, float] = ()  # mm between slices; 1 where not given
    stripped: float = 0  # share of subjects without skull and scalp


COURSE = Spread()  # as alike as the course's slices are
VARIED = Spread((4, 0.06, 5), 24, (0.4, 1.6), (1.5, 8), 0.18, (1, 3.5), 0.5)


def load(recipe, spread=COURSE, title="practice brains (synthetic)"):
    """Make 600 / 6 / 8 subjects of 32 slices; only the slices that the recipe takes are made."""
    splits, task = [], Task(title, TISSUES, "made from the MNI152 maps that nilearn carries")
    for split, subjects in SUBJECTS.items():
        numbers = np.repeat(subjects, SLICES)
        chosen = thin(numbers, *recipe.taken(split))
        positions = chosen % SLICES
        made = make_slices(numbers[chosen], positions, recipe.seed, spread)
        splits.append(Split(split, *made, np.char.mod("practice_%03d", numbers[chosen]), task, positions, len(numbers)))
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
    old = rng.uniform(-1.7, 1.7)  # age, in standard deviations
    head = moved(where_slices_lie(slices, rng, spread), rng, *spread.moved)  # (3, n, H, W)
    away = sample(distance, head, cval=60)  # mm from the brain mask, negative inside
    inside = away < 9
    shares = np.zeros((3, *away.shape), np.float32)  # CSF, grey matter, white matter
    brain = moved(head, rng, 1.5, 0.02, 1.5, 0.975)[:, inside]  # registered heads are alike, the folds inside are not
    bent = brain + np.stack([smooth_field(brain, 30, 2.0, rng) + smooth_field(brain, 12, 0.8, rng) for _ in range(3)])
    shares[:, inside] = individual(tissues, bent, away[inside], old, rng)
    image, labels = paint(shares, away, head, old, rng, spread, slices)
    if rng.random() < spread.stripped:  # cut off what is not brain, and CSF on it down to some depth
        cut = (away >= 0) | (labels == 1) & (away > -rng.uniform(0, 15))
        image[cut], labels[cut] = 0, 0
    return (image * (255 / np.maximum(image.max((1, 2), keepdims=True), 1))).round().astype(np.uint8), labels


def write_scan(file, number=SUBJECTS["test"].stop, seed=0, axes="PSR", spread=COURSE):
    """Write subject `number` (where not given, one in no split) and its labels as two volumes whose axes run towards `axes`.

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
    """MNI152 shares of grey and white matter (2, x, y, z), and the distance from the surface of OASIS's brain mask in mm.

    That is MNI152's, closed, and moved by as much as it differs around the middle of a slice, from slice to slice.
    """
    maps = load_mni152_gm_template(1), load_mni152_wm_template(1), load_mni152_brain_mask(1)
    grey, white, mask = (image.get_fdata(dtype=np.float32) for image in maps)
    brain = ndimage.binary_closing(mask > 0.5, iterations=8)  # the space between the folds belongs to it
    distance = ndimage.distance_transform_edt(~brain) - ndimage.distance_transform_edt(brain)
    x, y, z = (at - middle for at, middle in zip(np.ogrid[tuple(map(slice, mask.shape))], CENTRE.ravel()))
    around, up = np.arctan2(x, y), z / 16
    wider = 2.56 - 0.14 * up + (0.33 * up - 0.35) * np.cos(2 * around) + (0.22 * up + 0.24) * np.cos(3 * around)
    return np.stack([grey, white]), ndimage.gaussian_filter(distance.astype(np.float32), 3) - np.float32(wider)


def where_slices_lie(slices, rng, spread):
    """MNI152 voxel coordinates (3, n, H, W) of the slices' pixels: rows run left to right, columns back to front."""
    row, column = OASIS_BOX.cut(np.indices((FRAME, FRAME))) + 0.5 - FRAME / 2
    height = (np.asarray(slices)[:, None, None] - SLICES / 2) * (rng.uniform(*spread.spacing) if spread.spacing else 1)
    points = np.stack(np.broadcast_arrays(row, column, height)).astype(np.float32)  # mm in the scanner
    return np.tensordot(FRAME_TO_MNI, points, 1) + CENTRE


def moved(points, rng, turn, stretch, shift, mean=1):
    """Points of a head that is turned (degrees), stretched (about `mean`) and shifted (mm) at random."""
    matrix = Rotation.from_euler("xyz", rng.normal(0, turn, 3), degrees=True).as_matrix() * rng.normal(mean, stretch, 3)
    return np.tensordot(np.float32(matrix), points - CENTRE, 1) + CENTRE + rng.normal(0, shift, (3, 1, 1, 1)).astype(np.float32)


def individual(tissues, points, away, old, rng):
    """One person's shares of CSF, grey and white matter (3, n) at `points`, `away` mm from the brain's surface.

    The average's shares are perturbed, folded and sharpened: sulci run where a smooth random field crosses
    zero, deepest at the surface, CSF along the crossing, grey matter on both sides, white matter beyond.
    """
    grey, white = (sample(tissue, points) for tissue in tissues)
    logs = np.log(np.clip([1 - grey - white, grey, white], 2e-3, 1)).astype(np.float32)
    logs[0] += 1.65 + 0.75 * old + 0.4 * max(old, -1) * np.clip((-away - 15) / 10, 0, 1)  # ventricles widen most
    logs += np.stack([smooth_field(points, 6, 0.5, rng) for _ in range(3)])
    fold = smooth_field(points, rng.uniform(4.5, 6.5), 1, rng)
    logs[2] -= 3 * np.clip(1 + away / 4, 0, 1)  # no white matter at the surface
    logs += np.clip(1 + away / 25, 0, 1) * np.stack([
        2.8 * np.exp(-((fold / (0.21 * np.exp(0.6 * old))) ** 2)) - 0.4,
        1.1 * np.exp(-((fold / 0.6) ** 2)), 0.8 - 1.3 * np.exp(-((fold / 0.6) ** 2))])
    return special.softmax(2.2 * logs, 0)


def paint(shares, away, points, old, rng, spread, slices):
    """Grey images, float32 (n, H, W) from 0, of tissue shares `away` mm from the mask, and their labels 1, 2, 3.

    As in OASIS labels follow greys: those of the tissues, mixed at borders, before bias and noise.
    """
    white, (csf, grey) = rng.normal(114, spread.grey), rng.normal(0, spread.grey / 300, 2)
    greys = white * np.array([0.155 - 0.015 * old + csf, 0.622 + 0.027 * old + grey, 1])
    pure = np.tensordot(greys.astype(np.float32), shares, 1)
    # vessels and meninges, in the CSF of the surface
    pure += shares[0] * np.clip(1 + away / 12, 0, 1) * np.maximum(12 + smooth_field(points, 6, 12, rng), -5)
    tissue = ndimage.gaussian_filter(pure, rng.uniform(*spread.blur), axes=(1, 2))  # a scanner mixes tissues at borders
    labels = 1 + np.searchsorted(greys[:2] + [0.55 + 0.02 * old, 0.48] * np.diff(greys), tissue)
    depth = away - rng.normal(2.5, 0.8) + smooth_field(points, 30, 1.2, rng) + smooth_field(points, 10, 0.6, rng)
    depth *= np.exp(rng.normal(0, 0.2))  # skull and scalp are uneven, and thicker in some
    dark, marrow, fat, skull, scalp = np.maximum(
        rng.normal([20, 60, 215, 5, 5.5], [5, 20, 35, 1.2, 1.2]), [0, 0, 0, 2.5, 3.5])
    at = np.cumsum([0, 0.7, skull / 2 - 0.7, skull / 2 - 0.7, 0.7, 1.0, scalp - 2.5, 1.5, 2])  # mm from the brain
    shell = np.interp(depth, at, [dark + 8, dark, marrow, dark + 5, 50, fat, fat * 0.75, 8, 4])
    shell *= np.exp(smooth_field(points, 20, 0.25, rng))
    shell += 60 * np.clip(smooth_field(points, 15, 1, rng) - 0.8, 0, 1) * (depth > 2) * (depth < 9)  # marrow, vessels
    # the edge of the brain is not a knife's
    image = (tissue + np.clip(depth + 0.5, 0, 1) * (shell - tissue)) * (1 + smooth_field(points, 70, spread.bias, rng))
    sd, top, own = rng.uniform(*spread.noise), white * max(rng.normal(2.15, 0.055 * spread.grey), 1.1), rng.spawn(SLICES)
    for image_of, slice_at in zip(image, slices):  # a slice's noise is the same whatever others are made
        noise = own[slice_at].normal(0, sd, (2, *image_of.shape))  # Rician, as in magnitude images
        image_of[:] = np.minimum(np.hypot(image_of + noise[0], noise[1]), top * own[slice_at].normal(1, 0.033))
    # beyond 26 mm the release has cut the air to zero
    return image * (depth < 26), np.where(away < 0, labels, 0).astype(np.uint8)


def smooth_field(points, spacing, sd, rng):
    """Random values of standard deviation about `sd` that vary smoothly over `spacing` mm, at `points`."""
    shape = np.ceil(np.array([210, 250, 200]) / spacing).astype(int) + 3
    knots = ndimage.spline_filter(rng.normal(0, sd * 1.3, shape), order=2).astype(np.float32)
    return ndimage.map_coordinates(knots, points / spacing + 1, np.float32, 2, "nearest", prefilter=False)


def sample(volume, points, cval=0.0):
    """Values of a volume at voxel coordinates, linearly interpolated, `cval` outside."""
    return ndimage.map_coordinates(volume, points, order=1, cval=cval, output=np.float32)
