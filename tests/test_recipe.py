import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.recipe import ENVIRONMENT, MACHINES, OPTIONS, SETS, Recipe, RecipeError, lacks

HERE = Path(__file__).parents[1]


def refused(*arguments, **named):
    """The sentences of the RecipeError that a choice raises."""
    with pytest.raises(RecipeError) as caught:
        Recipe.choose(*arguments, **named)
    return str(caught.value).split("\n")


def chosen(recipe):
    """{option: (value, who chose it)}, as the table has it."""
    return {name: (value, why) for name, value, why, _ in recipe.rows()}


def test_machine_then_data_set_then_reader_then_environment(monkeypatch):
    on_processor = chosen(Recipe.choose("oasis", "epochs=10 filters=32", data="x"))
    on_gpu = chosen(Recipe.choose("oasis", data="x", gpu=True))
    wanted = {"slices": ("all", "this data set"),
              "validation_slices": (str(MACHINES["processor"]["validation_slices"]), "this machine"), "epochs": ("10", "you"),
              "filters": ("32", "you"), "dropout": ("0.0", "default")}
    assert {name: on_processor[name] for name in wanted} == wanted
    assert {name: on_gpu[name] for name in ("validation_slices", "batch")} == {
        "validation_slices": ("all", "this machine"), "batch": (str(SETS["oasis"]["both"]["batch"]), "this data set")}
    monkeypatch.setenv(ENVIRONMENT, "epochs=1, slices=12")
    last = chosen(Recipe.choose("oasis", "epochs=10 filters=32", data="x"))
    assert [last[name] for name in ("epochs", "slices", "filters")] == [
        ("1", "environment"), ("12", "environment"), ("32", "you")]


def test_data_sets_have_what_suits_them_on_both_machines():
    augment = {name: [Recipe.choose(name, data="x" if "data" in own else "", gpu=gpu).augment for gpu in (False, True)]
               for name, own in SETS.items()}
    assert augment == {"practice": [0, 0], "varied": [0.7, 0.7], "oasis": [None, None], "volumes": [0, 0], "lgg": [0.7, 0.7],
                       "nuclei": [0.7, 0.7]}
    short, long = (Recipe.choose("oasis", data="x", gpu=gpu) for gpu in (False, True))
    assert [(one.epochs, one.batch, one.slices, one.mirrors) for one in (short, long)] == [(2, 4, None, False),
                                                                                           (6, 4, None, False)]
    assert (Recipe.choose("lgg", data="x").size, Recipe.choose("lgg", data="x", gpu=True).size) == (128, None)
    for name, own in SETS.items():
        assert not {*own.get("both", ()), *own.get("processor", ()), *own.get("GPU", ())} & {*lacks(name)}, name


def test_everything_wrong_is_said_at_once():
    assert refused("practice", "epoch=3 filters=0 batch=2.5 dropout=high size=100 network=u-net mirrors=maybe "
                   "seed=1 seed=2 people=none slices=-5 oversample=2 7 learning_rate=nan start=varid", data="x.zip") == [
        "There is no option 'epoch'. Did you mean 'epochs'?",
        "seed is given twice.",
        "OPTIONS: '7' is not like name=value, such as epochs=10.",
        "practice makes its own brains: leave DATA empty (it is 'x.zip'), or set DATASET to oasis.",
        "start is 'varid'; it must be synthetic, practice, varied, the folder of a finished run, or random.",
        "network is 'u-net'; it must be improved_unet or unet.",
        "filters is 0; it must be a whole number from 1 to 256.",
        "dropout is 'high'; it must be a number from 0 to 0.95.",
        "size is 100; it must be a whole number from 32 to 4096, a multiple of 16, or whole.",
        "slices is -5; it must be a whole number, 1 or more, or all.",
        "batch is '2.5'; it must be a whole number from 1 to 4096.",
        "learning_rate is nan; it must be a number from 1e-07 to 1.",
        "practice has no option oversample.",
        "mirrors is 'maybe'; it must be true or false."]


@pytest.mark.parametrize("dataset, options, data, sentence", [
    ("oasys", "", "x", "There is no data set 'oasys'. Did you mean 'oasis'? Choose one of: " + ", ".join(SETS) + "."),
    (None, "", "", "There is no data set None. Choose one of: " + ", ".join(SETS) + "."),
    ([1], "", "x", "There is no data set [1]. Choose one of: " + ", ".join(SETS) + "."),
    ("lgg", "", "", "lgg needs DATA: Kaggle's zip or folder kaggle_3m "
                    "(kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation)."),
    ("nuclei", "people=3", "x", "nuclei has no option people."),
    ("practice", "seed='1", "", "seed is \"'1\"; it must be a whole number from 0 to 2147483648."),
    ("practice", "epochs=none", "", "epochs is 'none'; it must be a whole number from 1 to 100000."),
    ("volumes", "start=oasis", "x",
     "start is 'oasis'; it must be synthetic, practice, varied, the folder of a finished run, or random.")])
def test_one_thing_wrong_is_one_sentence(dataset, options, data, sentence):
    assert refused(dataset, options, data) == [sentence]


def test_no_data_is_no_data_however_it_is_written():
    assert Recipe.choose("oasis", data='"C:/my slices.zip" ').data == "C:/my slices.zip"  # as Windows copies a path
    assert refused("oasis", data=None) == refused("oasis") == [f"oasis needs DATA: {SETS['oasis']['data']}."]
    assert Recipe.choose("practice", data=None).data == "" and Recipe.choose("oasis", data=HERE).data == str(HERE)


def test_what_the_environment_says_is_checked_too(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "slices=0 wide=3")
    assert [sentence.partition(";")[0] for sentence in refused("practice", "epochs=0")] == [
        f"There is no option 'wide'. The options are: {', '.join(OPTIONS)}.", "slices is 0", "epochs is 0"]


def test_the_gpu_is_asked_for_once_all_is_right():
    asked = []
    refused("practice", "epochs=0", gpu=lambda: asked.append(1))
    assert not asked
    assert Recipe.choose("practice", gpu=lambda: asked.append(1) or True).machine == "GPU" and asked == [1]


def test_what_is_left_open_has_a_word():
    recipe = Recipe.choose("volumes", "slices=all people=ALL size=whole start=random augment=none", data="x")
    assert [recipe.slices, recipe.people, recipe.size, recipe.start, recipe.augment] == [None] * 5
    words = {name: value for name, (value, _) in chosen(recipe).items()}
    assert [words[name] for name in ("slices", "people", "size", "start", "augment")] == [
        "all", "all", "whole", "random", "none"]
    written = " ".join(f"{name} = {words[name]}" for name in words)
    assert Recipe.choose("volumes", written, data="x") == recipe


def test_kinds_are_kept():
    recipe = Recipe.choose("practice", "dropout=0 mirrors=no epochs=3")
    assert [repr(recipe.dropout), repr(recipe.mirrors), repr(recipe.epochs)] == ["0.0", "False", "3"]
    assert repr(Recipe("practice", learning_rate=1).learning_rate) == "1.0"  # 1 and 1.0 are one run
    with pytest.raises(RecipeError, match="mirrors is 1; it must be true or false.\nnetworks is True; it must be a wh"):
        Recipe("practice", mirrors=1, networks=True)


def test_change():
    recipe = Recipe.choose("practice", "filters=8")
    other = recipe.change(epochs=2)
    assert (other.epochs, other.filters) == (2, 8) and recipe == Recipe.choose("practice", "filters=8") != other
    assert chosen(other)["epochs"] == ("2", "you") and chosen(recipe)["epochs"][1] == "this data set"
    with pytest.raises(RecipeError, match="'epoch'. Did you mean 'epochs'.\nThere is no option 'data'"):
        recipe.change(epoch=2, data="x")
    with pytest.raises(RecipeError, match="epochs is 0; it must be"):
        recipe.change(epochs=0)


def test_what_a_data_set_lacks_stays_at_its_default_however_it_is_given():
    for give in (lambda **options: Recipe("nuclei", **options), Recipe("nuclei").change,
                 lambda **options: Recipe.choose("nuclei", " ".join(f"{n}={v}" for n, v in options.items()), data="x")):
        assert give(people=None, oversample=4).oversample == 4
        with pytest.raises(RecipeError) as caught:
            give(people=2, start="varied")
        assert str(caught.value).split("\n") == [f"nuclei has no option {n}." for n in ("people", "start")]
    assert Recipe.choose("nuclei", "people=all start=random", data="x").plain().network == "unet"


def test_the_plain_network_beside_it():
    recipe = Recipe.choose("volumes", "networks=3 filters=8 epochs=2", data="x").change(dropout=0.3)
    changed = {name: (getattr(recipe, name), getattr(recipe.plain(), name)) for name in OPTIONS
               if getattr(recipe, name) != getattr(recipe.plain(), name)}
    assert changed == {"network": ("improved_unet", "unet"), "dropout": (0.3, 0), "learning_rate": (3e-3, 1e-3),
                       "start": ("varied", None), "networks": (3, 1)}


@pytest.mark.parametrize("options, start", [
    ("", ("synthetic", "this data set")), ("filters=16 network=improved_unet", ("synthetic", "this data set")),
    ("filters=8", ("random", "another network")), ("network=unet", ("random", "another network")),
    ("filters=8 start=synthetic", ("synthetic", "you")), ("start=random", ("random", "you"))])
def test_oasis_starts_from_the_network_that_comes_along_where_it_fits(options, start):
    recipe = Recipe.choose("oasis", options, data="x")
    assert chosen(recipe)["start"] == start and recipe.starting() is recipe.plain().start is None


def test_the_run_it_starts_from_has_its_network():
    recipe = Recipe.choose("volumes", "network=unet filters=8 dropout=0.25 seed=7 epochs=2", data="x", gpu=True)
    first = recipe.starting()
    assert first == Recipe.choose("varied", "network=unet filters=8 dropout=0.25 seed=7", gpu=True)
    assert first.starting() is None and recipe.change(start="runs/oasis-123456").starting() is None


def test_the_environment_shortens_the_run_it_starts_from_and_starts_no_other(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "start=varied networks=2 seed=5 epochs=1 slices=16")
    second = Recipe.choose("practice").change(seed=6, filters=8)
    first = second.starting()
    assert (first.dataset, first.epochs, first.slices, first.seed, first.filters) == ("varied", 1, 16, 6, 8)
    assert second.networks == 2 and first.networks == 1 and first.starting() is None


def test_what_decides_the_weights_is_no_matter_of_prediction():
    assert set(OPTIONS) - set(Recipe("practice").training) == {
        "people", "slices", "validation_slices", "test_slices", "mirrors", "context", "networks"}


def test_refusing_needs_neither_keras_nor_numpy():
    code = ("import sys; from helpers.recipe import Recipe, RecipeError\n"
            "try: Recipe.choose('oasis', 'epochs=0')\n"
            "except RecipeError as error: print(len(str(error).splitlines()), "
            "sorted({'keras', 'tensorflow', 'jax', 'torch', 'numpy', 'pandas'} & set(sys.modules)))")
    ran = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert ran.stdout == "2 []\n"


@pytest.mark.parametrize("words, environment, shown, said", [
    ("| head -n 1", "", "Recipe for practice on a processor\n", ""),
    ("oasys", "", "", refused("oasys")[0] + "\n"),
    ("", "epochs=0", "", "epochs is 0; it must be a whole number from 1 to 100000.\n")])
def test_the_command_ends_without_a_stack(words, environment, shown, said):
    ran = subprocess.run(f"{sys.executable} -u -m helpers.recipe {words}", shell=True, cwd=HERE, capture_output=True,
                         text=True, env=os.environ | {ENVIRONMENT: environment})
    assert (ran.stdout, ran.stderr) == (shown, said)


def test_a_notebook_shows_the_sentences_and_no_stack(tmp_path):
    code = "from helpers.recipe import Recipe; Recipe.choose('oasys')"
    ran = subprocess.run([sys.executable, "-m", "IPython", "--colors=NoColor", "--HistoryManager.enabled=False", "-c",
                          code], cwd=HERE, capture_output=True, text=True,
                         env={**os.environ, "IPYTHONDIR": str(tmp_path)})
    shown = ran.stdout.strip().rpartition("\a")[2]  # IPython 7 writes the terminal's title first
    assert shown == f"RecipeError: {refused('oasys')[0]}"


def test_both_tables_list_every_option_that_there_is():
    recipe = Recipe.choose("practice", "start=" + str(HERE))
    text, page = repr(recipe).splitlines(), recipe._repr_html_()
    assert text[0] == "Recipe for practice on a processor" and text[0] in page
    assert [line.split()[0] for line in text[1:]] == [name for name in OPTIONS if name not in lacks("practice")]
    assert page.count("<tr>") == len(text)
    for line, row in zip(text[1:], recipe.rows()):
        assert line.split() == " ".join(row).split()
        assert "".join(f'<td style="text-align:left">{cell}</td>' for cell in row) in page


def test_defaults_are_nowhere_else():
    # not seed: practice brains and figures have their own; nor oversample, of which 1 means none
    here = {*Recipe("practice").training, "batch_size"} - {"seed", "oversample", "start"}
    repeated = []
    for file in HERE.glob("helpers/**/*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, (ast.FunctionDef, ast.Lambda)):
                given = function.args
                some = given.posonlyargs + given.args
                pairs = [*zip(some[len(some) - len(given.defaults):], given.defaults),
                         *zip(given.kwonlyargs, given.kw_defaults)]
                repeated += [f"{file.name}: {one.arg}={ast.unparse(default)}" for one, default in pairs
                             if one.arg in here and default is not None and ast.unparse(default) != "None"]
    assert repeated == []
