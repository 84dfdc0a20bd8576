"""The first figure: the next token and the one after it against size, the ladder as lines, each pretrained model by itself."""

import pandas as pd
from matplotlib.figure import Figure

from .numbers import Title, beside
from .style import MARKERS, STYLE, errors, new_grid, titled

METRICS = {"top1": "top-1 accuracy", "bits_per_character": "bits per character"}
OFFSETS = {1: ("ntp", "next token"), 2: ("marginal", "token after next, by the marginal")}
PANELS = {"translation": "translation, by a grammar", "catalogues": "translation, by people"}


def overview(table: pd.DataFrame) -> Figure:
    """Top-1 accuracy above, bits per character below, a column a kind of text; a model of several sizes is a line.

    table: model, n_params_total, corpus, offset, metric, value, ..."""
    known = set(table["corpus"])
    corpora = [c for c in dict.fromkeys((*PANELS, *table["corpus"])) if c in known]
    models = list(dict.fromkeys(table["model"]))
    figure, axes = new_grid(len(METRICS), len(corpora), width=3.1, height=2.6, sharex=True, sharey="row")
    for row, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for ax, corpus in zip(row, corpora, strict=True):
            ax.set_xscale("log")
            ax.set_xlim(table["n_params_total"].min() / 2, table["n_params_total"].max() * 2)
            here = table[(table.corpus == corpus) & (table.metric == metric)]
            for i, model in enumerate(models):
                for offset, (name, called) in OFFSETS.items():
                    rows = here[(here.model == model) & (here.offset == offset)].sort_values("n_params_total")
                    size = rows["n_params_total"]
                    options = {"color": STYLE[name][0], "marker": MARKERS[i], "markersize": 6, "capsize": 2}
                    options |= {"linestyle": "-" if len(rows) > 1 else "none", "label": f"{model}: {called}"}
                    ax.errorbar(size, rows["value"], yerr=errors(rows), **options)
        row[0].set_ylabel(label)
        row[0].set_ylim(bottom=0)
    for top, bottom, corpus in zip(*axes, corpora, strict=True):
        top.set_title(PANELS.get(corpus, corpus), fontsize=12)
        bottom.set_xlabel("parameters, with embeddings")
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=min(3, len(models)))
    titled(figure, title_of(table))
    return figure


def title_of(table: pd.DataFrame) -> Title:
    """Top-1 of the next token and of the one after it, of the last model."""
    rows = table[(table.metric == "top1") & (table.model == table["model"].iloc[-1])]
    rows = rows[rows.n_params_total == rows["n_params_total"].max()]
    found = {PANELS.get(corpus, corpus): of for corpus, of in beside(rows, "offset", (1, 2), " and ").items()}
    said = f"{rows['model'].iloc[-1]}, right about the next token and about the one after it"
    return Title(said, "models trained for the next token alone", found)
