"""What Colab needs beyond a plain Jupyter: missing packages, Google Drive, a zip copied near once.

Outside Colab only `install_missing` does anything, and `write_address`, for whoever publishes the repository.
"""

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
NOT_NEEDED = "# Not needed in Colab"  # heading in requirements.txt
DRIVE = Path("/content/drive")


def install_missing(requirements=REQUIREMENTS):
    """Install what the notebook needs and this machine lacks, and change nothing that is there; names of the former.

    Versions of all that is installed are handed to pip as constraints, so that it takes packages that fit them.
    """
    lines = requirements.read_text().partition(NOT_NEEDED)[0].splitlines()
    wanted = [line.partition("#")[0].strip() for line in lines]
    missing = [line for line in wanted if line and not any(importlib.metadata.distributions(
        name=re.match(r"[\w.-]+", line)[0]))]
    if missing:
        names = {found.name for found in importlib.metadata.distributions()} - {None}
        there = sorted({f"{name}=={importlib.metadata.version(name)}" for name in names})  # the copy that is imported
        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder) / "installed.txt"
            constraints.write_text("\n".join(there))
            pip(["install", "--quiet", *missing, "--constraint", str(constraints)])
        importlib.invalidate_caches()
    return missing


def pip(words):
    """Run this Python's pip; RuntimeError with what it said if it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip {' '.join(words)} failed:\n{done.stderr.strip()[-2000:]}")


def in_colab():
    """True in a Colab notebook."""
    return "google.colab" in sys.modules


def mount():
    """Mount Google Drive (Colab asks for leave) and return the folder of one's own files; RuntimeError elsewhere."""
    if not in_colab():
        raise RuntimeError("DRIVE is for Colab, which alone can mount Google Drive: set it to False.")
    importlib.import_module("google.colab.drive").mount(str(DRIVE))
    return DRIVE / "MyDrive"


def near(path, folder=Path("data")):
    """An archive that lies on Drive, copied to this machine once, whole; anything else as it is.

    Reading thousands of small files through Drive takes minutes, copying their zip seconds.
    """
    path = Path(path)
    if not (path.is_relative_to(DRIVE) and path.is_file()):
        return path
    copy = folder / path.name
    there, here = path.stat(), copy.stat() if copy.exists() else None
    if here is None or (here.st_size, here.st_mtime) != (there.st_size, there.st_mtime):
        folder.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(copy.name + ".part")
        shutil.copy2(path, part)
        part.replace(copy)
    return copy


def write_address(address, root=REQUIREMENTS.parent):
    """Write the repository's address where it is needed: badge and `PROJECT` in the notebook, badge in the README.

    `address` is https://github.com/OWNER/NAME. Commit what this changes.
    """
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    if not match:
        raise SystemExit(f"{address} is not like https://github.com/OWNER/NAME.")
    badge = (f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
             f"(https://colab.research.google.com/github/{match[1]}/blob/main/OASIS_Improved_UNet.ipynb)")
    old = r"<!-- badge -->(\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\))?"
    texts = {name: (root / name).read_text() for name in ("README.md", "OASIS_Improved_UNet.ipynb")}
    for name, mark, text in (("README.md", old, f"<!-- badge -->{badge}"),
                             ("OASIS_Improved_UNet.ipynb", old, f"<!-- badge -->{badge}"),
                             ("OASIS_Improved_UNet.ipynb", r'PROJECT = \\".*?\\"',
                              rf'PROJECT = \"https://github.com/{match[1]}\"')):
        texts[name], places = re.subn(mark, lambda _, text=text: text, texts[name])
        if places != 1:
            raise SystemExit(f"{name} has {places} places for {text[:20]}; expected one. Nothing was changed.")
    for name, text in texts.items():
        (root / name).write_text(text)


if __name__ == "__main__":
    write_address(sys.argv[1] if len(sys.argv) == 2 else "")
