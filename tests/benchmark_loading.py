"""Peak memory and time of loading a set of the course's size: 9,664 + 1,120 + 544 made slices of 256x256.

    python tests/benchmark_loading.py
"""

import io
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

SUBJECTS = {"train": range(1, 303), "validate": range(402, 437), "test": range(441, 458)}
ROOT = Path(__file__).resolve().parent.parent


def write_set(folder):
    """The course's six folders, from the 32 slices of one practice brain."""
    from PIL import Image

    from helpers.datasets import practice

    def png(array):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        return stream.getvalue()

    images, labels = practice.make_subject(0, range(32))
    pictures = [(png(image), png(label * 85)) for image, label in zip(images, labels)]
    with zipfile.ZipFile(folder / "slices.zip", "w") as archive:
        for word, cases in SUBJECTS.items():
            for case in cases:
                for number, (image, mask) in enumerate(pictures):
                    end = f"{case:03d}_slice_{number}.nii.png"
                    archive.writestr(f"keras_png_slices_{word}/case_{end}", image)
                    archive.writestr(f"keras_png_slices_seg_{word}/seg_{end}", mask)
    zipfile.ZipFile(folder / "slices.zip").extractall(folder / "slices")


def measure(path):
    """Load once in this process and print what it took."""
    from helpers import data

    began = time.time()
    slices = sum(len(split) for split in data.load("oasis", path).splits)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{Path(path).name}: {slices} slices in {time.time() - began:.1f} s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_set(Path(folder))
            for path in ("slices.zip", "slices"):
                subprocess.run([sys.executable, __file__, Path(folder) / path], check=True)
