"""Figures of notebooks 06 and 07: a table in, a matplotlib Figure out, in the style of style.py."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .numbers import Title
from .style import MARKERS, SIZES, STYLE, errors, legend_beside, new_axes, new_grid, titled

DRAFTERS = {  # name -> colour, marker, line style
    "frozen heads": STYLE["frozen"],
    "best frozen heads": STYLE["block"],
    "heads that decide C3": STYLE["joint"],
    "marginal": STYLE["marginal"],
    "prompt lookup": STYLE["skip_bigram"],
    "cache n-gram": STYLE["cache_ngram"],
    "ESP masks": STYLE["esp"],
    "the base model itself": STYLE["gold"],
}


def acceptance_by_offset(summary: pd.DataFrame, metric: str, title: Title, ylabel: str) -> Figure:
    """The share of drafts accepted by offset, a panel a corpus, a line a drafter. summary: corpus, drafter, offset, metric,
    value, ci_low, ci_high."""
    corpora = list(dict.fromkeys(summary["corpus"]))
    figure, axes = new_axes(len(corpora), width=3.6, height=3.2, sharey=True)
    for ax, corpus in zip(axes, corpora, strict=True):
        for i, name in enumerate(dict.fromkeys(summary["drafter"])):
            rows = summary[(summary.corpus == corpus) & (summary.drafter == name) & (summary.metric == metric)]
            rows = rows.sort_values("offset")
            colour, marker, style = DRAFTERS[name]
            ax.errorbar(rows["offset"] + 0.06 * (i - 1), rows["value"], yerr=errors(rows), color=colour, marker=marker,
                        linestyle=style, markersize=5, capsize=2, label=name)  # fmt: skip
        ax.set(title=corpus, xlabel="offset", xticks=sorted(set(summary["offset"])), ylabel=ylabel if ax is axes[0] else "")
        ax.set_ylim(0, 1)
    legend_beside(axes[-1])
    titled(figure, title)
    return figure


def tokens_by_nodes(table: pd.DataFrame, title: Title) -> Figure:
    """Tokens a pass against the number of drafted tokens, a panel a corpus, a line a drafter. table: corpus, drafter, nodes,
    value, ci_low, ci_high."""
    corpora = list(dict.fromkeys(table["corpus"]))
    figure, axes = new_axes(len(corpora), width=3.6, height=3.2, sharey=True)
    for ax, corpus in zip(axes, corpora, strict=True):
        for name in dict.fromkeys(table["drafter"]):
            rows = table[(table.corpus == corpus) & (table.drafter == name)].sort_values("nodes")
            colour, marker, style = DRAFTERS[name]
            ax.errorbar(rows["nodes"], rows["value"], yerr=errors(rows), color=colour, marker=marker,
                        linestyle=style, markersize=5, capsize=2, label=name)  # fmt: skip
        ax.set(title=corpus, xscale="log", xlabel="drafted tokens of a pass", ylabel="tokens a pass" if ax is axes[0] else "")
        ax.set_xticks(sorted(set(table["nodes"])), sorted(set(table["nodes"])))
        ax.minorticks_off()
    axes[0].set_ylim(1, None)
    legend_beside(axes[-1])
    titled(figure, title)
    return figure


def speeds(summary: pd.DataFrame, title: Title) -> Figure:
    """Speed of each way of decoding as a ratio to plain greedy decoding (1: as fast), a panel a corpus, a marker a rung from
    light to dark; the speed that tokens a pass and seconds a pass predict as a ring. summary: corpus, backbone, way, metric
    (greedy_ratio, predicted), value, ci_low, ci_high."""
    corpora, ways = (list(dict.fromkeys(summary[name])) for name in ("corpus", "way"))
    figure, axes = new_axes(len(corpora), width=4.0, height=1.2 + 0.4 * len(ways), sharex=True, sharey=True)
    for ax, corpus in zip(axes, corpora, strict=True):
        rungs = list(dict.fromkeys(summary["backbone"]))
        for i, rung in enumerate(rungs):
            here = summary[(summary.corpus == corpus) & (summary.backbone == rung)]
            y = np.arange(len(ways)) + 0.2 * (i - (len(rungs) - 1) / 2)
            rows, model = (here[here.metric == m].set_index("way").reindex(ways) for m in ("greedy_ratio", "predicted"))
            look = {"color": SIZES[-len(rungs) :][i], "linestyle": "none", "capsize": 2, "markersize": 5}
            ax.errorbar(rows["value"], y, xerr=errors(rows), marker=MARKERS[i], label=rung, **look)
            ax.scatter(model["value"], y, s=70, facecolors="none", edgecolors="black", linewidths=0.7)
        ax.axvline(1, color="black", linewidth=0.9)
        ax.set(title=corpus, xlabel="speed / plain greedy decoding", yticks=range(len(ways)), yticklabels=ways)
    axes[0].invert_yaxis()
    axes[-1].scatter([], [], s=70, facecolors="none", edgecolors="black", linewidths=0.7, label="predicted")
    legend_beside(axes[-1])
    titled(figure, title)
    return figure


def against_acceptance(table: pd.DataFrame, columns: dict[str, str], title: Title) -> Figure:
    """Acceptance at offset 2 of each kind of heads against what was known of it before: a row a column of the table, a panel a
    corpus, a marker a rung. table: corpus, backbone, acceptance and the columns; columns: name -> label of its axis."""
    corpora, rungs = (list(dict.fromkeys(table[name])) for name in ("corpus", "backbone"))
    figure, grid = new_grid(len(columns), len(corpora), width=3.5, height=2.9, sharey="col")
    colours = sns.color_palette("colorblind", len(rungs))
    for axes, (column, label) in zip(grid, columns.items(), strict=True):
        for ax, corpus in zip(axes, corpora, strict=True):
            for i, rung in enumerate(rungs):
                rows = table[(table.corpus == corpus) & (table.backbone == rung)]
                ax.scatter(rows[column], rows["acceptance"], color=colours[i], marker=MARKERS[i], s=28, label=rung)
            ax.set(title=corpus, xlabel=label, ylabel="accepted at offset 2" if ax is axes[0] else "")
        legend_beside(axes[-1])
    titled(figure, title)
    return figure


def scorecard(verdicts: pd.DataFrame, thresholds: dict[str, float], title: Title) -> Figure:
    """Each claim's effect with its interval, in its own unit, and the line it has to lie right of. verdicts: claim, contrast,
    effect, ci_low, ci_high, verdict."""
    figure, grid = new_grid(len(verdicts), 1, width=7.6, height=0.85 + 0.6 / len(verdicts))
    axes = grid[:, 0]
    looks = {"reproduced": ("#0072B2", "o"), "partly": ("#56B4E9", "s"), "inconclusive": ("#7f7f7f", "D")}
    for ax, row in zip(axes, verdicts.to_dict("records"), strict=True):
        colour, marker = looks.get(row["verdict"], ("#D55E00", "X"))
        bar = [[max(0, row["effect"] - row["ci_low"])], [max(0, row["ci_high"] - row["effect"])]]
        ax.errorbar(row["effect"], 0, xerr=bar, color=colour, marker=marker, capsize=3, markersize=7)
        at = thresholds.get(row["claim"], 0.0)
        ax.axvline(at, color="black", linewidth=0.9)
        low, high = min(at, row["ci_low"]), max(at, row["ci_high"])
        label = f"{row['claim']} [{'top-1' if row['claim'] == 'C1' or row['contrast'].endswith('lead)') else 'nats'}]"
        ax.set(xlim=(low - 0.12 * (high - low), high + 0.12 * (high - low)), yticks=[0], yticklabels=[label], ylim=(-1, 1))
        ax.tick_params(axis="x", labelsize=8)
        ax.text(1.01, 0.5, row["verdict"], transform=ax.transAxes, va="center", fontsize=10, color=colour)
    titled(figure, title)
    return figure
