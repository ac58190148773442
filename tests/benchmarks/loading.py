"""Time and peak memory of loading made slices in the course's layout, each in a process of its own.

    python tests/benchmarks/loading.py

First 2,000 pairs: the usual one-liner with one thread, `datasets.load` for the first time, and again from its cache.
Then a set of the course's size: 9,664 + 1,120 + 544 pairs of 256x256, from a zip and from folders.
"""

import io
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COURSE = {"train": range(1, 303), "validate": range(402, 437), "test": range(441, 458)}
SMALL = {"train": range(1, 56), "validate": range(402, 406), "test": range(441, 445)}  # 63 x 32 = 2,016 pairs


def write_set(folder, subjects):
    """The course's six folders and their zip, from the 32 slices of one practice brain."""
    import numpy as np
    from PIL import Image

    from helpers.datasets import practice

    def png(array):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        return stream.getvalue()

    images, labels = practice.make_slices(np.zeros(32, int), np.arange(32))
    pictures = [(png(image[..., 0]), png(label * 85)) for image, label in zip(images, labels)]
    with zipfile.ZipFile(folder / "slices.zip", "w") as archive:
        for word, cases in subjects.items():
            for case in cases:
                for number, (image, mask) in enumerate(pictures):
                    end = f"{case:03d}_slice_{number}.nii.png"
                    archive.writestr(f"keras_png_slices_{word}/case_{end}", image)
                    archive.writestr(f"keras_png_slices_seg_{word}/seg_{end}", mask)
    zipfile.ZipFile(folder / "slices.zip").extractall(folder / "slices")


def one_liner(path):
    """Number of pairs, read the usual way."""
    from glob import glob

    import numpy as np
    from PIL import Image

    images, masks = (np.array([np.array(Image.open(file)) for file in sorted(glob(f"{path}/keras_png_{kind}/*"))])
                     for kind in ("slices_[!s]*", "slices_seg_*"))
    return min(len(images), len(masks))


def ours(path):
    """Number of pairs, read by `datasets.load`: paired by number, checked, split."""
    from helpers import datasets
    from helpers.recipe import Recipe

    return sum(len(split) for split in datasets.load(Recipe("oasis", path)).splits)


def measure(name, path, what):
    """Load once in this process and print what it took."""
    began = time.time()
    pairs = {"one_liner": one_liner, "ours": ours}[name](path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{what:42} {pairs:6} pairs in {time.time() - began:5.1f} s, peak memory {peak:.2f} GB", flush=True)


def run(folder, *words):
    """This script with other words, in a process of its own, whose runs/cache lies in `folder`."""
    subprocess.run([sys.executable, __file__, *words], check=True, cwd=folder,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1:
        if sys.argv[1] == "write":
            write_set(Path("."), SMALL if sys.argv[2] == "small" else COURSE)
        else:
            measure(*sys.argv[1:])
        sys.exit()
    tables = {"small": (("one_liner", "slices", "np.array(Image.open(f)), one thread"),
                        ("ours", "slices", "datasets.load, first time"),
                        ("ours", "slices", "datasets.load, from its cache")),
              "whole": (("ours", "slices.zip", "datasets.load, whole course, zip"),
                        ("ours", "slices", "datasets.load, whole course, folders"),
                        ("ours", "slices", "datasets.load, whole course, cache"))}
    for size, rows in tables.items():
        with tempfile.TemporaryDirectory() as folder:
            run(folder, "write", size)  # a process of its own too: a child starts with its parent's peak memory
            for name, path, what in rows:
                run(folder, name, path, what)
