"""Every figure. Each function returns a matplotlib Figure, which a notebook shows and `savefig` writes."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyBboxPatch, Patch

from helpers import model, preprocess
from helpers.data import evenly
from helpers.evaluate import NEEDED

STYLE = {"figure.dpi": 80, "savefig.dpi": 80, "figure.facecolor": "white", "font.size": 11, "axes.titlesize": 11,
         "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}
WRONG = "#E8178A"  # where prediction and truth differ: no label's colour


def figure(rows=1, columns=1, width=3.0, height=3.0, title=None):
    """A figure in the project's style, and its axes as a 2-D array; closed, so that it is shown once."""
    with plt.rc_context(STYLE):
        made, axes = plt.subplots(rows, columns, squeeze=False, figsize=(columns * width, rows * height))
    plt.close(made)
    if title:
        made.suptitle(title)
    return made, axes


def keep(made, file):
    """Write a figure to `file` as PNG, and return it to be shown."""
    file.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(file)
    return made


def inner(total, n):
    """Indices of at most `n` of `total` things, evenly spread, the ends left out."""
    return np.unique(np.linspace(0, total - 1, n + 2).round().astype(int)[1:-1])


def pairs(split, n=4):
    """Slices of `n` subjects above their masks."""
    chosen = evenly(len(split), n)
    made, axes = figure(2, len(chosen), title=f"{split.task.title}: the {split.name} split and their labels")
    for column, index in enumerate(chosen):
        draw_slice(axes[0, column], split.images[index], split.subjects[index])
        draw_labels(axes[1, column], split.labels[index], split.task)
    legend(made, split.task)
    return made


def augmented(split, moved, n=4, seed=0):
    """One slice as it is and `n` times augmented, its labels below; `moved` as in `preprocess.augment`."""
    index = np.repeat(len(split) // 2, n)
    images, labels = preprocess.augment(split.images[index], split.labels[index], np.random.default_rng(seed),
                                        split.task.mirrors, moved)
    made, axes = figure(2, n + 1, width=2.5, height=2.6, title=f"{split.task.title}: one slice, augmented {n} times")
    for column in range(n + 1):
        image, label = ((split.images[index[0]], split.labels[index[0]]) if column == 0 else
                        (images[column - 1], labels[column - 1]))
        draw_slice(axes[0, column], image, "as it is" if column == 0 else f"augmented, {column}")
        draw_labels(axes[1, column], label, split.task)
    legend(made, split.task)
    return made


def greys(split):
    """Histogram of grey values (of colour pictures: the channels' mean), one line per label."""
    made, axes = figure(1, 1, 8, 3.4, f"{split.task.title}: grey values by label")
    ax = axes[0, 0]
    for number, label in enumerate(split.task.labels):
        counts = sum(np.bincount(image.mean(-1).astype(int)[mask == number], minlength=256)
                     for image, mask in zip(split.images, split.labels))
        ax.plot(100 * counts / split.labels.size, color=label.colour, label=label.name)
    ax.set(xlabel="grey value (0 to 255)", ylabel="% of all pixels", yscale="log", ylim=(1e-4, 100))
    ax.legend()
    return made


def network(net):
    """The blocks of a built network: depth is resolution, arrows are its connections, both read off the graph."""
    table = model.blocks(net)
    table = table[[not name.startswith("image") for name in table.index]]
    height = net.input_shape[1]
    place = {name: (column, -np.log2(height / row.output[0])) for column, (name, row) in enumerate(table.iterrows())}
    made, axes = figure(1, 1, width=max(10, 0.62 * len(place)), height=5.5,
                        title=f"{net.name}: {net.count_params():,} weights")
    ax = axes[0, 0]
    for start, end in sorted(connections(net)):
        if start in place and end in place:
            (left, y), (right, _) = place[start], place[end]
            between = place[end][1] == y and any(left < x < right for x, other in place.values() if other == y)
            around = {"connectionstyle": "arc,angleA=90,angleB=90,armA=30,armB=30,rad=6"} if between else {}
            ax.annotate("", place[end], place[start], zorder=1, arrowprops={
                "arrowstyle": "->", "color": "#888888", "shrinkA": 16, "shrinkB": 16, "lw": 1.3, **around})
    for name, (x, y) in place.items():
        kind = name.split("_")[0]
        ax.add_patch(FancyBboxPatch((x - 0.36, y - 0.2), 0.72, 0.4, boxstyle="round,pad=0.04", zorder=2,
                                    facecolor=BLOCK_COLOURS.get(kind, "#DDDDDD"), edgecolor="#444444"))
        ax.text(x, y, f"{table.output[name][-1]}", ha="center", va="center", zorder=3)
        ax.text(x, y - 0.3, name.replace("_", " "), ha="center", va="top", rotation=40, fontsize=9, zorder=3,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})
    depths = sorted({y for _, y in place.values()})
    ax.set(xlim=(-0.8, len(place) - 0.2), ylim=(min(depths) - 1.1, 0.7), xticks=[], yticks=depths,
           yticklabels=[f"{int(height * 2 ** y)}x{int(height * 2 ** y)}" for y in depths],
           ylabel="resolution (pixels)",
           xlabel="data flow from left to right; a block's number counts its maps; a colour is a kind of block")
    return made


BLOCK_COLOURS = {"open": "#CFE6F5", "context": "#56B4E9", "up": "#F7E1B5", "localisation": "#E69F00",
                 "segment": "#7CC8B0", "encode": "#56B4E9", "decode": "#E69F00"}


def connections(net):
    """Pairs of blocks (from, to) that a tensor passes between."""
    block_of = {id(layer.output): layer.name.split("-")[0] for layer in net.layers}
    found = set()
    for layer in net.layers:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        found |= {(block_of[id(tensor)], layer.name.split("-")[0]) for tensor in inputs if id(tensor) in block_of}
    return {(start, end) for start, end in found if start != end}


def row(pictures, title=None):
    """Grey pictures (H, W, 1) of any size in a row, {what it is: picture}, each on a grey scale of its own."""
    made, axes = figure(1, len(pictures), 3.2, 3.4, title)
    for ax, (name, picture) in zip(axes[0], pictures.items()):
        picture = np.squeeze(np.asarray(picture))
        ax.imshow(picture, cmap="gray", interpolation="nearest")
        ax.set_title(f"{name}: {picture.shape[0]}x{picture.shape[1]}")
        ax.axis("off")
    return made


def levels(net, split, index):
    """What deep supervision adds: labels of one slice by the coarsest segmentation alone, then with each finer one."""
    found = model.levels(net).predict(split.images[index:index + 1], verbose=0)
    made, axes = figure(1, len(found) + 1, 3.2, 3.6, f"{split.task.title}, {split.name}: the answer, level by level")
    for number, (ax, maps) in enumerate(zip(axes[0], found), start=1):
        what = f"{maps.shape[1]}x{maps.shape[2]} map"
        draw_labels(ax, maps[0].argmax(-1), split.task, f"{what} alone" if number == 1 else f"+ {what}")
    draw_labels(axes[0, -1], split.labels[index], split.task, "truth")
    legend(made, split.task)
    return made


def curves(history, task):
    """Loss of training and validation, and validation Dice of every label, over the epochs so far."""
    made, axes = figure(1, 2, 6, 3.8, f"{task.title}: training")
    left, right, epochs = *axes[0], history.index + 1
    left.plot(epochs, history["loss"], "o-", color="#0072B2", label="training")
    left.plot(epochs, history["val_loss"], "s--", color="#D55E00", label="validation")
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    left.legend()
    for label, marker in zip(task.labels, "osD^vP"):
        right.plot(epochs, history[f"val_dice {label.name}"], marker=marker, color=label.colour, label=label.name)
    kept = epochs[history["val_worst dice"].argmax()]
    right.axvline(kept, color="#888888", linestyle=":", label=f"kept: epoch {kept} (best worst label)")
    right.axhline(NEEDED, color="#888888", linestyle="--", linewidth=1, label=f"needed: {NEEDED}")
    right.set(xlabel="epoch", ylabel="validation: hard Dice, pooled (0 to 1)",
              ylim=(min(0.85, right.dataLim.y0) - 0.02, 1.005))
    right.legend(loc="lower right", fontsize=9)
    for ax in axes[0]:
        ax.xaxis.get_major_locator().set_params(integer=True)
    return made


def boxes(scores, task):
    """Dice of every label as a box plot over subjects, each subject a point."""
    made, axes = figure(1, 1, 8, 3.8, f"{scores.title}: hard Dice of each subject")
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
    return made


def comparison(split, guesses, subject, n=3):
    """Image, truth, prediction and error side by side on `n` slices of one subject."""
    own = np.flatnonzero(split.subjects == subject)
    places = inner(len(own), n)
    return compared(split, guesses, {own[place]: f"slice {place + 1} of {len(own)}" for place in places}, subject)


def gallery(split, guesses, scores, n=4):
    """The `n` slices with the lowest mean Dice without background, worst first."""
    means = scores.per_image.iloc[:, 1:].mean(axis=1).to_numpy()
    worst = [index for index in np.argsort(means) if not np.isnan(means[index])][:n]
    places = {index: (split.subjects[:index + 1] == split.subjects[index]).sum() for index in worst}  # in its subject
    titles = {index: f"{split.subjects[index]}, slice {place}\nmean Dice {means[index]:.3f}"
              for index, place in places.items()}
    return compared(split, guesses, titles, f"the {len(titles)} worst slices")


def compared(split, guesses, titles, what):
    """A row for each slice, {index: title}: image, truth, prediction, error."""
    made, axes = figure(max(1, len(titles)), 4, title=f"{split.task.title}, {split.name}: {what}")
    for row, (index, title) in zip(axes, titles.items()):
        wrong = split.labels[index] != guesses[index]
        draw_slice(row[0], split.images[index], title)
        draw_labels(row[1], split.labels[index], split.task, "truth")
        draw_labels(row[2], guesses[index], split.task, "prediction")
        draw_slice(row[3], split.images[index], f"error: {100 * wrong.mean():.2f} % of pixels")
        draw_errors(row[3], wrong)
    legend(made, split.task, error=True)
    return made


def overlays(split, n=4):
    """Slices spread over a split, under their labels."""
    chosen = inner(len(split), n)
    made, axes = figure(1, len(chosen), max(3.0, 6 / len(chosen)), title=f"{split.name}: labels over slices")
    for ax, index in zip(axes[0], chosen):
        draw_overlay(ax, split.images[index], split.labels[index], split.task, f"slice {index + 1} of {len(split)}")
    legend(made, split.task)
    return made


def sweep(split, guesses, subject, file, most=16):
    """Write an animated PNG to `file`: at most so many slices of one subject, bare and under their labels; its path."""
    own = np.flatnonzero(split.subjects == subject)
    frames = evenly(len(own), most)
    made, axes = figure(1, 2, 3.2, 3.5, title=f"{split.task.title}: {subject}")
    legend(made, split.task)

    def draw(place):
        """Put one slice in the place of the last."""
        for ax in axes[0]:
            ax.clear()
        draw_slice(axes[0, 0], split.images[own[place]], f"slice {place + 1} of {len(own)}")
        draw_overlay(axes[0, 1], split.images[own[place]], guesses[own[place]], split.task, "prediction", 0.8)

    draw(frames[0])
    made.canvas.draw()  # lays everything out once
    made.set_layout_engine("none")  # and keeps it there
    file.parent.mkdir(parents=True, exist_ok=True)
    FuncAnimation(made, draw, frames=frames).save(file, writer=PillowWriter(fps=5))
    return file


def one(split, index, layer, guesses=None, unsure=None, opacity=0.5, shown=None):
    """One slice, bare and under a `layer`: labels or truth (the split's), prediction, error, uncertainty."""
    image, task = split.images[index], split.task
    made, axes = figure(1, 2, 4.6, 4.8, title=f"{task.title}: {split.subjects[index]}")
    draw_slice(axes[0, 0], image, "slice")
    ax = axes[0, 1]
    if layer == "uncertainty":
        found = unsure(image[None])[0]
        scale(made, draw_uncertainty(ax, found, found.max()), [ax])
    elif layer == "error":
        wrong = split.labels[index] != guesses[index]
        draw_slice(ax, image)
        draw_errors(ax, wrong, opacity)
        layer = f"error: {100 * wrong.mean():.2f} % of pixels"
    else:
        labels = guesses if layer == "prediction" else split.labels
        draw_overlay(ax, image, labels[index], task, "", opacity, shown)
    ax.set_title(layer)
    legend(made, task, error=layer.startswith("error"))
    return made


def uncertainty(split, guesses, unsure, n=3):
    """Image, error and uncertainty of `n` slices, spread over the split; `unsure` (N, H, W), 0 to 1, on one scale."""
    made, axes = figure(n, 3, title=f"{split.task.title}, {split.name}: where it errs and where it is unsure")
    chosen = inner(len(split), n)
    for row, index in zip(axes, chosen):
        draw_slice(row[0], split.images[index], split.subjects[index])
        draw_slice(row[1], split.images[index], "error")
        draw_errors(row[1], split.labels[index] != guesses[index])
        drawn = draw_uncertainty(row[2], unsure[index], unsure[chosen].max(), "uncertainty")
    scale(made, drawn, axes[:, 2].tolist())
    return made


def review(split, guesses, ways, most=0.2):
    """Share of all errors found by looking at the most unsure pixels first; `ways` is {name: (N, H, W)}.

    A million pixels, evenly spread, stand for all. The dotted line is looking at random.
    """
    made, axes = figure(1, 1, 8, 3.8, f"{split.task.title}, {split.name}: does uncertainty find the errors?")
    ax, step = axes[0, 0], max(1, split.labels.size // 1_000_000)
    wrong = (split.labels != guesses).ravel()[::step]
    looked = np.linspace(0, most, 200)
    for (name, unsure), colour, style in zip(ways.items(), ("#0072B2", "#D55E00", "#009E73"), ("-", "--", "-.")):
        found = np.append(0, wrong[np.argsort(-unsure.ravel()[::step], kind="stable")].cumsum()) / max(1, wrong.sum())
        share = found[(looked * len(wrong)).astype(int)]
        ax.plot(100 * looked, 100 * share, linestyle=style, color=colour, linewidth=2, label=name)
    ax.plot([0, 100 * most], [0, 100 * most], ":", color="#888888", label="at random")
    ax.set(xlabel="% of all pixels looked at, most unsure first", ylabel="% of the errors found", ylim=(0, 101))
    ax.legend(loc="center right")
    return made


def confusion(scores):
    """Where the pixels of each label went, in per cent of the label's own."""
    table = scores.confusion_table()
    made, axes = figure(1, 1, 1.5 + 1.3 * len(table), 1.2 + 0.9 * len(table), f"{scores.title}: where pixels went")
    ax = axes[0, 0]
    drawn = ax.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), share in np.ndenumerate(table.to_numpy()):
        ax.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 60 else "black")
    ax.set_xticks(range(len(table)), table.columns)
    ax.set_yticks(range(len(table)), table.index)
    ax.set(xlabel="prediction", ylabel="truth")
    ax.spines[:].set_visible(False)
    made.colorbar(drawn, label="% of the label's pixels")
    return made


def ingredients(results, split="test"):
    """Mean Dice without background of each variant: a point a run, a bar at their mean, a dotted line at the first's.

    Runs that count for both budgets are drawn once; those that only the same seconds allow say their epochs.
    """
    names = [column for column in results if column.startswith(f"{split} ") and column != f"{split} background"]
    labels = [name.removeprefix(f"{split} ") for name in names]
    runs = results.drop_duplicates(["variant", "seed", "epochs"]).assign(dice=results[names].mean(axis=1))
    groups = list(runs.groupby(["variant", "budget", "epochs"], sort=False)["dice"])[::-1]
    made, axes = figure(1, 1, 10, 1.2 + 0.36 * len(groups), f"{results['data'].iloc[0]}: what each ingredient buys")
    ax = axes[0, 0]
    for place, (_, dice) in enumerate(groups):
        ax.plot(dice, np.full(len(dice), place), "o", color="#0072B2", alpha=0.6)
        ax.plot(dice.mean(), place, "|", color="black", markersize=18, markeredgewidth=2)
    ax.axvline(groups[-1][1].mean(), color="#888888", linestyle=":")
    ax.set_yticks(range(len(groups)), [variant + (budget != "epochs") * f", {epochs} epochs (the same seconds)"
                                       for (variant, budget, epochs), _ in groups])
    ax.set(xlabel=f"{split} Dice (hard, pooled),\nmean of {', '.join(labels)}")
    return made


def before_after(split, before, after, indices):
    """The same slices predicted before and after training, beside the truth."""
    made, axes = figure(len(indices), 4, title=f"{split.task.title}, {split.name}: before and after training")
    for row, index, b, a in zip(axes, indices, before, after):
        draw_slice(row[0], split.images[index], split.subjects[index])
        draw_labels(row[1], split.labels[index], split.task, "truth")
        draw_labels(row[2], b, split.task, "before training")
        draw_labels(row[3], a, split.task, "after training")
    legend(made, split.task)
    return made


def draw_slice(ax, image, title=""):
    """One image (H, W, C), grey or colour, on the full scale 0..255."""
    ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    ax.set_title(title)
    ax.axis("off")


def draw_labels(ax, labels, task, title=""):
    """One mask (H, W) in the labels' colours."""
    colours = ListedColormap([label.colour for label in task.labels])
    ax.imshow(labels, cmap=colours, vmin=-0.5, vmax=len(task.labels) - 0.5, interpolation="nearest")
    ax.set_title(title)
    ax.axis("off")


def draw_overlay(ax, image, labels, task, title="", opacity=0.6, shown=None):
    """One image (H, W, C) under its labels (H, W), except background; `shown` are the labels to draw, all if None."""
    draw_slice(ax, image, title)
    shown = range(1, len(task.labels)) if shown is None else shown
    hidden = ~np.isin(labels, [label for label in shown if label > 0])
    ax.imshow(np.ma.masked_where(hidden, labels), cmap=ListedColormap([label.colour for label in task.labels]),
              vmin=-0.5, vmax=len(task.labels) - 0.5, alpha=opacity, interpolation="nearest")


def draw_errors(ax, wrong, opacity=1.0):
    """Wrong pixels (H, W) in their own colour, over what is drawn already."""
    ax.imshow(np.ma.masked_where(~wrong, wrong), cmap=ListedColormap([WRONG]), alpha=opacity, interpolation="nearest")


def draw_uncertainty(ax, unsure, most, title=""):
    """Uncertainty (H, W), brightest at `most`, but never so that next to none looks bright; drawn, for `scale`."""
    drawn = ax.imshow(unsure, cmap="magma", vmin=0, vmax=max(most, 0.1))
    ax.set_title(title)
    ax.axis("off")
    return drawn


def scale(made, drawn, axes):
    """The colour scale of uncertainty beside some axes."""
    made.colorbar(drawn, ax=axes, label="uncertainty: 0 sure, 1 no idea", shrink=0.8)


def legend(made, task, error=False):
    """The labels' colours below a figure."""
    handles = [Patch(facecolor=label.colour, edgecolor="#444444", label=label.name) for label in task.labels]
    if error:
        handles.append(Patch(facecolor=WRONG, label="prediction differs from truth"))
    made.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
