"""Reading files from a folder or straight from a zip, with errors that name the file."""

import io
import os
import re
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import reduce
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from helpers.data import DataError

LARGEST, LARGEST_FILE = 64 * 1024**3, 2 * 1024**3  # bytes: far above any data set here, and any file in one


class UnreadableError(DataError):
    """One file is damaged."""


class Files:
    """The files below a folder or inside a zip: `names` (relative, sorted, without macOS litter) and `read`.

    Names have plain slashes, also where a zip's begin with ./ or have those of Windows.
    """

    def __init__(self, path):
        self.path, self.zip = Path(path).expanduser(), None
        if self.path.is_dir():
            self.members = {file.relative_to(self.path).as_posix(): file for file in below(self.path)}
        else:
            try:
                self.zip = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{self.path.name} is no folder and no whole zip file ({error}). Copy it again.") from error
            members = {info.filename.replace("\\", "/"): info for info in self.zip.infolist()}
            check_archive(self.path, {name: info.file_size for name, info in members.items()})
            self.members = {str(PurePosixPath(name)): info for name, info in members.items() if name[-1:] != "/"}
        self.names = sorted(name for name in self.members
                            if not any(part.startswith((".", "__MACOSX")) for part in name.split("/")))
        if self.names and all(name.lower().endswith(".zip") for name in self.names):
            raise DataError(f"{self.path.name} holds nothing but {', '.join(self.names[:5])}. Unpack it, give one of these.")

    def read(self, name):
        """Bytes of one file."""
        try:
            return self.zip.read(self.members[name]) if self.zip else self.members[name].read_bytes()
        except RuntimeError as error:  # a password, or a compression that Python lacks
            raise DataError(f"{self.path.name} cannot be unpacked here ({error}). Do so, and give the folder.") from error
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UnreadableError(f"{name} in {self.path.name} cannot be read ({error}). Copy it again.") from error


def below(folder, seen=()):
    """Every file below a folder; folders that links lead to come last, none twice and none that holds the folder."""
    seen, links = seen or set(), []

    def refuse(error):
        """Say that a folder cannot be listed, as on a drive that is gone."""
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}). Is the drive there?")

    for place, folders, names in os.walk(folder, onerror=refuse):
        seen.add(os.path.realpath(place))
        links += [Path(place, name) for name in sorted(folders) if os.path.islink(os.path.join(place, name))]
        yield from (Path(place, name) for name in names)
    for link in links:
        if (real := os.path.realpath(link)) not in seen and not Path(os.path.realpath(folder)).is_relative_to(real):
            yield from below(link, seen)


def check_archive(path, sizes):
    """Refuse an archive, {name: bytes}, whose names climb out of it or that would unpack to an absurd size."""
    for name in sizes:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise DataError(f"{path.name} holds {name}, which leads out of the archive. Get it from its source.")
    if sum(sizes.values()) > LARGEST or max(sizes.values(), default=0) > LARGEST_FILE:
        raise DataError(f"{path.name} would unpack to {sum(sizes.values()) / 1024**3:.0f} GB. Get it from its source.")


def find(names, pattern):
    """{(subject, number): (image files, mask files)}, sorted, of the file names that a pattern matches whole.

    The pattern has the groups `subject`, `mask`, which is there in masks only, and perhaps `number`, else 0.
    """
    found, spelled = {}, {}
    for name in names:
        if match := re.fullmatch(pattern, name, re.IGNORECASE):
            if re.search("[\ud800-\udfff]", name):  # bytes that are no text
                raise DataError(f"{name!r} has a name that is not plain text. Rename it.")
            groups = {"number": 0} | match.groupdict()
            subject = spelled.setdefault(groups["subject"].lower(), groups["subject"])
            images, masks = found.setdefault((subject, int(groups["number"])), ([], []))
            (masks if groups["mask"] else images).append(name)
    return dict(sorted(found.items()))


def find_pairs(names, pattern, where, example):
    """{(subject, number): (image file, mask file)}, sorted, as `find` finds them.

    DataError, naming files and `where` they are, if one is alone or there twice, or none is like the `example`.
    """
    found = find(names, pattern)
    if not found:
        raise DataError(f"No file in {where} is named like {example}.")
    for same in chain(*found.values()):
        if len(same) > 1:
            raise DataError(f"{where} holds {' and '.join(same)}: the same scan by name. Remove one.")
    for there, missing in ((0, "mask"), (1, "image")):
        if alone := [pair[there][0] for pair in found.values() if not pair[1 - there]]:
            raise DataError(f"{len(alone)} files of {where} have no {missing}: {', '.join(alone[:5])}. Add it, or remove them.")
    return {key: (image, mask) for key, ([image], [mask]) in found.items()}


def read_pairs(files, pairs, labels, modes=("L",)):
    """Read {(subject, number): (image file, mask file)}, masks with the greys of `labels`, images of one of `modes`.

    Returns images uint8 (N, H, W, C), labels uint8 (N, H, W), subjects (N,), numbers (N,), and a list of the
    UnreadableErrors of the pairs that are left out. DataError, naming files, on other sizes and greys.
    """
    label_of = np.full(256, 255, np.uint8)
    label_of[[label.grey for label in labels]] = range(len(labels))

    def read(image, mask):
        """One slice and its labels, or the error that tells which of the two is damaged."""
        try:
            picture = read_picture(files, image, modes)
            drawn = read_mask(files, mask, image, picture)
        except UnreadableError as error:
            return error
        found = label_of.take(drawn)  # three times as fast as label_of[drawn]
        if found.max() == 255:
            raise DataError(f"{mask} has the greys {np.unique(drawn[found == 255])[:8].tolist()}; masks have only "
                            f"{[label.grey for label in labels]}. Was it resized, or saved as JPEG? Are these label numbers?")
        if drawn.any() and np.array_equal(picture, drawn):
            raise DataError(f"{image} and its mask {mask} are the same picture. Copy both again.")
        return picture, found

    slices = dict(zip(pairs, in_parallel(read, *zip(*pairs.values()))))
    damaged = [slices.pop(key) for key in pairs if isinstance(slices[key], UnreadableError)]
    sizes = {picture.shape: pairs[key][0] for key, (picture, _) in slices.items()}
    if len(sizes) != 1:
        raise DataError(f"Slices of {files.path.name} must be readable and of one size; found {sizes or damaged}.")
    pictures, found = map(np.stack, zip(*slices.values()))
    subjects, numbers = map(np.array, zip(*slices))
    return pictures.reshape(*found.shape, -1), found, subjects, numbers, damaged


def read_mask(files, name, image, picture):
    """A mask's greys, uint8 (H, W), as large as the picture, whose file is `image`."""
    drawn = read_picture(files, name)
    if drawn.shape != picture.shape[:2]:
        ours, masks = ("x".join(map(str, array.shape[:2])) for array in (picture, drawn))
        raise DataError(f"{image} is {ours} pixels, its mask {name} is {masks}. They must be equal.")
    return drawn


def read_picture(files, name, modes=("L",)):
    """One 8-bit picture: uint8 (H, W) where only grey (mode L) is expected, else RGB as uint8 (H, W, 3)."""
    image = open_picture(files.read(name), f"{name} in {files.path.name}", modes)
    return np.array(image if modes == ("L",) else image.convert("RGB"))


def open_picture(content, name, modes):
    """A picture file's bytes as a Pillow image of one of `modes`; DataError, with its `name`, on anything else."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        pages = getattr(image, "n_frames", 1)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything
        why = str(error).partition(" <")[0] if content else "it is empty; is it still in the cloud?"
        raise UnreadableError(f"{name} is not a readable picture ({why}). Copy it again.") from error
    if image.mode not in modes:
        raise DataError(f"{name} is a picture of mode {image.mode}. Save it with 8 bits, as {' or '.join(modes)}.")
    if pages > 1:
        raise DataError(f"{name} holds {pages} pictures; save the one you mean by itself.")
    if image.has_transparency_data and image.convert("RGBA").getextrema()[-1][0] < 255:
        raise DataError(f"{name} is partly transparent; save it without transparency.")
    return image


def in_parallel(function, *things):
    """Results of `function` over one or several sequences, in order, on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, *things))


def replace_whole(path, write):
    """Let `write(part)` write a file, then give it the name `path` in one step: a reader sees the old file or the new.

    What is written is on the disk before it is renamed. If anything fails, the old file stays and nothing is left over.
    """
    part = path.with_name(f"part-{path.name}")  # with the same ending, by which Keras and numpy know what to write
    try:
        write(part)
        with suppress(OSError), part.open("rb+") as stream:  # some mounted drives cannot sync
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def digest(*contents):
    """Eight hexadecimal digits that stand for arrays or bytes."""
    return f"{reduce(lambda code, content: zlib.crc32(content, code), contents, 0):08x}"
