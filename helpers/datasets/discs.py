"""OASIS-1 discs, unpacked: the source of the course's slices."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from helpers.data import OASIS_BOX, TISSUES, DataError, Task, split_dataset
from helpers.datasets.files import in_parallel
from helpers.datasets.volumes import check_pair, read_volume, to_slices

SCAN = re.compile(r"((OAS1_\d{4})_MR\d+)_mpr_n\d_anon_111_t88_gfc\.hdr")  # the n differs from scan to scan
LABELS = "FSL_SEG/*_t88_masked_gfc_fseg.hdr"  # beside it
CORNER = (-40, -24)  # the course pads the atlas's 176x208 to 256x256
START, COUNT = 0.48, 32  # slices: 32 of 1 mm, from this share of the labelled height upwards (inferred)


def is_disc(path):
    """True for a folder with unpacked scans in it."""
    return next(path.glob("**/OAS1_*"), None) is not None


def load(recipe):
    """Read unpacked discs, 32 slices a scan, repeat scans under their subject, split by subject 85 / 10 / 5 %."""
    path = Path(recipe.data).expanduser()
    if path.is_file():
        raise DataError(f"{path.name} is packed. Unpack it, tar xzf {path.name}, and give the folder.")
    scans, incomplete = find_scans(path)
    if not scans:
        lacking = f"; incomplete: {', '.join(sorted(incomplete)[:5])}" if incomplete else ""
        raise DataError(f"{path.name} holds no scan with PROCESSED/MPRAGE/T88_111/*_t88_gfc and FSL_SEG/*_fseg, each "
                        f".hdr with .img{lacking}. Give an OASIS-1 disc.")
    slices = dict(zip(scans, in_parallel(slices_of, scans.values())))
    subjects = {}
    for scan in sorted(scans):
        subjects.setdefault(scan.partition("_MR")[0], []).append(slices[scan])
    left_out = f"; incomplete, left out: {', '.join(sorted(incomplete))}" if incomplete else ""
    task = Task("OASIS-1 slices from discs", TISSUES, f"{path.name}, {len(scans)} scans{left_out}")
    made = {subject: tuple(map(np.concatenate, zip(*own))) for subject, own in subjects.items()}
    return replace(split_dataset(made, task, recipe.seed, shares=(0.1, 0.05)), box=OASIS_BOX)


def find_scans(path):
    """{scan: (image header, label header)} below a folder, and the names of scans that lack one of the two."""
    scans, incomplete = {}, set()
    for folder in sorted(path.glob("**/T88_111")):
        for file in sorted(folder.glob("OAS1_*.hdr")):
            match, labels = SCAN.fullmatch(file.name), sorted(folder.glob(LABELS))
            if match and labels:
                scans[match[1]] = file, labels[0]
            elif match:
                incomplete.add(match[1])
    return scans, incomplete


def slices_of(scan):
    """Slices and labels of one scan, from its two headers with the .img files beside them."""
    images = [read_volume(file) for file in scan]
    check_pair(*images, *(file.name for file in scan))
    return to_slices(*images, START, COUNT, spacing=1.0, corner=CORNER)
