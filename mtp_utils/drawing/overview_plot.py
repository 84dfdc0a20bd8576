"""The first figure: the next token and the one after it against size, the ladder as lines, each pretrained model by itself."""

import pandas as pd
from matplotlib.figure import Figure

from . import titles
from .style import MARKERS, STYLE, errors, log_params, new_grid, titled

METRICS = {"top1": "top-1 accuracy", "bits_per_character": "bits per character"}
OFFSETS = {1: ("ntp", "next token"), 2: ("marginal", "token after next, by the marginal")}
PANELS = {"translation": "translation, by a grammar", "catalogues": "translation, by people"}


def overview(table: pd.DataFrame) -> Figure:
    """Top-1 accuracy above, bits per character below, a column a kind of text. table: model, n_params, corpus, offset, metric,
    value, ci_low, ci_high; a model of several sizes is a line."""
    corpora = [c for c in (*PANELS, *dict.fromkeys(table["corpus"])) if c in set(table["corpus"])]
    corpora = list(dict.fromkeys(corpora))
    models = list(dict.fromkeys(table["model"]))
    figure, axes = new_grid(len(METRICS), len(corpora), width=3.1, height=2.6, sharex=True, sharey="row")
    for row, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for ax, corpus in zip(row, corpora, strict=True):
            here = table[(table.corpus == corpus) & (table.metric == metric)]
            for i, model in enumerate(models):
                for offset, (name, called) in OFFSETS.items():
                    rows = here[(here.model == model) & (here.offset == offset)].sort_values("n_params")
                    options = {"color": STYLE[name][0], "marker": MARKERS[i], "markersize": 6, "capsize": 2}
                    options |= {"linestyle": "-" if rows["n_params"].nunique() > 1 else "none", "label": f"{model}: {called}"}
                    ax.errorbar(rows["n_params"] * (1 + 0.12 * (offset - 1)), rows["value"], yerr=errors(rows), **options)
            if row is axes[0]:
                ax.set_title(PANELS.get(corpus, corpus))
            else:
                log_params(ax, table["n_params"])
        row[0].set_ylabel(label)
        row[0].set_ylim(bottom=0)
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=min(3, len(models)))
    titled(figure, titles.overview(table))
    return figure
