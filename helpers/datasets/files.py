"""Reading files from a folder or straight from a zip, with errors that name the file."""

import hashlib
import io
import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
        self.path, self.digests = Path(path), {}
        if self.path.is_dir():
            self.zip = None
            names = [f"{folder}/{name}"[len(str(self.path)) + 1:].replace(os.sep, "/")
                     for folder, _, inside in os.walk(self.path) for name in inside]
        else:
            try:
                self.zip = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{self.path.name} is not a folder and not a whole zip file ({error}). Was the "
                                "download cut short? Download it again, or give the unpacked folder.") from error
            members = {info.filename.replace("\\", "/"): info for info in self.zip.infolist()}
            check_archive(self.path, {name: info.file_size for name, info in members.items()})
            self.members = {str(PurePosixPath(name)): info for name, info in members.items() if name[-1:] != "/"}
            names = self.members
        self.names = sorted(n for n in names if not is_litter(n))

    def read(self, name):
        """Bytes of one file."""
        try:
            content = self.zip.read(self.members[name]) if self.zip else (self.path / name).read_bytes()
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise UnreadableError(f"{name} in {self.path.name} cannot be read ({error}). "
                                  "Copy or download it again.") from error
        self.digests[name] = hashlib.sha256(content).hexdigest()
        return content

    def digest(self, name):
        """SHA-256 of one file, which is read only if it has not been yet."""
        if name not in self.digests:
            self.read(name)
        return self.digests[name]

    def folders(self):
        """The files that lie directly in each folder, {folder's path: files' paths}."""
        inside = {}
        for name in self.names:
            inside.setdefault(name.rpartition("/")[0], []).append(name)
        return inside


def check_archive(path, sizes):
    """Refuse an archive, {name: bytes}, whose names climb out of it or that would unpack to an absurd size."""
    climbing = [name for name in sizes if ".." in PurePosixPath(name).parts or name.startswith("/")]
    if climbing:
        raise DataError(f"{path.name} holds {climbing[0]}, a name that leads out of the archive. No data set here has "
                        "such names: do not use this file, get it from its source.")
    if sum(sizes.values()) > LARGEST or max(sizes.values(), default=0) > LARGEST_FILE:
        raise DataError(f"{path.name} would unpack to {sum(sizes.values()) / 1024**3:.0f} GB, far more than any data "
                        "set here. Get it from its source.")


def is_litter(name):
    """True for what macOS and Windows leave in archives: __MACOSX, ._ files, .DS_Store and the like."""
    parts = name.split("/")
    return any(p == "__MACOSX" or p.startswith(".") for p in parts) or parts[-1] in ("Thumbs.db", "desktop.ini")


def read_picture(files, name, modes=("L",)):
    """One 8-bit picture: uint8 (H, W) where only grey (mode L) is expected, else RGB as uint8 (H, W, 3)."""
    try:
        with Image.open(io.BytesIO(files.read(name))) as image:
            if image.mode not in modes:
                raise DataError(f"{name} in {files.path.name} is a picture of mode {image.mode}; expected "
                                f"{' or '.join(modes)}. Save it as 8-bit {'grey' if modes == ('L',) else 'colour'}.")
            return np.array(image if modes == ("L",) else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"{name} in {files.path.name} is not a readable picture ({error}). "
                              "Copy or download it again.") from error


def check_paired(images, masks, where):
    """Raise DataError, naming files, unless the same keys have an image and a mask, and there are any."""
    for here, there, what in ((images, masks, "mask"), (masks, images, "image")):
        alone = sorted(here.keys() - there.keys())
        if alone:
            shown = ", ".join([*(here[key] for key in alone[:5]), *(["..."] if len(alone) > 5 else [])])
            raise DataError(f"{len(alone)} files of {where} have no {what}: {shown}. "
                            "Add what is missing or remove these.")


def in_parallel(function, things):
    """Results of `function` over `things`, in order, on all cores, a run of things at a time: a slice is soon read."""
    things = list(things)
    step = -(-len(things) // (4 * os.cpu_count())) or 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda at: [function(thing) for thing in things[at:at + step]], range(0, len(things), step))
        return [result for part in parts for result in part]


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
    found = 0
    for content in contents:
        found = zlib.crc32(content, found)
    return f"{found:08x}"
