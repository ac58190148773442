"""Reading files from a folder or straight from a zip, with errors that name the file."""

import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from helpers.data import DataError


class Files:
    """The files below a folder or inside a zip: `names` (relative, sorted, without macOS litter) and `read`."""

    def __init__(self, path):
        self.path = Path(path)
        if self.path.is_dir():
            self.zip = None
            names = (p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        else:
            try:
                self.zip = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{self.path.name} is not a folder and not a whole zip file ({error}). Was the "
                                "download cut short? Download it again, or give the unpacked folder.") from error
            names = (info.filename for info in self.zip.infolist() if not info.is_dir())
        self.names = sorted(n for n in names if not is_litter(n))

    def __repr__(self):
        return f"{self.path.name} ({len(self.names)} files)"

    def read(self, name):
        """Bytes of one file."""
        try:
            return self.zip.read(name) if self.zip else (self.path / name).read_bytes()
        except (OSError, zipfile.BadZipFile, zipfile.zlib.error, EOFError, RuntimeError) as error:
            raise DataError(f"{name} in {self.path.name} cannot be read ({error}). Copy or download it again.") from error

    def folders(self):
        """How many files lie directly in each folder, by the folder's path."""
        counts = {}
        for name in self.names:
            folder = str(PurePosixPath(name).parent)
            counts[folder] = counts.get(folder, 0) + 1
        return counts


def is_litter(name):
    """True for what macOS and Windows leave in archives: __MACOSX, ._ files, .DS_Store and the like."""
    parts = PurePosixPath(name).parts
    return any(p == "__MACOSX" or p.startswith(".") for p in parts) or parts[-1] in ("Thumbs.db", "desktop.ini")


def read_grey(files, name):
    """One 8-bit grey picture as uint8 (H, W)."""
    try:
        with Image.open(io.BytesIO(files.read(name))) as image:
            if image.mode != "L":
                raise DataError(f"{name} in {files.path.name} is a picture of mode {image.mode}; expected 8-bit grey "
                                "(mode L). Save it as 8-bit grey PNG.")
            return np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} in {files.path.name} is not a readable picture ({error}). "
                        "Copy or download it again.") from error


def in_parallel(function, things):
    """Results of `function` over `things`, in order, on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, things))
