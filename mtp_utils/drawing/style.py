"""What all figures share: colours, markers, names, axes, intervals.

The same thing has the same colour and marker everywhere: NTP grey, the marginal black, controls, corpora and rungs one
fixed hue each (Okabe-Ito, told apart without colour by marker and line style).
"""

import functools
import re
import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from .numbers import Title

STYLE = {  # name -> colour, marker, line style
    "marginal": ("#000000", "o", "-"),
    "ntp": ("#7f7f7f", "s", "-"),
    "skip_trigram": ("#D55E00", "^", "--"),
    "cache_ngram": ("#009E73", "D", (0, (5, 1, 1, 1))),
    "skip_bigram": ("#E69F00", "v", "-."),
    "unigram": ("#999933", "x", ":"),
    "greedy_path": ("#CC79A7", "P", ":"),
    "esp": ("#332288", "p", (0, (1, 1))),
    "gold": ("#B8860B", "*", "-"),
    "translation": ("#0072B2", "o", "-"),
    "catalogues": ("#56B4E9", "D", "-"),
    "code": ("#009E73", "s", "--"),
    "prose": ("#D55E00", "^", "-."),
    "instructions": ("#CC79A7", "P", ":"),
    "text": ("#0072B2", "o", "-"),
    "data": ("#000000", "o", "-"),
    "sampled": ("#0072B2", "D", "--"),
    "greedy": ("#CC79A7", "P", ":"),
    "offset2": ("#0072B2", "o", "-"),
    "offset3": ("#56B4E9", "^", "--"),
    "offset4": ("#CC79A7", "D", "-."),
    "frozen": ("#882255", "h", "-"),  # beside the controls, whose hues the usual eight have
    "joint": ("#0072B2", "s", "-"),
    "residual": ("#D55E00", "^", "--"),
    "linear": ("#E69F00", "v", "-."),
    "block": ("#CC79A7", "P", ":"),
    "floor": ("#56B4E9", "x", ":"),
    "ntp backbone": ("#7f7f7f", "s", "-"),
    "mtp twin": ("#0072B2", "D", "--"),
    "offset-2 twin": ("#009E73", "P", "-."),
    "untrained": ("#E69F00", "x", ":"),
    "probe": ("#0072B2", "o", "-"),
    "logit lens": ("#7f7f7f", "s", ":"),
    "Jacobian lens": ("#CC79A7", "D", "--"),
    "before": ("#7f7f7f", "s", "-"),
    "after joint training": ("#0072B2", "D", "--"),
}
MARKERS = "os^DvPX*<>ph8d"
SIZES = ("#c6dbef", "#9ecae1", "#6baed6", "#2171b5", "#08306b")
LABEL = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "cross_entropy": "cross-entropy [nats/token]"}
NAMES = {
    "skip_trigram": "skip-trigram",
    "cache_ngram": "cache n-gram",
    "skip_bigram": "skip-bigram",
    "greedy_path": "greedy path",
    "esp": "ESP masks, one pass",
    "ntp": "NTP (offset 1)",
    "gold": "true m2 (grammar)",
    "offset2": "offset 2",
    "offset3": "offset 3",
    "offset4": "offset 4",
    "frozen": "frozen heads",
    "joint": "joint training",
    "floor": "least gap at this width",
}


def new_axes(n: int, width: float = 3.4, height: float = 3.2, **options):
    """figure, axes[panel] of up to three panels in a row, of more in two; width and height of a panel in inches."""
    rows = 1 if n <= 3 else 2
    figure, grid = new_grid(rows, -(-n // rows), width, height, **options)
    for ax in grid.flat[n:]:
        ax.set_axis_off()
    return figure, grid.flat[:n]


def new_grid(rows: int, columns: int, width: float, height: float, **options):
    """As new_axes, of several rows: figure, axes[row][column]."""
    sns.set_theme(style="ticks", context="notebook", rc={"axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False})
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def titled(figure: Figure, title: Title) -> None:
    """The figure's title, each of its lines in as many as the figure's width asks for: the numbers of a panel below the panel's
    own name, or behind what is said where there are no such panels. And the label of the first panel's values at the first of
    every row."""
    for ax in figure.axes[1:]:
        at = ax.get_subplotspec()
        if at and at.is_first_col() and not ax.get_ylabel():
            ax.set_ylabel(figure.axes[0].get_ylabel())
    panels = {ax.get_title(): ax for ax in reversed(figure.axes)}  # of several rows the first
    if title.of and title.of.keys() <= panels.keys():
        for name, found in title.of.items():
            panels[name].set_title(f"{name}\n{found}{title.unit}", fontsize=11)
        title = title._replace(of={})
    lines = [part for line in str(title).split("\n") for part in _broken(line, int(11 * figure.get_figwidth()))]
    figure.suptitle("\n".join(lines), fontsize=12)


def _broken(line: str, width: int) -> list[str]:
    """The line in as few of at most that width as there can be, of about one length, rather behind a comma than elsewhere, and
    not within parentheses."""
    whole = re.sub(r"\([^()]*\)", lambda found: found[0].replace(" ", "\xa0") if len(found[0]) <= width / 2 else found[0], line)
    parts = re.split(r"(?<=[,:;]) ", whole)
    joined = " ".join(part.replace(" ", "\xa0") if len(part) <= 2 * width / 3 else part for part in parts)
    wrap = functools.partial(textwrap.wrap, joined, break_on_hyphens=False, break_long_words=False)
    found = wrap(width)
    while width > 1 and len(narrower := wrap(width - 1)) == len(found):
        width, found = width - 1, narrower
    return [part.replace("\xa0", " ") for part in found]


def legend_beside(ax) -> None:
    """The legend of these axes, to their right."""
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def errors(rows: pd.DataFrame, column: str = "value") -> np.ndarray:
    """(2, n) lengths of the intervals below and above the values, as matplotlib's error bars want them."""
    return np.clip([rows[column] - rows["ci_low"], rows["ci_high"] - rows[column]], 0, None)


def line(ax, x, rows: pd.DataFrame, name: str, label: str | None = None, **options) -> None:
    """Values with their intervals, in the fixed style of `name`."""
    colour, marker, style = STYLE[name]
    ax.errorbar(
        x,
        rows["value"],
        yerr=errors(rows),
        color=colour,
        marker=marker,
        linestyle=style,
        markersize=5,
        capsize=2,
        label=label or NAMES.get(name, name),
        **{"linewidth": 1.4, **options},
    )


def log_params(ax, n_params) -> None:
    ax.set_xscale("log")
    ticks = sorted(set(n_params))
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{t / 1e6:.1f}M" if t >= 1e6 else f"{t / 1e3:.0f}k" for t in ticks])
    ax.set_xlabel("parameters without embeddings")
