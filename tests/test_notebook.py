"""The committed notebook as a reader meets it on GitHub."""

import ast
import json
import os
import re
from pathlib import Path

import pytest

from helpers import backend, data

FILE = Path(__file__).parent.parent / "OASIS_Improved_UNet.ipynb"
BOOK = json.loads(FILE.read_text())
CODE = [cell for cell in BOOK["cells"] if cell["cell_type"] == "code"]


def output(cell):
    return json.dumps(cell["outputs"])


def test_every_cell_was_executed_in_order_without_error_or_noise():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = {(o["output_type"], o.get("name")) for cell in CODE for o in cell["outputs"]}
    assert kinds <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}


def test_no_machine_shows_through():
    assert not re.search(r"/(root|home|tmp|work|Users)/", FILE.read_text())
    assert not {"widgets", "papermill"} & BOOK["metadata"].keys()
    assert not any("execution" in cell["metadata"] for cell in CODE)  # times of day
    assert FILE.stat().st_size < 5_000_000


def test_outputs_are_called_synthetic_or_ibsr_and_never_oasis():
    tables = [cell for cell in CODE if "text/html" in output(cell) and "Dice" in output(cell)]
    real = [cell for cell in tables if "IBSR (real brains)" in output(cell)]  # numbers, of one benchmark, no pictures
    assert [cell["source"] for cell in real] == [['evaluate.ingredients(real, "validation")']]
    assert all("practice brains (synthetic)" in output(cell) for cell in tables if cell not in real)
    assert not any("OASIS" in output(cell) for cell in CODE)


def test_verdict_in_the_outputs():
    assert any("PASS: every label reaches Dice 0.9" in output(cell) for cell in CODE)


def test_cells_are_short_and_parameters_tagged():
    assert max(len(cell["source"]) for cell in CODE) <= 25
    [parameters] = [c for c in CODE if "parameters" in c["metadata"].get("tags", [])]
    assert "DATASET" in "".join(parameters["source"])
    checked = [c for c in CODE if "nbval-check-output" in c["metadata"].get("tags", [])]
    assert len(checked) >= 6


def settled(**given):
    """The notebook's variables after its settings, some of them given, are checked and filled in."""
    variables = {"os": os, "Path": Path, "backend": backend, "data": data}
    for tag in ("parameters", "settings"):
        if tag == "settings":
            variables.update(given)
        for cell in CODE:
            if tag in cell["metadata"].get("tags", []):
                exec("".join(cell["source"]), variables)
    return variables


@pytest.fixture(params=[None, "some GPU"])
def machine(request, tmp_path, monkeypatch):
    """A machine without a GPU, then one with, on which the notebook is run in full; the GPU's name."""
    monkeypatch.setattr(backend, "gpu", lambda: (request.param, (0, 0)))
    monkeypatch.delenv("QUICK", raising=False)
    monkeypatch.chdir(tmp_path)
    return request.param


@pytest.mark.parametrize("dataset, on_cpu, on_gpu, recipe", [
    ("practice", "128px-640slices-8epochs-batch8", "256px-allslices-30epochs-batch16", "lr0.003 augment0.0-dropout0.1"),
    ("varied", "128px-640slices-8epochs-batch8", "256px-allslices-30epochs-batch16", "lr0.003 augment0.7-dropout0.1"),
    ("oasis", "128px-640slices-8epochs-batch8", "256px-allslices-30epochs-batch16", "lr0.003 augment0.0-dropout0.0"),
    ("volumes", "128px-640slices-24epochs-batch8", "256px-allslices-24epochs-batch8", "lr0.003 augment0.0-dropout0.0"),
    ("lgg", "128px-640slices-24epochs-batch8", "256px-allslices-24epochs-batch8", "lr0.003 augment0.7-dropout0.0"),
    ("nuclei", "128px-640slices-37epochs-batch4", "128px-allslices-37epochs-batch4",
     "lr0.002 augment0.7-dropout0.0 oversample3"),
])
def test_what_is_left_automatic_is_the_recipe_of_the_data_set(dataset, on_cpu, on_gpu, recipe, machine):
    run = settled(DATASET=dataset)["RUN"].name
    assert run.startswith(f"{dataset}-{on_gpu if machine else on_cpu}-")
    assert all(part in run for part in recipe.split()) and ("oversample" in run) == ("oversample" in recipe)


def test_what_is_set_is_kept_even_if_it_is_zero(machine):
    run = settled(DATASET="nuclei", AUGMENT=0, DROPOUT=0.2, OVERSAMPLE=1, LEARNING_RATE=0.01)["RUN"].name
    assert run.endswith("lr0.01-filters16-augment0.0-dropout0.2-seed0")
    assert settled(DATASET="practice", DROPOUT=0)["RUN"].name.endswith("dropout0.0-seed0")


def test_every_start_in_the_readme_is_the_run_of_a_command_before_it_in_its_block(machine):
    readme = (FILE.parent / "README.md").read_text()
    everywhere, starts = set(), []
    for block in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL):
        runs = set()
        for command in re.findall(r"papermill OASIS_Improved_UNet\.ipynb \S+ (-p .+)$", block, re.MULTILINE):
            given = {name: ast.literal_eval(value) if re.fullmatch(r"True|False|[\d.]+", value) else value
                     for name, value in re.findall(r"-p (\w+) (\S+)", command) if name != "SCAN"}
            if "START" in given:
                starts.append(given["START"])
                assert starts[-1] in runs
                Path(starts[-1]).mkdir(parents=True, exist_ok=True)
            runs.add(str(settled(**given)["RUN"]))
        everywhere |= runs
    assert len(starts) >= 4
    assert set(re.findall(r"--start (\S+)", readme)) <= everywhere


@pytest.mark.parametrize("given, complaint", [
    ({"PLAIN": "false"}, "PLAIN is 'false'; it must be True or False"),
    ({"MIRROR": 1}, "MIRROR is 1; it must be True or False"),
    ({"ENSEMBLE": 2.0}, "ENSEMBLE is 2.0; it must be a whole number, 1 or more"),
    ({"SIZE": "128"}, "SIZE is '128'; it must be a whole number, 0 or more"),
    ({"FILTERS": 0, "EPOCHS": 2.5}, "EPOCHS is 2.5; .*FILTERS is 0; it must be a whole number, 1 or more"),
    ({"DROPOUT": 1.5}, "DROPOUT is 1.5; it must be a number from 0 to 0.95, or -1 for automatic"),
    ({"AUGMENT": "no"}, "AUGMENT is 'no'; it must be a number from 0 to 1, or -1 for automatic"),
    ({"AUGMENT": -0.3}, "AUGMENT is -0.3; it must be"),
    ({"LEARNING_RATE": 1e-9, "OVERSAMPLE": -1}, "OVERSAMPLE is -1; .*LEARNING_RATE is 1e-09; .* or 0 for automatic"),
    ({"SIZE": 100}, "SIZE is 100; it must be a multiple of 16"),
    ({"SCAN": "."}, "SCAN is the folder ."),
    ({"DATASET": "lgg", "SCAN": "here.NII"}, "Nothing is at here.NII"),
])
def test_wrong_settings_are_refused_before_anything_is_done(given, complaint):
    with pytest.raises((SystemExit, data.DataError), match=complaint):
        settled(**given)


def test_settings_may_be_run_again():
    variables = settled()
    cells = ["".join(cell["source"]) for cell in CODE if "settings" in cell["metadata"].get("tags", [])]
    run = variables["RUN"]
    variables["LIMIT"] = None  # as a GPU leaves it
    for cell in cells:
        exec(cell, variables)
    assert variables["RUN"] == run


def test_results_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RUNS", str(tmp_path / "file"))
    with pytest.raises(data.DataError, match="RUNS is .*file, and that folder cannot be made"):
        settled()


def test_a_start_is_looked_for_and_names_the_run(tmp_path):
    settings = "\n".join("".join(c["source"]) for c in CODE if "settings" in c["metadata"].get("tags", []))
    variables = settled()
    alone = variables["RUN"].name
    plain = variables["PLAIN_RUN"]
    variables["START"] = str(tmp_path / "varied-128px-640slices-seed0/")
    with pytest.raises(data.DataError, match="check TRY_ON, SCAN and START"):
        exec(settings, variables)
    Path(variables["START"]).mkdir()
    exec(settings, variables)
    assert variables["RUN"].name == f"{alone}-from-varied-128px"
    assert variables["PLAIN_RUN"] == plain  # it starts from random weights all the same
    variables["RUN"].mkdir(parents=True)
    Path(variables["START"]).rmdir()
    exec(settings, variables)  # a run that exists is read back without it


@pytest.mark.parametrize("module", ["data", "preprocess", "model", "train", "evaluate", "show"])
def test_every_module_is_used(module):
    assert any(f"{module}." in "".join(cell["source"]) for cell in CODE)
