"""The network that comes with the project, made of a finished run: its weights rounded to float16, packed, with a card.

    python tests/benchmarks/pack.py RUN helpers/network

It opens as every run does: weights are float32 again, half of whose digits are 0 and take no room.
"""

import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from helpers import export  # noqa: E402
from helpers.backend import keras  # noqa: E402
from helpers.datasets.files import digest  # noqa: E402
from helpers.run import NETWORK, STATE, Run  # noqa: E402

NEWER = re.compile(rb', "(input|output)_axes": null')  # of an initializer; Keras 3.13 knows no such argument
RESULTS = Path(__file__).with_name("oasis.csv")
ON_OASIS = """
- **On OASIS's 544 test slices**, of which it saw none: {} (hard, pooled), before weights were rounded to float16. How practice brains look was tuned to statistics of OASIS's training people, the thresholds of their labels on its validation people.
"""


def on_oasis():
    """What the network of synthetic brains alone has reached on OASIS's test, {label: Dice as text}."""
    rows = pd.read_csv(RESULTS, dtype=str)
    [row] = rows[rows["network"].str.contains("practice brains")].iloc[:, 2:].to_dict("records")
    return row


def card(run):
    """The run's model card, with what its network has reached on OASIS's test."""
    return export.card(run) + ON_OASIS.format(", ".join(f"{label} {dice}" for label, dice in on_oasis().items()))


def pack(run, folder):
    """Write a run's state, its rounded network and its model card into a folder; the bytes of the network."""
    folder.mkdir(parents=True, exist_ok=True)
    network, loose = keras.saving.load_model(run.folder / NETWORK, compile=False), folder / f"loose-{NETWORK}"
    network.set_weights([weight.astype(np.float16).astype(np.float32) for weight in network.get_weights()])
    network.save(loose)
    with zipfile.ZipFile(loose) as old, zipfile.ZipFile(folder / NETWORK, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for name in old.namelist():
            new.writestr(name, NEWER.sub(b"", old.read(name)) if name == "config.json" else old.read(name))
    loose.unlink()
    state = run.state | {"files": {NETWORK: digest((folder / NETWORK).read_bytes())}}
    (folder / STATE).write_text(json.dumps(state, indent=1) + "\n")
    (folder / export.CARD.name).write_text(card(run))
    return (folder / NETWORK).stat().st_size


if __name__ == "__main__":
    print(f"{pack(Run.open(sys.argv[1]), Path(sys.argv[2])):,} bytes")
