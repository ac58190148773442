"""OASIS-1 discs, unpacked: the source of the course's slices."""

from dataclasses import replace

import nibabel as nib
import numpy as np

from helpers.data import OASIS_BOX, TISSUES, DataError, Dataset, Split, Task, split_dataset
from helpers.datasets.files import digest, find, in_parallel
from helpers.datasets.volumes import framed, read_pair

SCAN = (r"(?:.*/)?(?P<subject>OAS1_\d{4})_MR(?P<number>\d+)_mpr_n\d_anon_111_t88_"  # the n differs from scan to scan
        r"(?:gfc|(?P<mask>masked_gfc_fseg))\.hdr")
CORNER = (-40, -24)  # the course pads the atlas's 176x208 to 256x256
FIRST = 73  # of the 32 planes, where the masks are others than the course's (inferred)
# The course's 32 planes, each by the digest of its brain mask, which is the atlas's and so the same for everybody.
MASKS = ("228d026a f7669b89 ebe193b9 04fd4b8d e336d53f 97adda1c 993e88f3 3847a0db 16e725b2 3572d9f6 6270f08f "
         "2c063440 13b846cd b881943d dd03b539 f1b7a51e 02b07e87 ebfae734 06b9d577 5a93e434 b6ce25a3 37d2f26f "
         "94122c8c 29a6da4a 123a744f 83bd3b93 1d486828 a883883f 4295ded9 fbb1c685 7f8caea2 50fd2541").split()


def load(files, seed, cases):
    """Read unpacked discs as the course's slices: its 32 planes of each scan, greys scaled plane by plane.

    People are split as the course split them, `cases` {split: numbers}, if all three splits have one; else by subject,
    85 / 10 / 5 %, repeat scans under their subject.
    """
    found = find(files.names, SCAN)
    scans = {key: (images[-1], labels[-1]) for key, (images, labels) in found.items() if images and labels}
    incomplete = ", ".join(f"{subject}_MR{number}" for subject, number in found if (subject, number) not in scans)
    if not scans:
        raise DataError(f"{files.path.name} has no whole OASIS-1 scan (*_t88_gfc and *_fseg); parts: {incomplete or 'none'}.")
    own = {split: [key for key in scans if key[1] == 1 and key[0][-3:] in numbers] for split, numbers in cases.items()}
    if like_the_course := all(own.values()):
        scans = {key: scans[key] for keys in own.values() for key in keys}
    paths = [[files.path / name for name in pair] for pair in scans.values()]
    images, labels, known = zip(*in_parallel(lambda pair: planes_of(*read_pair(*pair, axial=True)), paths))
    said = [f"{files.path.name}, {len(scans)} scans", "split as the course is" if like_the_course else "split by subject",
            "planes known by the course's brain masks" if all(known) else
            f"in {known.count(False)} scans planes are inferred: their brain masks are not the course's"]
    task = Task("OASIS-1 slices from discs", TISSUES,
                "; ".join(said + [f"incomplete, left out: {incomplete}"] * bool(incomplete)), greys=False)
    whole = Split("all", np.concatenate(images), np.concatenate(labels),
                  np.repeat([subject for subject, _ in scans], len(MASKS)), task, np.tile(range(len(MASKS)), len(scans)))
    if not like_the_course:
        return replace(split_dataset(whole, seed, (0.1, 0.05)), box=OASIS_BOX)
    at = np.split(np.arange(len(whole)), np.cumsum([len(MASKS) * len(keys) for keys in own.values()])[:-1])
    return Dataset(*(replace(whole.take(each), name=split, whole=None) for split, each in zip(own, at)), OASIS_BOX)


def planes_of(volume, labels):
    """The course's planes of a scan: images uint8 (32, 256, 256, 1), labels uint8 (32, 256, 256), are they known?

    A plane's greys are cut down to whole numbers, 255 only where it is brightest, as all the course's slices have them.
    """
    greys, labels = (framed(np.asarray(nib.as_closest_canonical(each).dataobj), CORNER) for each in (volume, labels))
    masks = [digest(np.ascontiguousarray(OASIS_BOX.cut(plane[None])[0] > 0)) for plane in labels]
    at = " ".join(masks).find(" ".join(MASKS)) // (len(MASKS[0]) + 1)
    chosen = slice(first := FIRST if at < 0 else at, first + len(MASKS))
    top = np.maximum(greys[chosen].max((1, 2), keepdims=True), 1)
    images = np.floor(255 * (greys[chosen] / top)).clip(0).astype(np.uint8)
    return images[..., None], labels[chosen].astype(np.uint8), at >= 0
