"""OASIS-1 discs, the source of the course's slices: read from folders or tar.gz files, fetched only when asked."""

import hashlib
import http.client
import io
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from itertools import islice
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm.auto import tqdm

from helpers.data import TISSUES, DataError, Task, split_dataset
from helpers.datasets.files import TAR, check_archive, in_parallel
from helpers.datasets.volumes import check_pair, squeezed, to_slices

ADDRESS = "https://download.nrg.wustl.edu/data/oasis_cross-sectional_disc{}.tar.gz"
MD5 = {1: "c83e216ef8654a7cc9e2a30a4cdbe0cc"}  # as a public script has it; the others are not known
TERMS = """OASIS-1 comes under the OASIS Data Use Agreement (sites.wustl.edu/oasisbrains). Among others:
do not try to identify people, do not republish the data, and acknowledge the grants P50 AG05681, P01 AG03991,
R01 AG021910, P50 MH071616, U24 RR021382 and R01 MH56584. Read it before you accept."""
SCAN = re.compile(r"(?:\./)?(?:[^.].*/)?((OAS1_\d{4})_MR\d+)/PROCESSED/MPRAGE/T88_111/(FSL_SEG/)?"
                  r"\1_mpr_n\d_anon_111_t88_(masked_gfc_fseg|gfc)\.(hdr|img)")
START, COUNT = 0.48, 32  # slices: 32 of 1 mm, from this share of the labelled height upwards (inferred, see README)


def is_disc(path):
    """True for a folder with discN/ trees, scans or tar.gz files in it."""
    return bool(archives_in(path)) or any(path.glob("**/OAS1_*"))


def archives_in(path):
    """The tar archives that a path is or holds."""
    return sorted(file for file in ([path] if path.is_file() else path.iterdir())
                  if file.name.endswith(TAR) and not file.name.startswith("."))


def load(path, size=None, limit=None, seed=0):
    """Read discs, 32 slices a scan, repeat scans under their subject, split by subject 85 / 10 / 5 %."""
    made, incomplete = {}, set()
    for source in [*archives_in(path), *([path] if path.is_dir() else [])]:
        found = scans(source, incomplete)
        while group := list(islice(found, os.cpu_count())):  # few at a time: a scan is 25 MB
            for (scan, subject, _), slices in zip(group, in_parallel(lambda scan: slices_of(scan[2]), group)):
                made.setdefault(subject, {})[scan] = slices
    incomplete.difference_update(*made.values())
    if not made:
        lacking = f"; incomplete: {', '.join(sorted(incomplete)[:5])}" if incomplete else ""
        raise DataError(f"{path.name} holds no scan with PROCESSED/MPRAGE/T88_111/*_t88_gfc and FSL_SEG/*_fseg, each "
                        f".hdr with .img{lacking}. Give an OASIS-1 disc.")
    left_out = f"; incomplete, left out: {', '.join(sorted(incomplete))}" if incomplete else ""
    task = Task("OASIS-1 slices from discs", TISSUES, f"{path.name}, {sum(map(len, made.values()))} scans{left_out}")
    joined = {subject: tuple(np.concatenate(arrays) for arrays in zip(*(own[scan] for scan in sorted(own))))
              for subject, own in made.items()}
    return split_dataset(joined, task, size, limit, seed, shares=(0.1, 0.05))


def scans(source, incomplete):
    """Yield (scan, subject, {(gfc or fseg, hdr or img): (name, bytes)}) of every scan whose four files are there.

    An archive is read once from front to back, and a scan's files are let go as soon as it is whole. Scans that
    lack files are added to `incomplete` by name.
    """
    waiting = {}
    for match, content in scan_files(source):
        scan, subject, _, kind, half = match.groups()
        parts = waiting.setdefault(scan, {})
        parts[kind.removeprefix("masked_gfc_"), half] = match.string, content
        if len(parts) == 4:
            yield scan, subject, waiting.pop(scan)
    headless = [name for parts in waiting.values() for (kind, half), (name, _) in parts.items()
                if (kind, "img" if half == "hdr" else "hdr") not in parts]
    if headless:
        raise DataError(f"{headless[0]} in {source.name} lacks its other half (.hdr with .img). "
                        "Copy or unpack it again.")
    incomplete.update(waiting)


def scan_files(source):
    """Yield (match of SCAN, bytes) for every file that belongs to a scan, of a folder or tar archive."""
    if source.is_dir():
        for file in sorted(source.rglob("*_t88_*")):
            if match := SCAN.fullmatch(file.relative_to(source).as_posix()):
                yield match, file.read_bytes()
        return
    sizes = {}
    try:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                sizes[member.name] = member.size
                check_archive(source, sizes)
                match = SCAN.fullmatch(member.name)
                if match and member.isfile():
                    yield match, archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{source.name} is not a whole tar archive ({error}). Delete it, then fetch it "
                        "again.") from error


def slices_of(parts):
    """Slices and labels of one scan from the bytes of its four files."""
    images = [read_analyze(parts[kind, "hdr"], parts[kind, "img"]) for kind in ("gfc", "fseg")]
    check_pair(*images, *(Path(parts[kind, "img"][0]).name for kind in ("gfc", "fseg")))
    return to_slices(*images, START, COUNT, spacing=1.0)


def read_analyze(header, image):
    """An Analyze volume from the (name, bytes) of its two halves."""
    try:
        made = nib.AnalyzeImage.from_file_map({"header": nib.FileHolder(fileobj=io.BytesIO(header[1])),
                                               "image": nib.FileHolder(fileobj=io.BytesIO(image[1]))})
        return squeezed(made, Path(image[0]).name)
    except (OSError, ValueError, EOFError, nib.spatialimages.HeaderDataError) as error:
        raise DataError(f"{Path(image[0]).name} is not a readable Analyze volume ({error}). "
                        "Copy or unpack it again.") from error


def fetch(discs, folder, accept_terms=False, address=ADDRESS, md5=MD5):
    """Download OASIS-1 discs (numbers or digits, 1..12, 1.3 to 1.5 GB each) into `folder`, and return it.

    Shows the terms and does nothing until `accept_terms` is True. A disc that is there is kept; a broken
    download goes on where it stopped; size and, where known, md5 are checked before a file gets its name.
    """
    print(TERMS)
    if accept_terms is not True:  # a command line's "false" and "no" are text
        raise DataError("The discs are fetched only when these terms are accepted: set accept_terms (in the notebook "
                        f"ACCEPT_OASIS_TERMS) to True if you do; it is {accept_terms!r}.")
    strange = [disc for disc in discs if str(disc).strip() not in map(str, range(1, 13))]
    if strange:
        raise DataError(f"There is no disc {strange[0]!r}; give numbers from 1 to 12, with commas between.")
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise DataError(f"{folder} is a file; give the folder that the discs shall go to.")
    folder.mkdir(parents=True, exist_ok=True)
    for disc in map(int, discs):
        file = folder / address.format(disc).rsplit("/", 1)[1]
        if not file.exists():
            part = file.with_name(file.name + ".part")
            download(address.format(disc), part)
            check_md5(part, md5.get(disc))
            part.replace(file)
    return folder


def download(url, part):
    """Append to `part` what it lacks of `url`; DataError, with what is there kept, if that fails."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            resumed = reply.status == 206
            total = int(reply.headers.get("Content-Length", 0)) + (have if resumed else 0)
            room = shutil.disk_usage(part.parent).free
            if total - have > room:
                raise DataError(f"{part.parent} has {room / 1e9:.1f} GB free, {part.stem} needs "
                                f"{(total - have) / 1e9:.1f} GB more. Free some space and run this again; what is "
                                "there is kept.")
            with part.open("ab" if resumed else "wb") as stream, tqdm(
                    total=total, initial=have if resumed else 0, unit="B", unit_scale=True, desc=part.stem) as bar:
                while chunk := reply.read(1 << 20):
                    stream.write(chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "") == f"bytes */{have}":  # nothing is left
            return
        raise DataError(f"{url} answered {error.code} {error.reason}. Is the disc's number right? "
                        "Try again later.") from error
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"The download of {url} stopped ({error}). Run this again: it goes on where it "
                        "was.") from error
    if total and part.stat().st_size != total:
        raise DataError(f"The download of {url} stopped after {part.stat().st_size:,} of {total:,} bytes. Run this "
                        "again: it goes on where it was.")


def check_md5(part, expected):
    """Remove a download whose md5 is not the expected one, where that is known, and say so."""
    if expected is None:
        return
    with part.open("rb") as stream:
        found = hashlib.file_digest(stream, "md5").hexdigest()
    if found != expected:
        part.unlink()
        raise DataError(f"{part.stem} arrived damaged: its md5 is {found}, expected {expected}. It was removed; run "
                        "this again to fetch it anew.")
