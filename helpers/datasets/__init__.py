"""One module per source of data, each with `load(recipe)` -> Dataset of all slices; here the loading of any of them."""

import hashlib
import importlib
import json
import os
import time
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np

from helpers.data import PARTS, Box, DataError, Dataset, Split, Task, thin
from helpers.datasets.files import below, replace_whole

CACHE = Path("runs/cache")
MONTH = 30 * 24 * 3600  # seconds


def load(recipe):
    """The recipe's Dataset: read or made, checked, split and thinned. A second call reads `runs/cache`.

    Slices stay in their own frame. Raises DataError, naming the file, on anything that is not as it should be.
    """
    path = Path(recipe.data).expanduser() if recipe.data else None
    if path and not path.exists():
        raise DataError(f"Nothing is at {path} (looked from {Path.cwd().name}/). Is DATA spelled right, is Drive mounted?")
    key = recipe.dataset, recipe.seed, state_of(path), *map(recipe.taken, ("train", "validation", "test"))
    module = importlib.import_module(f"helpers.datasets.{recipe.dataset}")
    return replace(cached(key, lambda: thinned(module.load(recipe), recipe)), size=recipe.size)


def thinned(dataset, recipe):
    """A Dataset with as many people and slices as the recipe has; its box stays that of all."""
    if not any(split.labels.any() for split in dataset.splits):
        raise DataError(f"All masks of {dataset.task.title} are empty: nothing to learn. Are they the right files?")
    return Dataset(*(split.take(thin(split.subjects, *recipe.taken(split.name))) for split in dataset.splits),
                   dataset.box)


def state_of(path):
    """What changes when the files at a path do: name, size, times of each; and when the code that reads them does."""
    helpers = Path(__file__).parent.parent
    code = [file.read_bytes() for file in sorted(helpers.glob("datasets/*.[pj]*")) + [helpers / "data.py"]]
    files = sorted(filter(Path.is_file, [path, *below(path)] if path.is_dir() else [path])) if path else []
    stats = [(str(file), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for file in files for s in [file.stat()]]
    return hashlib.sha256(repr(stats).encode() + b"".join(code)).hexdigest()


def cached(key, make):
    """Return the Dataset that `make()` returns, from `runs/cache` if an earlier call with this `key` left it there.

    A file that does not read back is made again. Files that nobody read for a month go.
    """
    folder = Path(os.environ.get("OASIS_RUNS") or CACHE.parent).expanduser() / CACHE.name
    file = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npz"
    with suppress(Exception), np.load(file) as arrays:  # not there, or damaged: zip and numpy raise nearly anything
        dataset = from_arrays(arrays)
        with suppress(OSError):  # read-only
            file.touch()
        return dataset
    dataset = make()
    with suppress(OSError):  # a full or read-only disk: the next load is slow again, nothing else is lost
        folder.mkdir(parents=True, exist_ok=True)
        replace_whole(file, lambda part: np.savez(part, **to_arrays(dataset)))
        for old in (other for other in folder.glob("*.npz") if time.time() - other.stat().st_mtime > MONTH):
            old.unlink()
    return dataset


def to_arrays(dataset):
    """A Dataset as named arrays, for `numpy.savez`."""
    about = json.dumps([astuple(dataset.task), astuple(dataset.box), [split.whole for split in dataset.splits]])
    return {"about": about} | {f"{s.name} {part}": getattr(s, part) for s in dataset.splits for part in PARTS}


def from_arrays(arrays):
    """The Dataset that `to_arrays` took apart."""
    task, box, whole = json.loads(str(arrays["about"]))
    splits = [Split(name, **{part: arrays[f"{name} {part}"] for part in PARTS}, task=Task.of(task), whole=n)
              for name, n in zip(("train", "validation", "test"), whole)]
    return Dataset(*splits, Box(*box))
