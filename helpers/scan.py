"""A scan of your own: a volume or a picture in, a mask on the scan's own grid out.

    python -m helpers.scan [RUN] SCAN...

RUN is the folder of a finished run, such as runs/practice-3f9c2a; neither the notebook nor the training data is needed.
Without RUN, which takes one SCAN, the network that comes with this project is used, helpers/network, and RUN below is
runs/synthetic: it learnt from synthetic brains alone, as the model card beside it says.
SCAN is a volume of a head (.nii, .nii.gz, or .hdr with .img), an 8-bit picture that lies as the training slices do, or a
folder: of all scans below it. What is already done there is not done again.

Written: RUN/results/NAME-CODE_labels.nii.gz for a volume, .hdr with .img for one that is such a pair, .png for a
picture. CODE stands for the scan's content, so that scans of one name keep their masks apart. A volume's mask holds
0 background, 1 CSF, 2 grey matter, 3 white matter; a picture's holds the labels' greys. Printed: how much there is of
each label, and Dice where true labels lie beside a volume, as NAME_seg with the same ending; without them nobody can
tell it, and where they cannot be used, a note says why. Of a folder, this goes into a table, RUN/results/FOLDER-CODE.csv,
a row a scan; only what is wrong is printed.

Exit status: 0 where nothing speaks against any mask; 1 where a file could not be used, or a line above a table says
what is wrong with its mask; 2 where SCAN is not given.
"""

import re
import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to, resample_to_output
from PIL import Image, ImageOps
from rich.progress import track
from scipy import ndimage

from helpers import backend, run
from helpers.data import Box, DataError, Shown, Split
from helpers.datasets import practice
from helpers.datasets.files import below, digest, open_picture, replace_whole
from helpers.datasets.volumes import (check_greys, check_pair, frame_corner, framed, has_orientation, read_volume,
                                      to_greys)
from helpers.evaluate import confusion, ratio
from helpers.predict import Predictor
from helpers.recipe import UserError

OTHERS = f"process-{backend.processes()[0]}" if backend.processes()[0] else ""  # where others than the first write
VOLUME = re.compile(r"(?is)(.+?)\.(nii|nii\.gz|hdr|img)")  # a volume's file name
SCANS = re.compile(r"(?is).+?(?<!_seg)(?<!_mask)(?<!_labels)\.(nii|nii\.gz|hdr|png|jpe?g|tiff?|bmp)")  # of a folder
# Darker than the share AIR of a scan's brightest grey, and not enclosed by brighter tissue, is air; of the labels that
# share may lie there. Of true labels, at most: IBSR 0.01, OASIS 0.005, stripped practice brains 0.07; dim nuclei 0.31.
AIR, IN_VOLUME, IN_PICTURE = 0.1, 0.05, 0.5
# Litres of tissue that a head may hold, CSF among it, and of grey matter. OASIS-1's 416 adults have 1.1 to 2.0 inside
# the skull (eTIV; Marcus et al. 2007), about half of it grey matter; a newborn has some 0.4. LEAST counts where
# there is room for a whole brain: HEAD mm along every axis.
LEAST, MOST, MOST_GREY, HEAD = 0.3, 2.2, 1.2, 120


@dataclass(frozen=True, repr=False)
class ScanLabels(Shown):
    """A scan with the labels found: as a Split of slices to look at, as a mask file, as a table of volumes.

    `file` is the mask, written on the scan's own grid; `table` says how much of each label there is; `warning` why
    not to believe it, if anything speaks against it; `note` what was taken for granted.
    """

    split: Split
    file: Path
    table: pd.DataFrame
    warning: str = ""
    note: str = ""

    def as_table(self):
        """What speaks against the labels; whose they are and where the mask is; how much of each there is."""
        return (f"{self.warning}\n{self.split.name}, {len(self.split)} slices: {self.split.task.title}; the mask is in "
                f"{self.file}{self.note}".lstrip(), self.table)


def segment(predictor, file, folder):
    """Segment one scan, a NIfTI or Analyze volume or an 8-bit picture, and write its mask into `folder`.

    A volume may have any orientation and spacing. Its mask, `NAME-CODE_labels.nii.gz`, has the same grid, header and labels
    0 to L - 1; the table gives millilitres and, where true labels lie beside the scan as NAME_seg, Dice. A picture must
    lie as the training slices do. Its mask, `NAME-CODE_labels.png`, has the same size and the labels' greys. The code
    stands for the scan's content, so that scans of one name keep their masks apart. Every slice that is not empty is
    predicted. Raises DataError, naming the file, on what cannot be read.
    """
    try:
        file, folder = Path(file).expanduser(), Path(folder).expanduser() / OTHERS
        if not file.is_file():
            raise DataError(f"No file is at {file}. Give a volume (.nii, .nii.gz, .hdr), a picture (.png) or a folder.")
        with file.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                raise DataError(f"{file.name} is DICOM, one slice. Make its folder NIfTI (dcm2niix) and give that.")
        folder.mkdir(parents=True, exist_ok=True)
        return (of_volume if VOLUME.fullmatch(file.name) else of_picture)(predictor, file, folder)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{file} cannot be reached, or its mask not written into {folder} ({error}).") from error


def example(dataset, folder, seed=0):
    """A scan to try where the reader has none: for brains a practice brain of no split, else a test picture."""
    (folder := folder / OTHERS).mkdir(parents=True, exist_ok=True)
    if dataset.image_shape[-1] == 1:
        spread = practice.VARIED if "varied" in dataset.task.title else practice.COURSE
        return practice.write_scan(folder / "practice_brain_synthetic.nii.gz", seed=seed, spread=spread)[0]
    Image.fromarray(dataset.test.images[len(dataset.test) // 2]).save(folder / "test_picture.png")
    return folder / "test_picture.png"


def of_volume(predictor, file, folder):
    """Segment a volume: axial slices of 1 mm, the head in the middle of the frame, and back to the volume's grid."""
    task, n_labels = predictor.task, len(predictor.task.labels)
    if predictor.channels != 1:
        raise DataError(f"{file.name} is a volume; this network takes {predictor.channels} channels. Train on brains first.")
    volume = read_volume(file)
    check_greys(volume.dataobj, file.name)
    greys = to_greys(upright := resample_to_output(volume, (1, 1, 1), order=1))
    corner = frame_corner(greys, predictor.frame)
    images = framed(greys, corner, predictor.frame)[..., None]
    maps, found = predict(predictor, file, images)
    labels = on_grid(maps, upright.affine @ nib.affines.from_matvec(np.eye(3), [*corner, 0]), volume)
    name, ending = VOLUME.fullmatch(file.name).groups()
    code = digest(np.asarray(volume.dataobj).ravel("K"), volume.affine.tobytes())
    written = folder / f"{name}-{code}_labels.{'hdr' if ending.lower() in ('hdr', 'img') else 'nii.gz'}"
    write_like(file, labels, written)
    voxels = np.array([np.count_nonzero(labels == k) for k in range(n_labels)])
    millilitres = voxels * abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    table = pd.DataFrame({"in the mask": range(n_labels), "voxels": voxels, "millilitres": millilitres.round(1)},
                         task.names)
    note = "" if has_orientation(volume) else ". No orientation is stored: it was read as axial; look at the picture"
    if (true := file.with_name(f"{name}_seg.{ending}")).exists():
        try:
            check_pair(volume, truth := read_volume(true, numbers=1), file.name, true.name)
            counts = sum(confusion(*planes, n_labels) for planes in zip(truth.dataobj, labels))
            table["Dice on the scan's own grid"] = ratio("Dice", counts).round(4)
        except DataError as error:
            note += f". There is no Dice: {error}"
    least = LEAST if min(nib.affines.voxel_sizes(volume.affine) * volume.shape) >= HEAD else 0
    return ScanLabels(found, written, table, warning(found, IN_VOLUME, millilitres / 1000, least, predictor.box), note)


def on_grid(maps, place, volume):
    """The most probable label, uint8, at each voxel of a volume, of maps (n, H, W, L) of slices that lie at `place`."""
    labels, best = np.zeros(volume.shape, np.uint8), np.full(volume.shape, -1, np.float32)
    for k in range(maps.shape[-1]):  # one label's probabilities in memory at a time
        grid = nib.Nifti1Image(np.moveaxis(maps[..., k], 0, 2), place)
        chance = np.asarray(resample_from_to(grid, volume, order=1, cval=float(k == 0)).dataobj, np.float32)
        labels[chance > best] = k
        np.maximum(best, chance, out=best)
    return labels


def write_like(file, labels, written):
    """Write a mask with a scan's own header, so that every viewer puts it where it puts the scan."""
    header = (like := nib.load(file)).header.copy()
    header.set_data_dtype(np.uint8)
    if isinstance(header, nib.Nifti1Header):
        header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0  # the greys that the scan is shown from and to
    moved = file.with_suffix(".mat").exists() or isinstance(header, nib.Nifti1Header)
    nib.save(type(like)(labels, like.affine if moved else None, header), written)


def predict(predictor, file, images):
    """The probabilities of a scan's slices, and the slices as a Split with their most probable labels in truth's place.

    Slices that are empty are background.
    """
    maps, subjects = predictor.probabilities(images), np.full(len(images), file.name)
    maps[~images.any((1, 2, 3))] = np.eye(maps.shape[-1])[0]
    task = replace(predictor.task, title=f"labels by a network trained on {predictor.task.title}")
    return maps, Split(file.name, images, maps.argmax(-1).astype(np.uint8), subjects, task)


def warning(found, most, litres=(), least=-1, box=None):
    """What speaks against the labels of a Split, worst first; "" where nothing does.

    That more than the share `most` of them lies in air; that no head has these litres, one number a label, or the scan
    less than `least`; that they touch the border of the box.
    """
    labelled, greys = found.labels > 0, found.images.max(-1)
    head = [ndimage.binary_fill_holes(grey > AIR * greys.max()) for grey in greys]
    share = (labelled & ~np.array(head)).sum() / max(labelled.sum(), 1)
    tissue, grey_matter, why = sum(litres[1:]), sum(litres[2:3]), ""
    if share > most:
        why = f"{share:.0%} of them lie where {found.name} is as dark as air"
    elif not least < tissue < MOST or grey_matter > MOST_GREY:
        why = f"no such head has {tissue:.1f} l of CSF, grey and white matter, {grey_matter:.1f} l of it grey matter"
    elif box and not Box(box.top + 1, box.left + 1, box.height - 2, box.width - 2).holds(found.labels):
        return (f"WARNING: tissue was found at the border of the {box.height} x {box.width} mm that the network sees: "
                "some of the brain may lie outside.")
    return why and f"DO NOT USE THESE LABELS: {why}. The network must be trained on scans like this one."


def of_picture(predictor, file, folder):
    """Segment a picture, brought to the frame of the training slices; the mask has the picture's own size.

    A grey picture of another shape is padded first, so that a brain keeps its form; a colour picture is stretched, as
    its data set's are. One that a camera marked as turned (EXIF) is turned, and so is its mask.
    """
    channels, frame, task = predictor.channels, predictor.frame, predictor.task
    image = open_picture(file.read_bytes(), file.name, ("L", "LA", "P", "RGB", "RGBA"))
    picture = np.array(ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB"))
    if picture.any() and not np.ptp(picture):
        raise DataError(f"{file.name} is of one grey, {picture.max()}, everywhere. Give the scan itself.")
    size = picture.shape[:2]
    full = [round(n * np.divide(size, frame).max()) for n in frame] if channels == 1 else size
    padding = Box(*-(np.subtract(full, size) // 2), *full)  # around the picture, in its middle
    padded = Image.fromarray(padding.cut(picture[None])[0])
    images = np.array(padded.resize(frame[::-1], Image.Resampling.NEAREST)).reshape(1, *frame, channels)
    maps, found = predict(predictor, file, images)
    large = [Image.fromarray(chances).resize(padded.size, Image.Resampling.BILINEAR)
             for chances in np.moveaxis(maps[0], -1, 0)]
    labels = padding.paste(np.argmax(large, axis=0)[None], size)[0]
    written, greys = folder / f"{file.stem}-{digest(picture)}_labels.png", np.array([lb.grey for lb in task.labels])
    Image.fromarray(greys.astype(np.uint8)[labels]).save(written)
    pixels = np.bincount(labels.ravel(), minlength=len(greys))
    table = pd.DataFrame({"in the mask": greys, "pixels": pixels,
                          "% of the picture": (100 * pixels / labels.size).round(2)}, task.names)
    return ScanLabels(found, written, table, warning(found, IN_PICTURE))


def of_folder(predictor, folder, results):
    """Segment every scan below a folder; a table of them in `results`, written as it grows; whether nothing was wrong.

    A scan whose row is there, and whose mask is newer than the scan and the run, is not segmented again.
    """
    results.mkdir(parents=True, exist_ok=True)
    code, newest, rows = digest(str(folder.resolve()).encode()), (predictor.run.folder / run.STATE).stat().st_ctime, {}
    table = results / f"{folder.resolve().name}-{code}.csv"
    there = {str(file.relative_to(folder)): file for file in sorted(below(folder))
             if file.name[0] != "." and not file.parent.resolve().is_relative_to(results.parent.resolve())}
    files = {name: file for name, file in there.items() if SCANS.fullmatch(file.name)}
    if not files:
        raise DataError(f"No scan (.nii, .nii.gz, .hdr, .png) is below {folder}. Make NIfTI of DICOM: dcm2niix.")
    with suppress(OSError, ValueError):  # not there, or damaged: all is done again
        rows = pd.read_csv(table, index_col="scan", dtype=str, keep_default_na=False).to_dict("index")
    rows = {name: row for name, row in rows.items() if name in files and (mask := results / row["mask"]).is_file()
            and mask.stat().st_mtime > max(newest, files[name].stat().st_ctime)}
    print(f"{len(files)} scans, {len(rows)} of them done before; {len(there) - len(files)} other files left out", flush=True)
    for name in track(sorted({*files} - {*rows}), "Segmenting"):
        try:
            found = segment(predictor, files[name], results)
            rows[name] = {"mask": found.file.name, "problem": found.warning, "note": found.note.strip(". ")} | {
                f"{label}, {what}": str(one) for what in found.table.columns[1:] for label, one in found.table[what].items()}
        except UserError as error:
            rows[name] = {"mask": "", "problem": str(error)}
        replace_whole(table, pd.DataFrame.from_dict(rows, orient="index").sort_index().rename_axis("scan").to_csv)
    wrong = [f"{name}: {row['problem']}\n" for name, row in rows.items() if row["problem"]]
    print(*wrong, sep="", end="", file=sys.stderr, flush=True)
    print(f"{len(rows)} scans, {len(wrong)} of them with a problem; the table is {table}", flush=True)
    return not wrong


def main(words):
    """Segment the scans named on a command line; the exit status."""
    parser = ArgumentParser("python -m helpers.scan", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("RUN", type=Path, nargs="?", default=run.SYNTHETIC)
    parser.add_argument("SCAN", nargs="+")
    given, failed = parser.parse_args(words or ["--help"]), False
    if (Path(given.SCAN[0]) / run.STATE).exists():
        parser.error(f"{given.SCAN[0]} is a run: name a scan after it")
    results = (Path("runs", "synthetic") if given.RUN.resolve() == run.SYNTHETIC else given.RUN) / "results"
    try:
        with redirect_stdout(sys.stderr):
            backend.set_up()  # the precision that the notebook has on this device
        predictor = Predictor.open(given.RUN)
    except UserError as error:
        raise SystemExit(str(error)) from None
    for file in given.SCAN:
        try:
            if Path(file).expanduser().is_dir():
                failed |= not of_folder(predictor, Path(file).expanduser(), results)
                continue
            print(found := segment(predictor, file, results), "\n", flush=True)
            failed |= bool(found.warning)
        except (UserError, OSError) as error:
            failed = True
            print(error, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            raise SystemExit(f"Stopped at {file}. Started again, a folder goes on where it was.") from None
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
