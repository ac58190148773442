"""Every figure. Each function returns a Picture: a figure with alternative text, which a notebook shows as PNG."""

import inspect
from itertools import chain

import matplotlib.pyplot as plt
import numpy as np
from IPython.core.pylabtools import print_figure
from IPython.display import Code, Markdown, display
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyBboxPatch, Patch

from helpers import model, preprocess
from helpers.backend import keras
from helpers.data import Box, evenly
from helpers.evaluate import NEEDED

STYLE = {"figure.dpi": 80, "savefig.dpi": 80, "figure.facecolor": "white", "font.size": 11, "axes.titlesize": 11,
         "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}
plt.style.use(["default", STYLE])  # whatever the reader's own settings are
WRONG = "#E8178A"  # where prediction and truth differ: no label's colour
BLOCK_COLOURS = {"down": "#CFE6F5", "context": "#56B4E9", "up": "#F7E1B5", "localisation": "#E69F00",
                 "output": "#7CC8B0", "encode": "#56B4E9", "decode": "#E69F00"}


class Picture:
    """A matplotlib figure, and what it shows in words, its title first, for who cannot see it."""

    def __init__(self, figure, alt):
        self.figure, self.alt = figure, f"{figure.get_suptitle()}. {alt}"

    def __repr__(self):
        return self.alt

    def _repr_png_(self):
        return self.png(), {"alt": self.alt}

    def png(self):
        """The picture as the bytes of a PNG file."""
        return print_figure(self.figure, bbox_inches=None)


def axes_of(rows=1, columns=1, width=3.0, height=3.0, title=None):
    """A figure, and its axes as a 2-D array; closed, so that it is shown once."""
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=(columns * width, rows * height))
    plt.close(fig)
    fig.suptitle(title)
    return fig, axes


def source(*functions):
    """The source of functions as a notebook shows code, read from the module that runs."""
    code = Code("\n\n".join(map(inspect.getsource, functions)), language="python3")
    # exported pages have no such style of their own
    code._repr_html_ = lambda: Code._repr_html_(code).replace("<pre>", '<pre style="font-family: monospace">')
    return code


def cropped(split, indices):
    """Some slices of a split, cut to what is seen on them, and the Box that cuts other arrays of them alike."""
    box = Box.around(split.images[indices].any((0, 3)))
    return split.take(indices).seen(box), box


def panel(ax, task, title="", image=None, labels=None, wrong=None, doubt=None, opacity=0.6):
    """Draw one slice (H, W, C); over it labels, or errors in their own colour; without a slice, a mask or doubt."""
    ax.set_title(title)
    ax.axis("off")
    if image is not None:
        ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    for mask, colours in ((labels, [label.colour for label in task.labels]), (wrong, ["none", WRONG])):
        if mask is not None:
            ax.imshow(np.ma.masked_where((image is not None) & (mask == 0), mask), interpolation="nearest", vmin=-0.5,
                      vmax=len(colours) - 0.5, cmap=ListedColormap(colours), alpha=None if image is None else opacity)
    if doubt is not None:
        ax.imshow(doubt, cmap="magma", vmin=0, vmax=1)


def grid(rows, title, alt, task, width=3.0):
    """A Picture of rows of panels, each the keywords of `panel`, and a legend of what they have: labels, errors, doubt."""
    high, wide = rows[0][0]["image"].shape[:2]
    fig, axes = axes_of(len(rows), len(rows[0]), width, width * high / wide + 0.5 + 0.4 / len(rows), title)
    for ax, keywords in zip(axes.flat, chain(*rows)):
        panel(ax, task, **keywords)
    drawn = set(chain(*chain(*rows)))  # names of keywords
    handles = [Patch(facecolor=label.colour, edgecolor="#444444", label=label.name)
               for label in task.labels if "labels" in drawn]
    if "wrong" in drawn:
        handles.append(Patch(facecolor=WRONG, label="prediction differs from truth"))
    if "doubt" in drawn:
        fig.colorbar(axes[0, -1].images[-1], ax=axes[:, -1], label="0 sure, 1 no idea", shrink=0.6)
    fig.legend(handles=handles, loc="outside lower center", ncols=max(1, len(handles)), frameon=False)
    return Picture(fig, alt)


def brief(subject):
    """A subject's name, short enough for a title."""
    return subject if len(subject) < 24 else f"{subject[:8]}…"


def pairs(split, n=4):
    """Slices of `n` subjects above their masks."""
    some, _ = cropped(split, evenly(len(split), n))
    return grid([[dict(title=brief(subject), image=image) for subject, image in zip(some.subjects, some.images)],
                 [dict(labels=labels) for labels in some.labels]],
                f"{split.task.title}: the {split.name} split and its labels",
                f"{len(some)} slices in a row; below each its mask, a colour a label: {', '.join(split.task.names)}.", split.task)


def augmented(split, share, n=4, seed=0):
    """One slice as it is and `n` times augmented as a recipe's `augment` says (None: not at all), its labels below."""
    one = split.take(np.repeat(len(split) // 2, n))
    parts = one.images, one.labels
    if share is not None:
        parts = preprocess.augment(*parts, np.random.default_rng(seed), split.task, share)
    images, labels = (np.concatenate([old[:1], new]) for old, new in zip((one.images, one.labels), parts))
    box = Box.around((images > images.max() // 8).any((0, 3)))  # noise fills the air
    titles = ["as it is", *(f"augmented, {number}" for number in range(1, n + 1))]
    return grid([[dict(title=title, image=image) for title, image in zip(titles, box.cut(images))],
                 [dict(labels=label) for label in box.cut(labels)]],
                f"{split.task.title}: one slice, {n} times as training changes it (augment={share})",
                "Below each its mask, moved alike.", split.task, 2.5)


def network(net):
    """The blocks of a built network: depth is resolution, arrows are its connections, both read off the graph."""
    table = model.blocks(net)
    table = table[[not name.startswith("image") for name in table.index]]
    shape = np.array(net.input_shape[1:3])
    place = {name: (column, -np.log2(shape[0] / row.output[0])) for column, (name, row) in enumerate(table.iterrows())}
    fig, axes = axes_of(1, 1, max(10, 0.62 * len(place)), 5.5, f"{net.name}: {net.count_params():,} weights")
    ax = axes[0, 0]
    for start, end in sorted(connections(net)):
        if start in place and end in place:
            (left, y), (right, _) = place[start], place[end]
            between = place[end][1] == y and any(left < x < right for x, other in place.values() if other == y)
            around = {"connectionstyle": "arc,angleA=90,angleB=90,armA=30,armB=30,rad=6"} if between else {}
            ax.annotate("", place[end], place[start], zorder=1, arrowprops={
                "arrowstyle": "->", "color": "#888888", "shrinkA": 16, "shrinkB": 16, "lw": 1.3, **around})
    for name, (x, y) in place.items():
        ax.add_patch(FancyBboxPatch((x - 0.36, y - 0.2), 0.72, 0.4, boxstyle="round,pad=0.04", zorder=2,
                                    facecolor=BLOCK_COLOURS.get(name.split("_")[0], "#DDDDDD"), edgecolor="#444444"))
        ax.text(x, y, f"{table.output[name][-1]}", ha="center", va="center", zorder=3)
        ax.text(x, y - 0.3, name.replace("_", " "), ha="center", va="top", rotation=40, fontsize=9, zorder=3,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})
    depths = sorted({y for _, y in place.values()})
    ax.set(xlim=(-0.8, len(place) - 0.2), ylim=(min(depths) - 1.1, 0.7), xticks=[], yticks=depths,
           yticklabels=["{:.0f}x{:.0f}".format(*shape * 2**y) for y in depths], ylabel="resolution (pixels)",
           xlabel="data flow from left to right; a block's number counts its feature maps; a colour is a kind of block")
    return Picture(fig, "Blocks from left to right: down to coarse resolution and up, bridged at equal resolutions.")


def connections(net):
    """Pairs of blocks (from, to) that a tensor passes between."""
    block_of = {id(layer.output): layer.name.split("-")[0] for layer in net.layers}
    found = {(block_of[id(tensor)], layer.name.split("-")[0])
             for layer in net.layers for tensor in keras.tree.flatten(layer.input)}
    return {(start, end) for start, end in found if start != end}


def curves(run, network=None):
    """Loss and validation Dice over the epochs so far; with a network, a validation slice as it segments it now."""
    history, task = run.history, run.task
    fig, axes = axes_of(1, 2 if network is None else 3, 5.0, 3.6, f"{task.title}: training")
    left, right, epochs = *axes[0, :2], history.index + 1
    left.plot(epochs, history["loss"], "o-", color="#0072B2", label="training")
    left.plot(epochs, history["val_loss"], "s--", color="#D55E00", label="validation")
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    left.legend()
    for label, marker in zip(task.labels, "osD^vP"):
        right.plot(epochs, history[f"val_dice {label.name}"], marker=marker, color=label.colour, label=label.name)
    right.axvline(run.best + 1, color="#888888", linestyle=":", label=f"kept: epoch {run.best + 1}")
    right.axhline(NEEDED, color="#888888", linestyle="--", linewidth=1, label=f"needed: {NEEDED}")
    right.set(xlabel="epoch", ylabel="validation: hard Dice, pooled", ylim=(min(0.85, right.dataLim.y0) - 0.02, 1.005))
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)  # beside the curves, not over them
    for ax in axes[0, :2]:
        ax.xaxis.get_major_locator().set_params(integer=True)
    if network is not None:
        split = run.dataset.validation.take([len(run.dataset.validation) // 2]).seen(run.box, run.recipe.size)
        guess = keras.ops.convert_to_numpy(network(split.images)).argmax(-1)
        wrong = (guess != split.labels)[0]
        panel(axes[0, 2], task, f"a validation slice, errors: {100 * wrong.mean():.1f} % of its pixels",
              split.images[0], wrong=wrong, opacity=1)
    also = "" if network is None else "; the wrong pixels of a validation slice"
    return Picture(fig, f"Loss, and validation Dice of each label, over {len(history)} epochs{also}.")


def live():
    """Take a place in the notebook; what is returned draws `curves` there after each epoch, with a slice that gets better."""
    place = display(Markdown(""), display_id=True)  # None outside a notebook
    return lambda run, network: place and place.update(curves(run, network or run.network()))


def boxes(scores, task):
    """Dice of every label as a box plot over subjects, each subject a point."""
    fig, axes = axes_of(1, 1, 8, 3.8, f"{scores.title}: hard Dice of each subject")
    ax = axes[0, 0]
    columns = [scores.per_subject[label.name].dropna() for label in task.labels]
    drawn = ax.boxplot(columns, widths=0.5, showfliers=False, patch_artist=True, medianprops={"color": "black"})
    for place, (box, label, values) in enumerate(zip(drawn["boxes"], task.labels, columns), start=1):
        box.set(facecolor=label.colour if label.name != "background" else "#BBBBBB", alpha=0.5)
        ax.plot(place + np.linspace(-0.15, 0.15, len(values)), values, "o", color="black", markersize=4)
    ax.axhline(NEEDED, color="#888888", linestyle="--", linewidth=1)
    ax.text(0.52, NEEDED, f"needed: {NEEDED}", va="bottom", fontsize=9, color="#555555")
    ax.set_xticks(range(1, len(columns) + 1), [label.name for label in task.labels])
    ax.set(xlabel="a point is a subject, moved sideways only to be seen", ylabel="hard Dice (0 to 1)",
           ylim=(min(0.88, *(c.min() - 0.02 for c in columns if len(c))), 1.005))
    return Picture(fig, f"A box plot for each label: {', '.join(task.names)}.")


def comparison(split, labels, scores):
    """The middle slice of the best, the median and the worst subject: image, truth, prediction, error."""
    titles, ranking = {}, scores.ranking
    for what, subject in zip(("best", "median", "worst"), (ranking[-1], ranking[len(ranking) // 2], ranking[0])):
        own, dice = np.flatnonzero(split.subjects == subject), scores.per_subject.loc[subject].iloc[1:].mean()
        titles[own[len(own) // 2]] = f"{what}: {brief(subject)}\nmean Dice {dice:.3f}"
    return compared(split, labels, titles, "best, median and worst subject")


def gallery(split, labels, scores, n=4):
    """The slices with the lowest mean Dice without background, one from each of `n` subjects, worst first."""
    means = scores.per_image.iloc[:, 1:].mean(axis=1).set_axis(range(len(split))).dropna().sort_values(kind="stable")
    titles = {index: f"{brief(split.subjects[index])}, slice {split.positions[index]}\nmean Dice {mean:.3f}"
              for index, mean in means.groupby(split.subjects[means.index]).head(1)[:n].items()}
    return compared(split, labels, titles, f"the worst slices of {len(titles)} subjects")


def compared(split, labels, titles, what):
    """A row for each slice, {index: title}, cut to what is seen: image, truth, prediction, error."""
    some, box = cropped(split, list(titles))
    guesses = box.cut(labels[list(titles)])
    rows = [[dict(title=title, image=image), dict(title="truth", labels=truth), dict(title="prediction", labels=guess),
             dict(title=f"error: {(truth != guess).sum():,} pixels", image=image, wrong=truth != guess, opacity=1)]
            for title, image, truth, guess in zip(titles.values(), some.images, some.labels, guesses)]
    return grid(rows, f"{split.task.title}, {split.name}: {what}",
                "A row for each: the slice, its true mask, the predicted mask, the pixels where they differ.", split.task)


def overlays(split, n=4):
    """Slices spread over a split, under their labels."""
    chosen = evenly(len(split), n, ends=False)
    some, _ = cropped(split, chosen)
    return grid([[dict(title=f"slice {index + 1} of {len(split)}", image=image, labels=labels)
                  for index, image, labels in zip(chosen, some.images, some.labels)]],
                f"{split.name}: {split.task.title}", f"{len(chosen)} slices under the labels found.", split.task)


def overlay(split, index, layer, labels=None, doubt=None, opacity=0.5, shown=None):
    """One slice, bare and under a `layer`: labels or truth (the split's), prediction, error, uncertainty."""
    own = split.take([index])
    _, box = cropped(split, split.subjects == own.subjects[0])
    image, drawn = box.cut(own.images)[0], dict(title=layer, opacity=opacity)
    if layer == "uncertainty":
        drawn |= dict(doubt=box.cut(doubt(own.images))[0])
    elif layer == "error":
        wrong = own.labels != labels[[index]]
        drawn |= dict(title=f"error: {wrong.sum():,} pixels", image=image, wrong=box.cut(wrong)[0])
    else:
        found = box.cut(labels[[index]] if layer == "prediction" else own.labels)[0]
        drawn |= dict(image=image, labels=found if shown is None else np.where(np.isin(found, shown), found, 0))
    return grid([[dict(title="slice", image=image), drawn]], f"{split.task.title}: {brief(own.subjects[0])}",
                f"A slice, bare and under its {layer}.", split.task, 4.6)


def uncertainty(split, labels, predictor, n=3):
    """Image, error and uncertainty of `n` slices, spread over the split."""
    chosen = evenly(len(split), n, ends=False)
    some, box = cropped(split, chosen)
    guesses, doubts = box.cut(labels[chosen]), box.cut(predictor.doubt(split.images[chosen]))
    rows = [[dict(title=brief(subject), image=image), dict(title="error", image=image, wrong=truth != guess, opacity=1),
             dict(title="uncertainty", doubt=doubt)]
            for subject, image, truth, guess, doubt in zip(some.subjects, some.images, some.labels, guesses, doubts)]
    return grid(rows, f"{split.task.title}, {split.name}: where it errs, and where it is unsure",
                "Slices, their wrong pixels, and the network's uncertainty: both lie along borders of labels.",
                split.task, 3.6)
