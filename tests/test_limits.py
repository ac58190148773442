"""What must not grow again: the notebook, README, RESULTS.md and helpers/ are held to counts."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CELLS = json.loads((ROOT / "OASIS_Improved_UNet.ipynb").read_text())["cells"]
TEXT, CODE = ([cell | {"source": "".join(cell["source"])} for cell in CELLS if cell["cell_type"] == kind]
              for kind in ("markdown", "code"))
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
LINK = re.compile(r"!?\[((?:!\[[^]]*\]\([^)]*\)|[^]])*)\]\([^)]*\)")
MODULES = {str(file.relative_to(ROOT)): file.read_text() for file in sorted((ROOT / "helpers").rglob("*.py"))}
DEFINED = [(f"{name}:{node.lineno} {node.name}", node) for name, code in MODULES.items()
           for node in ast.walk(ast.parse(code)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
FUNCTIONS = [(where, node) for where, node in DEFINED if isinstance(node, ast.FunctionDef)]
WORKED = {"0.75", "0.857", "0.941", "0.99", "0.80", "0.885"}  # in exercises, by hand
PICTURE = 4  # code cells before the first picture: parameters, project, imports and recipe, load


def test_the_notebook_is_short():
    assert len(CELLS) <= 70
    assert sum(len(cell["source"].split()) for cell in TEXT) <= 2500
    assert [cell["source"] for cell in CODE if len(re.findall(r"^.*\S", cell["source"], re.MULTILINE)) > 18] == []


def test_it_has_six_parameters():
    [parameters] = [cell for cell in CODE if "parameters" in cell["metadata"].get("tags", [])]
    assert [line.targets[0].id for line in ast.parse(parameters["source"]).body] == [
        "DATASET", "DATA", "OPTIONS", "SCAN", "RUNS", "PROJECT"]


def test_a_picture_comes_soon():
    executed = any(cell["outputs"] for cell in CODE)
    pictures = [number for number, cell in enumerate(CODE) if (
        any("image/png" in out.get("data", {}) for out in cell["outputs"]) if executed
        else cell["source"].startswith("show."))]
    assert pictures[0] <= PICTURE


def test_numbers_in_the_notebook_are_printed_not_typed():
    for cell in TEXT:
        typed = set(re.findall(r"(?<![\d.])\d?\.\d+", LINK.sub(r"\1", cell["source"])))
        assert typed <= {"0.9"} | (WORKED if "**Exercise.**" in cell["source"] else set()), cell["source"]


def prose(page):
    """A page's paragraphs and list items, without code blocks, tables, headings, pictures and lists of links."""
    lines = [line for line in BLOCK.sub("", page).splitlines() if not re.match(r"\||#|!\[|\[!\[|- .*\]\(http", line)]
    text = LINK.sub(r"\1", re.sub(r"`[^`]+`", "code", "\n".join(lines)))
    return [part.replace("\n", " ") for part in re.split(r"\n\s*\n|\n(?=- |\d+\. )", text) if part.strip()]


def test_the_readme_is_two_pages():
    assert len(README.split()) <= 1500
    bare = re.sub(r"<[^>]+>", "", LINK.sub(r"\1", BLOCK.sub("", README)))
    assert len(re.findall(r"(?<![\w.])[.]?\d[\d,]*(?:\.\d+)?", bare)) <= 120
    long = [sentence for part in prose(README) for sentence in re.split(r"(?<=[.!?])[*)]* ", part)
            if len(sentence.split()) > 25]
    assert not long
    assert [line for code in BLOCK.findall(README) for line in code.splitlines() if len(line) > 100] == []


def test_results_are_a_table_not_a_diary():
    assert len((ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text().splitlines()) <= 200


def lines_of_code(code):
    """Lines of a module that are neither blank nor comment nor docstring."""
    documented = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            documented.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.strip()) and not line.strip().startswith("#") and number not in documented
               for number, line in enumerate(code.splitlines(), start=1))


def test_lines_of_code_by_hand():
    code = '"""A module."""\n\n# why\nx = 1  # what\n\n\ndef f():\n    """Two\n    lines."""\n    return x\n'
    assert lines_of_code(code) == 3


def test_helpers_are_small():
    assert sum(map(lines_of_code, MODULES.values())) <= 2540


def test_functions_are_short_and_take_few_arguments():
    assert [where for where, node in FUNCTIONS if node.end_lineno - node.lineno + 1 > 45] == []
    arguments = {where: [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs] for where, node in FUNCTIONS}
    assert [where for where, names in arguments.items() if len(names) > 8] == []


def test_everything_public_says_what_it_is():
    assert [name for name, code in MODULES.items() if not ast.get_docstring(ast.parse(code))] == []
    assert [where for where, node in DEFINED if not node.name.startswith("_") and not ast.get_docstring(node)] == []


@pytest.mark.parametrize("page, expected", [
    ("One two.\nThree.\n\n| table |\n\n```bash\nz\n```\n- [a](http://b)\n- x `y z`.\n",
     ["One two. Three.", "- x code."]),
    ("# Head\n[see](b.md) it.", ["see it."])])
def test_prose_is_what_one_reads(page, expected):
    assert [part.strip() for part in prose(page)] == expected
