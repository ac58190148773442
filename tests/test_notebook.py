"""The committed notebook as a reader meets it on GitHub, its pictures, and the commands that run it."""

import json
import re
import shlex
from pathlib import Path

import pytest

from helpers.recipe import Recipe

ROOT = Path(__file__).parent.parent
FILE = ROOT / "OASIS_Improved_UNet.ipynb"
BOOK = json.loads(FILE.read_text())
CODE = [cell for cell in BOOK["cells"] if cell["cell_type"] == "code"]
README, RESULTS = ((ROOT / name).read_text() for name in ("README.md", "tests/benchmarks/RESULTS.md"))
SYNTHETIC = "practice brains (synthetic)"
PARAMETERS = ("DATASET", "DATA", "OPTIONS", "SCAN", "RUNS", "PROJECT")


def source(cell):
    return "".join(cell["source"])


def tagged(tag):
    return [cell for cell in CODE if tag in cell["metadata"].get("tags", [])]


def shown(kind):
    """(source of the cell, content, metadata) of every output of a kind."""
    return [(source(cell), "".join(out["data"][kind]), out["metadata"].get(kind, {}))
            for cell in CODE for out in cell["outputs"] if kind in out.get("data", {})]


def test_every_cell_was_executed_in_order_without_error_or_noise():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = {(out["output_type"], out.get("name")) for cell in CODE for out in cell["outputs"]}
    assert kinds == {("stream", "stdout"), ("display_data", None), ("execute_result", None)}


def test_no_machine_shows_through():
    assert not re.search(r"/(root|home|tmp|work|Users)/", FILE.read_text())
    assert not {"widgets", "papermill"} & BOOK["metadata"].keys()
    assert {key for cell in BOOK["cells"] for key in cell["metadata"]} <= {"tags", "cellView"}  # no times of day
    assert FILE.stat().st_size < 5_000_000


def test_tags_are_there():
    assert [len(tagged(tag)) for tag in ("parameters", "project")] == [1, 1]
    assert [source(cell).split(" = ")[0] for cell in tagged("nbval-check-output")] == ["truth"]  # Dice by hand


def test_tables_of_practice_brains_say_so():
    captions = {cell: re.findall(r"<p><b>(.*?)</b></p>", table) for cell, table, _ in shown("text/html")
                if "show.source" not in cell}
    bare = {cell for cell, found in captions.items() if not found}
    assert bare == {"model.blocks(network)"}  # of no data
    said = [caption for found in captions.values() for caption in found]
    assert len(said) >= 10 and [caption for caption in said if SYNTHETIC not in caption] == [
        "Recipe for practice on a processor",
        "OASIS, the course&#x27;s 544 test slices: Dice, by how it is averaged (soft: without context)"]


def test_pictures_of_practice_brains_say_so_in_their_alternative_text():
    pictures = shown("image/png")
    assert len(pictures) >= 12 and any(cell.startswith("play.browser") for cell, _, _ in pictures)
    for cell, _, metadata in pictures:
        assert len(metadata["alt"]) > 40, cell
        of_no_slice = "show.network(network)" in cell or "images/ingredients.png" in cell
        assert of_no_slice or SYNTHETIC in metadata["alt"]


def test_the_verdict_is_a_pass():
    [verdict] = [table for cell, table, _ in shown("text/html") if "evaluate.verdict" in cell]
    assert f"PASS: every label reaches Dice 0.9 on {SYNTHETIC}, test" in verdict


def test_every_picture_shown_is_there_has_alternative_text_and_no_other_is():
    text = README + "".join(source(cell) for cell in BOOK["cells"] if cell["cell_type"] == "markdown")
    pictures = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", text)
    shown = re.compile(r'Image\("(.+?)", metadata={"alt": "(.+?)"}\)')
    pictures += [(alt, file) for cell in BOOK["cells"] for file, alt in shown.findall(source(cell))]
    assert all(len(alt) > 10 for alt, _ in pictures)
    ours = {file for _, file in pictures if not file.startswith("https://")}
    assert ours == {f"images/{file.name}" for file in (ROOT / "images").iterdir()}


def commands():
    """{parameter: value} of every command in README and RESULTS.md that runs the notebook; there, P stands for it."""
    block = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
    for page in (README, RESULTS):
        page = re.sub(r"\\\n\s*", "", page)
        for line in "\n".join(block.findall(page) + re.findall(r"`([^`\n]+)`", block.sub("", page))).splitlines():
            line = re.sub(r'.*--wrap="(.*)"', r"\1", line)
            if re.match(r"P( |$)|\S*papermill OASIS", line):
                given = shlex.split(line)[1 if line.startswith("P") else 3:]
                assert given[::3] == ["-p"] * (len(given) // 3), line
                yield dict(zip(given[1::3], given[2::3], strict=True))


COMMANDS = list(commands())


def test_commands_are_found():
    oasis = {"DATASET": "oasis", "DATA": "keras_png_slices_data.zip"}
    assert COMMANDS[0] == {} and COMMANDS[1].items() >= oasis.items() and "OPTIONS" in COMMANDS[1]
    assert {"DATASET": "nuclei", "DATA": "stage1_train.zip"} in COMMANDS[2:]  # RESULTS.md's


@pytest.mark.parametrize("given", COMMANDS, ids=str)
def test_every_command_gives_parameters_and_options_that_are(given):
    assert given.keys() <= set(PARAMETERS)
    options = given.get("OPTIONS", "")
    recipe = Recipe.choose(given.get("DATASET", "practice"), options, data=given.get("DATA", ""))
    chosen = {name for name, why in recipe.reasons.items() if why == "you"}
    assert chosen == set(re.findall(r"(\w+)=", options))
