"""One function a figure: a table in, a matplotlib Figure out, in the colours and markers of style.py. Nothing here reads
a model or writes a file."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .numbers import Title
from .style import LABEL, NAMES, SIZES, STYLE, errors, legend_beside, line, log_params, new_axes, titled


def predicted_tokens(table: pd.DataFrame, title: Title) -> Figure:
    """Arg-max of the marginal by position and offset with its probability. table: position, offset, token, prob, right, after."""
    figure, (ax,) = new_axes(1, width=min(13, 1.5 + 0.95 * table["position"].nunique()), height=3.2)
    grid = table.pivot(index="offset", columns="position", values="prob")
    sns.heatmap(grid, ax=ax, cmap="Blues", vmin=0, vmax=1, linewidths=1, cbar_kws={"label": "probability of the arg-max"})
    for row in table.itertuples():
        x, y = list(grid.columns).index(row.position) + 0.5, list(grid.index).index(row.offset) + 0.5
        ax.text(
            x,
            y,
            f"{row.token!r}"[1:-1].replace("$", r"\$") + ("\n✓" if row.right else "\n·"),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if row.prob > 0.6 else "black",
        )
    after = table.drop_duplicates("position").sort_values("position")["after"]
    ax.set_xticklabels([f"{t!r}"[1:-1] for t in after], rotation=0, fontsize=8)
    ax.set(xlabel="position t: the token just read", ylabel="offset k")
    titled(figure, title)
    return figure


def by_offset(summary: pd.DataFrame, metric: str, title: Title, hue: str = "predictor") -> Figure:
    """A metric against the offset, one panel a corpus, one line per value of `hue` (in STYLE)."""
    corpora = list(dict.fromkeys(summary["corpus"]))
    figure, axes = new_axes(len(corpora))
    for ax, corpus in zip(axes, corpora, strict=True):
        for i, name in enumerate(dict.fromkeys(summary[hue])):
            rows = summary[(summary.corpus == corpus) & (summary[hue] == name) & (summary.metric == metric)].sort_values("offset")
            line(ax, rows["offset"] + 0.04 * (i - 1), rows, name)
        ax.set(
            title=corpus,
            xlabel="offset k (1 = next token)",
            ylabel=LABEL[metric] if ax is axes[0] else "",
            xticks=sorted(set(summary["offset"])),
        )
        ax.set_ylim(bottom=0)
    legend_beside(axes[-1])
    titled(figure, title)
    return figure


def truncation(summary: pd.DataFrame, title: Title, exact: bool = True) -> Figure:
    """Captured mass, certified share and total variation against k, a line per corpus. summary: corpus, k, metric, value, ..."""
    metrics = {
        "captured_mass": "captured mass M",
        "certified": "share of arg-maxes certified",
        "same_argmax": "arg-max equal to the exact one" if exact else "arg-max equal to the reference's",
        "total_variation": "total variation of S/M from m2",
    }
    figure, axes = new_axes(len(metrics), width=3.2)
    for ax, (metric, label) in zip(axes, metrics.items(), strict=True):
        for corpus in dict.fromkeys(summary["corpus"]):
            rows = summary[(summary.corpus == corpus) & (summary.metric == metric)].sort_values("k")
            line(ax, rows["k"], rows, corpus)
        ax.set_xscale("log", base=2)
        ax.set(xlabel="candidates k", title=label, ylim=(0, None))
    axes[0].legend(fontsize=8)
    titled(figure, title)
    return figure


def bias(summary: pd.DataFrame, title: Title) -> Figure:
    """Bias of cross-entropy, H and I against the exact sum, by estimator, a marker per corpus."""
    panels = {
        "cross_entropy_bias": "bias of cross-entropy [nats]",
        "entropy_bias": "bias of H(m2) [nats]",
        "mutual_information_bias": "bias of I(x1;x2|x) [nats]",
    }
    names = list(dict.fromkeys(summary["estimator"]))
    figure, axes = new_axes(len(panels), width=3.6, height=0.8 + 0.42 * len(names), sharey=True)
    for ax, (metric, label) in zip(axes, panels.items(), strict=True):
        for i, corpus in enumerate(dict.fromkeys(summary["corpus"])):
            rows = summary[(summary.corpus == corpus) & (summary.metric == metric)].set_index("estimator").reindex(names)
            y = np.arange(len(names)) + 0.18 * (i - 1)
            ax.errorbar(
                rows["value"],
                y,
                xerr=errors(rows),
                color=STYLE[corpus][0],
                marker=STYLE[corpus][1],
                linestyle="none",
                capsize=2,
                label=corpus,
            )
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set(xlabel=label, yticks=range(len(names)), yticklabels=names)
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=8)
    titled(figure, title)
    return figure


def size(summary: pd.DataFrame, metric: str, title: Title) -> Figure:
    """Offsets 1 and 2 (those there are) against size, a panel a corpus; other seeds open, a little to the right.

    summary: offset, seed, n_params, corpus, metric, value, ..."""
    corpora = list(dict.fromkeys(summary["corpus"]))
    figure, axes = new_axes(len(corpora), sharey=True)
    for ax, corpus in zip(axes, corpora, strict=True):
        for offset, name, label in ((2, "marginal", "marginal, offset 2"), (1, "ntp", "NTP, offset 1")):
            if offset not in set(summary["offset"]):
                continue
            rows = summary[(summary.corpus == corpus) & (summary.offset == offset) & (summary.metric == metric)]
            main = rows[rows.seed == 0].sort_values("n_params")
            line(ax, main["n_params"], main, name, label)
            extra = rows[rows.seed != 0]
            ax.scatter(extra["n_params"] * 1.25, extra["value"], facecolors="none", edgecolors=STYLE[name][0], s=30, zorder=3)
        log_params(ax, summary["n_params"])
        ax.set(title=corpus, ylabel=LABEL[metric] if ax is axes[0] else "")
    axes[0].legend(fontsize=8)
    titled(figure, title)
    return figure


def offset_two_against_one(summary: pd.DataFrame, title: Title) -> Figure:
    """Top-1 at offset 2 against top-1 at offset 1, a point a backbone, a line a corpus."""
    figure, (ax,) = new_axes(1, width=5.2, height=4.2)
    table = summary[summary.metric == "top1"].pivot_table(
        index=["corpus", "n_params", "seed", "backbone"], columns="offset", values="value"
    )
    for corpus in dict.fromkeys(summary["corpus"]):
        rows = table.loc[corpus].sort_index()
        main = rows.xs(0, level="seed")
        colour, marker, style = STYLE[corpus]
        ax.plot(main[1], main[2], color=colour, marker=marker, linestyle=style, label=corpus)
        extra = rows[rows.index.get_level_values("seed") != 0]
        ax.scatter(extra[1], extra[2], facecolors="none", edgecolors=colour, marker=marker, s=45)
    top = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([0, top], [0, top], color="grey", linewidth=0.8)
    ax.set(xlabel="top-1 accuracy at offset 1 (NTP)", ylabel="top-1 accuracy at offset 2 (marginal)")
    ax.legend(fontsize=8)
    titled(figure, title)
    return figure


def grouped(summary: pd.DataFrame, column: str, metric: str, title: Title, xlabel: str) -> Figure:
    """A metric by a category (token class, context length), a panel a corpus, a hue per rung from light to dark."""
    corpora = list(dict.fromkeys(summary["corpus"]))
    categories = list(dict.fromkeys(summary[column]))
    figure, axes = new_axes(len(corpora), width=4.2, height=3.8, sharey=True)
    for ax, corpus in zip(axes, corpora, strict=True):
        rungs = list(dict.fromkeys(summary["backbone"]))
        for i, rung in enumerate(rungs):
            rows = summary[(summary.corpus == corpus) & (summary.backbone == rung) & (summary.metric == metric)]
            rows = rows.set_index(column).reindex(categories)
            x = np.arange(len(categories)) + 0.14 * (i - (len(rungs) - 1) / 2)
            ax.errorbar(
                x,
                rows["value"],
                yerr=errors(rows),
                color=SIZES[-len(rungs) :][i],
                marker="os^Dv"[i],
                linestyle="none",
                capsize=2,
                label=rung,
            )
        ax.set(title=corpus, xticks=range(len(categories)), ylabel=LABEL[metric] if ax is axes[0] else "", xlabel=xlabel)
        ax.set_xticklabels([str(c).replace(" ", "\n", 1) for c in categories], fontsize=8)
    axes[-1].legend(fontsize=8)
    titled(figure, title)
    return figure


def dose_response(summary: pd.DataFrame, title: Title) -> Figure:
    """Cross-entropy and top-1 at offset 2 against the true entropy: rungs from light to dark, the true m2 as gold line.

    summary: backbone (`grammar` for the truth), dose [nats], metric, value, ..."""
    figure, axes = new_axes(2, width=4.4, height=3.8)
    for ax, metric in zip(axes, ("cross_entropy", "top1"), strict=True):
        rungs = [b for b in dict.fromkeys(summary["backbone"]) if b != "grammar"]
        for i, rung in enumerate([*rungs, "grammar"]):
            rows = summary[(summary.backbone == rung) & (summary.metric == metric)].sort_values("dose")
            gold = rung == "grammar"
            ax.errorbar(
                rows["dose"],
                rows["value"],
                yerr=errors(rows),
                color=STYLE["gold"][0] if gold else SIZES[-len(rungs) :][i],
                marker="*" if gold else "os^Dv"[i],
                markersize=10 if gold else 5,
                linestyle="--" if gold else "-",
                capsize=2,
                label=NAMES["gold"] if gold else rung,
            )
        ax.set(xlabel="true entropy of the token after next [nats]", ylabel=LABEL[metric], ylim=(0, None))
    legend_beside(axes[-1])
    titled(figure, title)
    return figure


def differences(table: pd.DataFrame, title: Title) -> Figure:
    """What was added to the cross-entropy and to the misses, by corpus, a marker per offset.

    table: corpus, offset, metric, value, ..."""
    panels = {"cross_entropy": "cross-entropy added [nats]", "misses": "misses added (share)"}
    corpora = list(dict.fromkeys(table["corpus"]))
    figure, axes = new_axes(2, width=3.8, height=2.8, sharey=True)
    for ax, (metric, label) in zip(axes, panels.items(), strict=True):
        for offset, name, called in ((1, "ntp", "NTP, offset 1"), (2, "marginal", "marginal, offset 2")):
            rows = table[(table.metric == metric) & (table.offset == offset)].set_index("corpus").loc[corpora]
            y, (colour, marker, _) = np.arange(len(corpora)) + 0.2 * (offset - 1.5), STYLE[name]
            options = {"color": colour, "marker": marker, "linestyle": "none", "capsize": 2, "label": called}
            ax.errorbar(rows["value"], y, xerr=errors(rows), **options)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set(xlabel=label, yticks=range(len(corpora)), yticklabels=corpora)
    axes[0].invert_yaxis()
    legend_beside(axes[-1])
    titled(figure, title)
    return figure


def auroc(table: pd.DataFrame, title: Title) -> Figure:
    """AUROC of each criterion for a right arg-max at offset 2, a marker per corpus; chance drawn."""
    names = list(dict.fromkeys(table["criterion"]))
    figure, (ax,) = new_axes(1, width=6.2, height=3.4)
    for i, corpus in enumerate(dict.fromkeys(table["corpus"])):
        rows = table[table.corpus == corpus].set_index("criterion").reindex(names)
        ax.errorbar(
            rows["effect"],
            np.arange(len(names)) + 0.18 * (i - 1),
            xerr=errors(rows, "effect"),
            color=STYLE[corpus][0],
            marker=STYLE[corpus][1],
            linestyle="none",
            capsize=2,
            label=corpus,
        )
    ax.axvline(0.5, color="black", linewidth=0.8, label="chance")
    ax.set(xlabel="AUROC for a right arg-max at offset 2", yticks=range(len(names)), yticklabels=names)
    ax.invert_yaxis()
    legend_beside(ax)
    titled(figure, title)
    return figure
