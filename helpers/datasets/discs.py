"""OASIS-1 discs, unpacked: the source of the course's slices."""

from dataclasses import replace

from helpers.data import OASIS_BOX, TISSUES, DataError, Task
from helpers.datasets.files import find
from helpers.datasets.volumes import from_scans

SCAN = (r"(?:.*/)?(?P<subject>OAS1_\d{4})_MR(?P<number>\d+)_mpr_n\d_anon_111_t88_"  # the n differs from scan to scan
        r"(?:gfc|(?P<mask>masked_gfc_fseg))\.hdr")
CORNER = (-40, -24)  # the course pads the atlas's 176x208 to 256x256
START, COUNT = 0.48, 32  # slices: 32 of 1 mm, from this share of the labelled height upwards (inferred)


def load(files, seed):
    """Read unpacked discs, 32 slices a scan, repeat scans under their subject, split by subject 85 / 10 / 5 %."""
    found = find(files.names, SCAN)
    scans = {key: (images[-1], labels[-1]) for key, (images, labels) in found.items() if images and labels}
    incomplete = ", ".join(f"{subject}_MR{number}" for subject, number in found if (subject, number) not in scans)
    if not scans:
        raise DataError(f"{files.path.name} holds no scan with T88_111/*_t88_gfc and FSL_SEG/*_fseg, each .hdr with "
                        f".img; incomplete: {incomplete or 'none'}. Give an OASIS-1 disc.")
    left_out = f"; incomplete, left out: {incomplete}" if incomplete else ""
    task = Task("OASIS-1 slices from discs", TISSUES, f"{files.path.name}, {len(scans)} scans{left_out}")
    made = from_scans(files.path, scans, task, seed, (0.1, 0.05), start=START, count=COUNT, spacing=1, corner=CORNER)
    return replace(made, box=OASIS_BOX)
