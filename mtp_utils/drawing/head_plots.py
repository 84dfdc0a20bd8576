"""Figures of notebooks 03 to 05: a table in, a matplotlib Figure out, in the style of style.py."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .numbers import Title
from .style import LABEL, MARKERS, NAMES, STYLE, errors, legend_beside, line, log_params, new_axes, new_grid, titled

BUDGET = {"train_tokens": "positions trained on", "operations": "multiply-adds of training"}
OFFSETS = {1: "ntp", 2: "offset2", 3: "offset3", 4: "offset4"}


def _counting(ax, controls: pd.DataFrame | None, corpus: str, metric: str, upright: bool = False, label: bool = True) -> None:
    """What counting reaches at offset 2 as lines across these axes (upright: along the values' axis). controls: corpus, name,
    metric, value; None: nothing to draw."""
    if controls is None:
        return
    rows = controls[(controls.corpus == corpus) & (controls.metric == metric)]
    _across(ax.axvline if upright else ax.axhline, rows.set_index("name")["value"], label)


def _across(draw, values: pd.Series, label: bool) -> None:
    """Each control's value as a line across, by `draw` of the axes. values: control -> value."""
    for name, value in values.items():
        colour, _, style = STYLE[name]
        draw(value, color=colour, linestyle=style, linewidth=1.2, label=NAMES.get(name, name) if label else None)


def by_layer(summary: pd.DataFrame, metric: str, title: Title, controls: pd.DataFrame | None = None) -> Figure:
    """A metric of each layer's probe (solid) and logit lens (dotted, offsets 1 and 2), a panel a corpus, a line an offset.

    summary: corpus, offset, layer, readout (`probe`, `lens`), metric, value, ...; controls: as in _counting."""
    corpora = list(dict.fromkeys(summary["corpus"]))
    figure, axes = new_axes(len(corpora), width=4.0, height=3.6, sharey=True)
    probed = summary[(summary.metric == metric) & (summary.readout == "probe")]["ci_high"].max()  # of all: they share an axis
    for ax, corpus in zip(axes, corpora, strict=True):
        here = summary[(summary.corpus == corpus) & (summary.metric == metric)]
        for offset, name in OFFSETS.items():
            rows = here[(here.offset == offset) & (here.readout == "probe")].sort_values("layer")
            if len(rows):
                line(ax, rows["layer"] + 0.05 * (offset - 2), rows, name)
            lens = here[(here.offset == offset) & (here.readout == "lens")].sort_values("layer")
            if offset <= 2:
                ax.plot(lens["layer"], lens["value"], color=STYLE[name][0], linestyle=(0, (1, 2)), linewidth=1.2)
        _counting(ax, controls, corpus, metric)
        ax.set(title=corpus, xlabel="layer (0: embeddings)", ylabel=LABEL[metric] if ax is axes[0] else "")
        if metric == "cross_entropy":
            ax.set_ylim(0, min(ax.get_ylim()[1], max(9, 1.03 * probed)))  # a lens may be far above
    legend_beside(axes[-1])
    titled(figure, title)
    return figure


def by_layer_and_backbone(summary: pd.DataFrame, metric: str, title: Title, controls: pd.DataFrame | None = None) -> Figure:
    """One offset's probes by layer, a panel a corpus, a line a backbone (`kind` names its style); controls: as in _counting."""
    corpora = list(dict.fromkeys(summary["corpus"]))
    figure, axes = new_axes(len(corpora), width=4.0, height=3.4, sharey=True)
    for ax, corpus in zip(axes, corpora, strict=True):
        for i, kind in enumerate(dict.fromkeys(summary["kind"])):
            rows = summary[(summary.corpus == corpus) & (summary.kind == kind) & (summary.metric == metric)].sort_values("layer")
            line(ax, rows["layer"] + 0.06 * (i - 1), rows, kind)
        _counting(ax, controls, corpus, metric)
        ax.set(title=corpus, xlabel="layer (0: embeddings)", ylabel=LABEL[metric] if ax is axes[0] else "")
    legend_beside(axes[-1])
    titled(figure, title)
    return figure


def similarity(table: pd.DataFrame, title: Title) -> Figure:
    """CKA of every two layers, a map a backbone. table: backbone, layer, other, cka."""
    names = list(dict.fromkeys(table["backbone"]))
    figure, axes = new_axes(len(names), width=3.3, height=3.2)
    for ax, name in zip(axes, names, strict=True):
        grid = table[table.backbone == name].pivot_table(index="layer", columns="other", values="cka")
        bar = {"cbar": True, "cbar_kws": {"label": "CKA"}} if ax is axes[-1] else {"cbar": False}
        sns.heatmap(grid, ax=ax, cmap="cividis", vmin=0, vmax=1, annot=True, fmt=".2f", annot_kws={"size": 7}, square=True, **bar)
        ax.set(title=name, xlabel="layer", ylabel="layer" if ax is axes[0] else "")
        ax.invert_yaxis()
    titled(figure, title)
    return figure


def mix_weights(table: pd.DataFrame, title: Title) -> Figure:
    """LayerMix's learned weights by layer, a panel a backbone, a line an offset. table: backbone, offset, layer, weight."""
    names = list(dict.fromkeys(table["backbone"]))
    figure, axes = new_axes(len(names), width=3.4, height=3.0, sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for offset, group in table[table.backbone == name].groupby("offset"):
            colour, marker, style = STYLE[OFFSETS[offset]]
            ax.plot(group["layer"], group["weight"], color=colour, marker=marker, linestyle=style, label=f"offset {offset}")
        ax.set(title=name, xlabel="layer (0: embeddings)", ylabel="weight" if ax is axes[0] else "", ylim=(0, 1))
    axes[-1].legend(fontsize=8)
    titled(figure, title)
    return figure


def gaps_by_arm(
    summary: pd.DataFrame, metric: str, title: Title, xlabel: str, marks: tuple[float, ...] = (0.0,), controls=None
) -> Figure:
    """A gap to the marginal for each arm, a panel a corpus, a marker an offset; lines at `marks` (zero: the marginal itself) and
    at the `controls` (as in _counting).

    summary: corpus, offset, arm, metric, value, ..."""
    corpora, arms = list(dict.fromkeys(summary["corpus"])), list(dict.fromkeys(summary["arm"]))
    offsets = sorted(set(summary["offset"]))
    figure, axes = new_axes(len(corpora), width=4.0 if len(corpora) > 1 else 7.0, height=1.0 + 0.45 * len(arms), sharey=True)
    for ax, corpus in zip(axes, corpora, strict=True):
        for i, offset in enumerate(offsets):
            rows = summary[(summary.corpus == corpus) & (summary.offset == offset) & (summary.metric == metric)]
            rows = rows.set_index("arm").reindex(arms)
            colour, marker, _ = STYLE[OFFSETS[offset]]
            ax.errorbar(rows["value"], np.arange(len(arms)) + 0.2 * (i - (len(offsets) - 1) / 2), xerr=errors(rows), color=colour,
                        marker=marker, linestyle="none", capsize=2, label=f"offset {offset}")  # fmt: skip
        for mark in marks:
            ax.axvline(mark, color="black", linewidth=0.9)
        _counting(ax, controls, corpus, metric, upright=True)
        middle = ax is axes[len(axes) // 2]  # a label below every panel is wider than the panel
        ax.set(title=corpus, xlabel=xlabel if middle else "", yticks=range(len(arms)), yticklabels=arms)
    axes[0].invert_yaxis()
    legend_beside(axes[-1])
    titled(figure, title)
    return figure


def by_size(summary: pd.DataFrame, metrics: dict[str, str], title: Title) -> Figure:
    """Metrics against size: a row a metric, a column a corpus, a line per `name` (in STYLE).

    summary: corpus, n_params, name, metric, value, ...; metrics: name of the metric -> label of its axis."""
    corpora = list(dict.fromkeys(summary["corpus"]))
    figure, grid = new_grid(len(metrics), len(corpora), width=3.6, height=3.1, sharey="row")
    for axes, (metric, label) in zip(grid, metrics.items(), strict=True):
        for ax, corpus in zip(axes, corpora, strict=True):
            for name in dict.fromkeys(summary["name"]):
                rows = summary[(summary.corpus == corpus) & (summary.name == name) & (summary.metric == metric)]
                if len(rows):
                    line(ax, rows.sort_values("n_params")["n_params"], rows.sort_values("n_params"), name)
            log_params(ax, summary["n_params"])
            ax.set(title=corpus if metric == next(iter(metrics)) else "", ylabel=label if ax is axes[0] else "")
            ax.set_ylim(bottom=0)
        legend_beside(axes[-1])
    titled(figure, title)
    return figure


def by_tokens(
    summary: pd.DataFrame, metric: str, title: Title, ylabel: str, controls: pd.DataFrame | None = None, x: str = "train_tokens"
) -> Figure:
    """A gap, or cross_entropy, against the positions heads were trained on (or, with x="operations", against multiply-adds), a
    panel a corpus, a line an arm (`name`, in STYLE); controls: as in _counting."""
    corpora = list(dict.fromkeys(summary["corpus"]))
    figure, axes = new_axes(len(corpora), width=3.6, height=3.2, sharey=True)
    for ax, corpus in zip(axes, corpora, strict=True):
        for name in dict.fromkeys(summary["name"]):
            rows = summary[(summary.corpus == corpus) & (summary.name == name) & (summary.metric == metric)]
            line(ax, rows.sort_values(x)[x], rows.sort_values(x), name)
        if metric != "cross_entropy":  # a gap
            ax.axhline(0, color="black", linewidth=0.9)
        _counting(ax, controls, corpus, metric)
        ax.set_xscale("log", base=2)
        ticks = sorted(set(summary[x] if x == "train_tokens" else summary[summary["name"] == "joint"][x]))
        ax.set_xticks(ticks, [_short(t) for t in ticks])
        ax.set(title=corpus, xlabel=BUDGET[x], ylabel=ylabel if ax is axes[0] else "")
    legend_beside(axes[-1])
    titled(figure, title)
    return figure


def pace(curves: pd.DataFrame, title: Title, counting: pd.Series) -> Figure:
    """Loss on validation against positions on the way, a panel for each thing that is changed, a line for each way, and across
    what counting reaches. curves: panel, name, positions, value, ci_low, ci_high; counting: control -> loss."""
    panels = list(dict.fromkeys(curves["panel"]))
    figure, axes = new_axes(len(panels), width=4.6, height=3.6, sharey=True)
    for ax, panel in zip(axes, panels, strict=True):
        for i, name in enumerate(dict.fromkeys(curves[curves.panel == panel]["name"])):
            rows = curves[(curves.panel == panel) & (curves.name == name) & (curves.positions > 0)]
            look = {"color": sns.color_palette("colorblind")[i], "marker": MARKERS[i], "linestyle": "-" if i % 2 else "--"}
            ax.errorbar(
                rows["positions"], rows["value"], yerr=errors(rows), markersize=4, capsize=2, linewidth=1.2, label=name, **look
            )
        _across(ax.axhline, counting, label=ax is axes[-1])
        ax.set(title=panel, xlabel="positions trained on", ylabel=LABEL["cross_entropy"] if ax is axes[0] else "")
        ax.xaxis.set_major_formatter(lambda x, _: _short(x) if x else "0")
        ax.legend(fontsize=7)
    titled(figure, title)
    return figure


def _short(n: float) -> str:
    """A number of positions or operations: 66k, 2.1M, 3.5T."""
    unit, least = next(((u, x) for u, x in (("T", 1e12), ("G", 1e9), ("M", 1e6)) if n >= x), ("k", 1e3))
    whole = unit == "k" or n >= 100 * least
    return f"{n / least:.0f}{unit}" if whole else f"{n / least:.2g}{unit}"


def against_ntp(table: pd.DataFrame, looks: dict[str, tuple[str, str]], title: Title, controls: pd.DataFrame) -> Figure:
    """Cross-entropy at offset 2 against what the next token lost, a panel a corpus, a marker for each arm in `looks`: arm ->
    (whose colour in STYLE, `open` or `full`); lines at the `controls` (as in _counting).

    table: corpus, arm, offset2, offset2_low, offset2_high, ntp, ntp_low, ntp_high (above the base model's)."""
    corpora = list(dict.fromkeys(table["corpus"]))
    figure, axes = new_axes(len(corpora), width=3.8, height=3.8)
    for ax, corpus in zip(axes, corpora, strict=True):
        for i, (arm, (name, fill)) in enumerate(looks.items()):
            row, colour = table[(table.corpus == corpus) & (table.arm == arm)].iloc[0], STYLE[name][0]
            bars = {
                f"{a}err": [[row[n] - row[f"{n}_low"]], [row[f"{n}_high"] - row[n]]] for a, n in (("x", "ntp"), ("y", "offset2"))
            }
            look = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "markersize": 8, "linestyle": "none", "elinewidth": 0.8}
            look["markerfacecolor"] = colour if fill == "full" else "white"
            ax.errorbar(row["ntp"], row["offset2"], **bars, **look, label=arm)
        _counting(ax, controls, corpus, "cross_entropy")
        shown = table[(table.corpus == corpus) & table.arm.isin(looks)]
        low, high = min(0, shown["ntp_low"].min()), max(0, shown["ntp_high"].max())
        ax.set_xscale("symlog", linthresh=0.03)
        ticks = [t for t in (-3, -0.3, -0.03, 0, 0.03, 0.3, 3) if 2 * low <= t <= 2 * high]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.set_xlim(min(1.5 * low, -0.01), max(1.5 * high, 0.01))
        ax.set(title=corpus, xlabel="NTP above base model [nats]")
        ax.set_ylabel("offset 2 [nats/token]" if ax is axes[0] else "")
    legend_beside(axes[-1])
    titled(figure, title)
    return figure
