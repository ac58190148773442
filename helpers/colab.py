"""What Colab needs beyond a plain Jupyter: a missing package, Google Drive, an archive copied near once."""

import filecmp
import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.recipe import UserError

MISSING = {"nilearn": "nilearn==0.13.1"}  # what Colab lacks, in the version that fits what it has
PACKAGES = ("numpy", "pandas", "scipy", "PIL", "nibabel", "nilearn", "matplotlib", "ipywidgets")
DRIVE = Path("/content/drive")
NEAR = Path("runs/data")  # copies of archives that lie on Drive


class SetUpError(UserError):
    """Something that the notebook needs is not there: the message says what to do."""


def set_up(here, *paths):
    """Install what is missing in Colab, mount Drive if a path lies on it, and return the paths, ready to use.

    Relative paths are meant from `here`, also after the project was fetched into another folder; an archive on Drive
    is copied to this machine, a folder there, other than the first path, where runs go, is said to be slow.
    SetUpError says what could not be had.
    """
    paths = [str(path or "") for path in paths]  # papermill makes numbers of what looks like one
    wanted = [pin for name, pin in MISSING.items() if importlib.util.find_spec(name) is None]
    if wanted and in_colab():
        install(wanted)
    check_packages()
    if any(path and Path(path).is_relative_to(DRIVE) for path in paths) and not (DRIVE / "MyDrive").exists():
        mount()
    for folder in (path for path in paths[1:] if path and Path(path).is_relative_to(DRIVE) and Path(path).is_dir()):
        print(f"{folder} is a folder on Drive, slow to read if it has thousands of files. A zip takes seconds.")
    moved = Path(here) != Path.cwd()
    return [str(local_copy(Path(here, Path(path).expanduser()) if moved else path)) if path else path for path in paths]


def in_colab():
    """True in a Colab notebook."""
    return "google.colab" in sys.modules


def install(pins):
    """Install packages by this Python's pip."""
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *pins], capture_output=True, text=True)
    if done.returncode:
        raise SetUpError(f"pip could not install {' '.join(pins)}: {done.stderr.strip()[-500:]}")
    importlib.invalidate_caches()


def check_packages(names=PACKAGES):
    """SetUpError where a package is missing, or does not fit the others."""
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise SetUpError(f"{error}. Install what the notebook needs: pip install -r requirements.txt") from None
        except (ImportError, ValueError, AttributeError) as error:  # numpy of another version than it was built for
            raise SetUpError(f"{name} does not fit its neighbours ({error}). Start a new environment or runtime.") from None


def mount():
    """Mount Google Drive; Colab asks for leave."""
    if not in_colab():
        raise SetUpError(f"{DRIVE} is Google Drive in Colab, and this is not Colab: give a path on this machine.")
    try:
        importlib.import_module("google.colab.drive").mount(str(DRIVE))
    except Exception as error:  # Colab raises ValueError, MessageError and others
        raise SetUpError(f"Google Drive could not be mounted ({error}). Allow it, or use the file pane.") from None


def local_copy(path, folder=None):
    """An archive that lies on Drive, copied to this machine once, whole; anything else as it is.

    Reading thousands of small files through Drive takes minutes, copying their zip seconds.
    """
    path, folder = Path(path), folder or NEAR
    if not (path.is_relative_to(DRIVE) and path.suffix.lower() == ".zip"):
        return path
    copy = folder / path.name
    try:
        if not (copy.exists() and filecmp.cmp(path, copy)):
            from helpers.datasets.files import replace_whole  # once packages are known to be there
            folder.mkdir(parents=True, exist_ok=True)
            replace_whole(copy, lambda part: shutil.copy2(path, part))
    except FileNotFoundError:
        raise SetUpError(f"Nothing is at {path}. Check its name in Drive; MyDrive is written in one word.") from None
    except OSError as error:
        raise SetUpError(f"{path.name} could not be copied ({error}). Run this again, or use the file pane.") from None
    return copy
