"""Recipe: every option of a run, checked whole before anything is loaded. Imports neither Keras nor numpy.

`python -m helpers.recipe` lists the options and what each data set is trained with.
"""

import difflib
import html
import os
import re
import signal
import sys
from dataclasses import dataclass, field, fields, replace

MULTIPLE = 16  # networks halve a slice four times
ENVIRONMENT = "OASIS_OPTIONS"  # options read last; tests run the notebook briefly by it


class UserError(Exception):
    """Something given is wrong. The message says what and what to do; a notebook shows it without a stack."""

    def _render_traceback_(self):
        return [f"{type(self).__name__}: {self}"]


class RecipeError(UserError):
    """Options that cannot be: the message has one sentence for each."""


def option(default, meaning, kind, least=None, most=None, **more):
    """A field of Recipe: its default, its meaning with unit, and what it may be.

    `more`: choices; `none`, what None is called; `stage`, what it decides; `multiple`, of what it must be one.
    """
    more = dict(default=default, choices=(), none=None, stage="training", multiple=1) | more
    return field(default=default, metadata=dict(meaning=meaning, kind=kind, least=least, most=most, **more))


@dataclass(frozen=True, repr=False)
class Recipe:
    """What to train, on what, how, and how to predict with it; RecipeError names every wrong option at once."""

    dataset: str
    data: str = ""
    machine: str = "processor"  # or GPU
    network: str = option("improved_unet", "which network", str, choices=("improved_unet", "unet"))
    filters: int = option(16, "feature maps at full resolution, doubled at each level down", int, 1, 256)
    dropout: float = option(0.0, "share of feature maps dropped in context modules", float, 0, 0.95)
    size: int = option(None, "longer side, in pixels, of what the network sees; it shrinks slices, never the truth "
                       "that is graded", int, 32, 4096, none="whole", multiple=MULTIPLE)
    people: int = option(None, "people to learn from", int, 1, none="all", stage="data")
    slices: int = option(None, "training slices, even over people and positions", int, 1, none="all", stage="data")
    validation_slices: int = option(None, "validation slices, spread likewise", int, 1, none="all", stage="data")
    test_slices: int = option(None, "test slices; fewer than all get no grade", int, 1, none="all", stage="data")
    epochs: int = option(8, "passes through the training slices", int, 1, 100_000)
    batch: int = option(8, "slices in one step", int, 1, 4096)
    learning_rate: float = option(3e-3, "highest learning rate, after the warm-up", float, 1e-7, 1)
    weight_decay: float = option(1e-4, "weight decay of AdamW", float, 0, 1)
    augment: float = option(0.0, "share of training slices that are also rotated, scaled and shifted (all are mirrored "
                            "and, except OASIS, change their greys); none: no augmentation at all", float, 0, 1, none="none")
    oversample: int = option(1, "how often an epoch shows each picture of the rarer background", int, 1, 100)
    loss: str = option("dice+cross_entropy", "what training minimises", str,
                       choices=("dice+cross_entropy", "dice", "cross_entropy"))
    start: str = option(None, "first weights: synthetic (the network that comes along), varied (practice brains that differ "
                        "much, trained first) or the folder of a finished run", str, none="random")
    seed: int = option(0, "fixes everything random", int, 0, 2**31)
    mirrors: bool = option(True, "average the prediction with those of mirror images", bool, stage="prediction")
    context: str = option(None, "what is known beside the slice: mask, where all training people have background at its "
                          "position, and where none; neighbours, what the slices before and after probably are", str,
                          none="none", choices=("mask", "neighbours", "mask+neighbours"), stage="prediction")
    devices: int = option(1, "devices that share every batch", int, 1, 4096)
    networks: int = option(1, "networks of successive seeds that are averaged", int, 1, 100, stage="prediction")
    reasons: dict = field(default_factory=dict, compare=False)  # option -> who chose its value

    @classmethod
    def choose(cls, dataset, options="", data="", gpu=False):
        """The recipe that suits this machine, then this data set, then `options`, a text such as "epochs=10 seed=1".

        `gpu` says whether there is one, or is a function that does, called once everything else is right.
        """
        data = str(data or "").strip().strip("\"'")  # as Windows copies a path
        reader, wrong = parse(options)
        environment, more = parse(os.environ.get(ENVIRONMENT, ""))
        given = reader | environment
        refuse([*wrong, *more, *misplaced(dataset, data, given.get("start")),
                *(said for name in OPTIONS if name in given and (said := complaint(dataset, name, given[name])))])
        machine = "GPU" if (gpu() if callable(gpu) else gpu) else "processor"
        values, reasons = {}, {}
        own = SETS[dataset].get("both", {}) | SETS[dataset].get(machine, {})
        for reason, layer in (("this machine", MACHINES[machine]), ("this data set", own), ("you", reader),
                              ("environment", environment)):
            values |= layer
            reasons |= dict.fromkeys(layer, reason)
        if own.get("start") == "synthetic" and reasons["start"] == "this data set" and values | SHAPE != SHAPE | values:
            values["start"], reasons["start"] = None, "another network"
        return cls(dataset, data, machine, **values, reasons=reasons)

    def __post_init__(self):
        refuse([said for name in OPTIONS if (said := complaint(self.dataset, name, getattr(self, name)))])
        for name, rule in OPTIONS.items():  # 1 for 1.0 is another text, and another run's name
            if rule["kind"] is float and getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))

    def change(self, **options):
        """The same recipe with other `options`."""
        refuse([unknown_option(name) for name in options if name not in OPTIONS])
        return replace(self, **options, reasons=self.reasons | dict.fromkeys(options, "you"))

    def plain(self):
        """The recipe of the plain U-Net beside it: slower steps, as is usual without normalisation, random weights."""
        return self.change(network="unet", learning_rate=1e-3, dropout=0.0, start=None, networks=1)

    def starting(self):
        """The recipe of the run that `start` names, with this one's network; None where it names none."""
        if self.start not in SETS:
            return None
        shape = {name: getattr(self, name) for name in ("network", "filters", "dropout", "devices", "seed")}
        return Recipe.choose(self.start, gpu=self.machine == "GPU").change(**shape, start=None, networks=1)

    @property
    def training(self):
        """The options that decide the weights, besides the data."""
        return {name: getattr(self, name) for name, rule in OPTIONS.items() if rule["stage"] == "training"}

    def taken(self, split):
        """How many slices of how many people of a split are taken; None: all."""
        return {"train": (self.slices, self.people), "validation": (self.validation_slices, None),
                "test": (self.test_slices, None)}[split]

    def rows(self):
        """One (option, value, who chose it, meaning) for each option that its data set has."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return [(name, rule["none"] if values[name] is None else str(values[name]), self.reasons.get(name, "default"),
                 rule["meaning"]) for name, rule in OPTIONS.items() if name not in lacks(self.dataset)]

    def __repr__(self):
        rows = ("{:17} {:19} {:14} {}".format(*row) for row in self.rows())
        return "\n".join([f"Recipe for {self.dataset} on a {self.machine}", *rows])

    def _repr_html_(self):
        rows = [["th", "option", "value", "chosen by", "meaning"], *(["td", *row] for row in self.rows())]
        cells = ["".join(f'<{tag} style="text-align:left">{html.escape(cell)}</{tag}>' for cell in row) for tag, *row in rows]
        return (f"<p><b>Recipe for {self.dataset} on a {self.machine}</b></p><table><tr>{'</tr><tr>'.join(cells)}</tr>"
                "</table>")


OPTIONS = {spec.name: spec.metadata for spec in fields(Recipe) if spec.metadata}
SHAPE = {name: OPTIONS[name]["default"] for name in ("network", "filters")}  # of the network that comes along
MACHINES = {"processor": dict(slices=640, validation_slices=280, epochs=8, batch=8),
            "GPU": dict(slices=None, validation_slices=None, epochs=30, batch=16)}

# What each data set is trained with (both machines, or one), which options it lacks unless it has what brains have, and
# what DATA must be.
SETS = {
    "practice": dict(both=dict(dropout=0.1, slices=1280), processor=dict(slices=320, validation_slices=64, epochs=4, batch=4)),
    "varied": dict(both=dict(dropout=0.1, augment=0.7, slices=1280), processor=dict(slices=400, validation_slices=96, epochs=8)),
    "oasis": dict(both=dict(slices=None, batch=4, augment=None, mirrors=False, start="synthetic"),
                  processor=dict(epochs=2), GPU=dict(epochs=6),
                  lacks=("oversample",), data="the course's slices (keras_png_slices_data.zip, or its folder), or unpacked discs"),
    "volumes": dict(both=dict(epochs=24, batch=8, start="varied"), data="a folder of NAME.nii.gz with NAME_seg.nii.gz"),
    "lgg": dict(both=dict(epochs=24, batch=8, augment=0.7), processor=dict(size=128),
                lacks=("oversample", "start", "context"),
                data="Kaggle's zip or folder kaggle_3m (kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation)"),
    "nuclei": dict(both=dict(epochs=37, batch=4, learning_rate=2e-3, augment=0.7, oversample=3),
                   lacks=("people", "start", "context"),
                   data="the folder or zip of stage1_train (bbbc.broadinstitute.org/BBBC038)"),
}


def refuse(sentences):
    """RecipeError, if there are any sentences on what is wrong."""
    if sentences:
        raise RecipeError("\n".join(sentences))


def lacks(dataset):
    """The options that mean nothing for a data set; brains are alike, and come in many pieces."""
    return SETS.get(str(dataset), {}).get("lacks", ("oversample", "context"))


def nearest(word, words):
    """A question that offers the nearest of some words, or nothing."""
    found = difflib.get_close_matches(str(word), list(words), 1)
    return f" Did you mean {found[0]!r}?" if found else ""


def unknown_option(name):
    """A sentence on an option that is none."""
    return f"There is no option {name!r}.{nearest(name, OPTIONS) or ' The options are: ' + ', '.join(OPTIONS) + '.'}"


def parse(text):
    """{option: value} of a text such as "epochs=10 filters=32", and a sentence for everything in it that is none."""
    found, wrong = {}, []
    for word in re.sub(r"\s*=\s*", "=", str(text or "").replace(",", " ")).split():
        name, equals, value = word.partition("=")
        if not equals:
            wrong.append(f"OPTIONS: {word!r} is not like name=value, such as epochs=10.")
        elif name not in OPTIONS:
            wrong.append(unknown_option(name))
        elif name in found:
            wrong.append(f"{name} is given twice.")
        else:
            found[name] = to_value(name, value)
    return found, wrong


def to_value(name, text):
    """A text as the kind of value an option has; as it is where it cannot be one, for the check to name."""
    kind, none = OPTIONS[name]["kind"], OPTIONS[name]["none"]
    if none and text.lower() in ("none", none):
        return None
    try:
        return {"true": True, "yes": True, "false": False, "no": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        return text


def complaint(dataset, name, value):
    """A sentence on what is wrong with an option's value; None if nothing is."""
    rule = OPTIONS[name]
    kind, least, most, choices = rule["kind"], rule["least"], rule["most"], rule["choices"]
    right = isinstance(value, (int, float) if kind is float else kind) and (kind is bool) == isinstance(value, bool)
    if name in lacks(dataset):
        return None if value == rule["default"] else f"{dataset} has no option {name}."
    if value is None and rule["none"] or right and (least is None or value >= least) and (
            most is None or value <= most) and value in (choices or [value]) and (
            rule["multiple"] == 1 or value % rule["multiple"] == 0):
        return None
    what = " or ".join(choices) or {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    what += f" from {least} to {most}" if most is not None else f", {least} or more" if least is not None else ""
    what += f", a multiple of {rule['multiple']}" if rule["multiple"] > 1 else ""
    return f"{name} is {value!r}; it must be {what}{', or ' + rule['none'] if rule['none'] else ''}."


def misplaced(dataset, data, start):
    """Sentences on a data set that is none, DATA that it needs or does not take, and a start that is not there."""
    if dataset not in list(SETS):
        return [f"There is no data set {dataset!r}.{nearest(dataset, SETS)} Choose one of: {', '.join(SETS)}."]
    wrong, needs, own = [], SETS[dataset].get("data"), ["synthetic", *(name for name in SETS if "data" not in SETS[name])]
    if needs and not data:
        wrong.append(f"{dataset} needs DATA: {needs}.")
    if data and not needs:
        wrong.append(f"{dataset} makes its own brains: leave DATA empty (it is {data!r}), or set DATASET to oasis.")
    if start is not None and start not in own and not os.path.isdir(os.path.expanduser(start)):
        wrong.append(f"start is {start!r}; it must be {', '.join(own)}, the folder of a finished run, or random.")
    return wrong


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    for name in sys.argv[1:] or SETS:
        for machine in MACHINES:
            try:
                print(Recipe.choose(name, data="x" if "data" in SETS.get(name, {}) else "", gpu=machine == "GPU"), "\n")
            except RecipeError as error:
                sys.exit(str(error))
