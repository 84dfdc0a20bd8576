"""What was measured of decoding, summarised: rates with their intervals, speeds, and what tells acceptance beforehand."""

import numpy as np
import pandas as pd
from scipy import stats

from ..base.records import Arrays
from ..decoding.rates import speed_up
from . import metrics


def acceptance_summary(passes: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Long table with intervals: `a` and `stand_alone` by offset, as `decoding.acceptance`, and `length`, the mean acceptance
    length (offset 0). Ratios of sums over documents, which are what the bootstrap draws."""
    whole, rows = passes[~passes["cut"]], []
    for keys, part in whole.groupby(by, sort=False):
        first = (part["offset"] == 2).astype(float)  # one row of each pass
        found = {("length", 0): (part["accepted"].astype(float) + first, first)}
        for k in sorted(set(part["offset"])):
            here = part["drafted"] & (part["offset"] == k)
            known = here & part["agrees"].notna()
            found |= {("a", k): (part["accepted"] & here, here), ("stand_alone", k): ((part["agrees"] == 1) & known, known)}
        for (metric, offset), (numerator, denominator) in found.items():
            counts = pd.DataFrame({"x": numerator.astype(float), "n": denominator.astype(float)}).groupby(part["document"]).sum()
            interval = ratio_interval(counts["x"].to_numpy(), counts["n"].to_numpy())
            rows.append((*keys, offset, metric, *interval, int((counts["n"] > 0).sum()), int(counts["n"].sum())))
    return pd.DataFrame(rows, columns=[*by, "offset", "metric", "value", "ci_low", "ci_high", "n_documents", "n_positions"])


def ratio_interval(x: np.ndarray, n: np.ndarray) -> tuple[float, float, float]:
    """sum x / sum n of documents (D,), and its 95 % interval from drawing documents."""
    if not n.sum():
        return (np.nan,) * 3
    draws = metrics.resamples(len(x))
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.nanquantile((draws @ x) / (draws @ n), [0.025, 0.975])
    return float(x.sum() / n.sum()), float(low), float(high)


def ways_of(seconds: Arrays) -> list[str]:
    """The ways of decoding whose seconds were stored."""
    return [name.removesuffix(".seconds") for name in seconds.values if name.endswith(".seconds")]


def speed_table(seconds: Arrays, backbone: str, corpus: str, new_tokens: int) -> pd.DataFrame:
    """One row a way and prompt: passes_a_token of the base model, the prompt's among them; speed as a ratio to `greedy` and to
    `generate greedy` (with a KV cache, same prompt); same (as `generate greedy`)."""
    values, rows = seconds.values, []
    for way in ways_of(seconds):
        ratios = {f"{kind.replace(' ', '_')}_ratio": values[f"{kind}.seconds"] for kind in ("greedy", "generate greedy")}
        columns = {name: base / values[f"{way}.seconds"] for name, base in ratios.items()}
        columns |= {"passes_a_token": values[f"{way}.passes"] / new_tokens, "same": values[f"{way}.same"]}
        rows.append(pd.DataFrame(columns).assign(way=way, prompt=range(len(values[f"{way}.seconds"]))))
    return pd.concat(rows, ignore_index=True).assign(backbone=backbone, corpus=corpus)


def costs(seconds: Arrays, way: str, length: float) -> dict[str, float]:
    """Of a way of ours: `verify` and `draft`, mean seconds a pass in those of a plain pass, and so the tokens a pass that are
    `needed` to be as fast as plain decoding; `length`, as given: its mean acceptance length, found on other passes; and what
    these predict of its speed, `predicted` (decoding.speed_up)."""
    values = seconds.values
    draft, verify, plain = (
        float(values[f"{w}.{part}"].sum() / (values[f"{w}.passes"] - 1).sum())  # the first pass is the prompt's
        for w, part in ((way, "draft"), (way, "verify"), ("greedy", "verify"))
    )
    predicted = speed_up(length, verify, draft, plain)
    parts = {"verify": verify / plain, "draft": draft / plain}
    return {"length": length, "needed": sum(parts.values()), **parts, "predicted": predicted}


def against(ratio: pd.DataFrame, ours: str, other: str) -> tuple[float, float, float]:
    """How many times as fast `ours` is as `other`: geometric mean over prompts and its 95 % interval. ratio: a row a prompt, a
    column a way."""
    gain = np.log(ratio[ours] / ratio[other]).to_numpy()
    return tuple(float(np.exp(x)) for x in metrics.mean_interval(gain, np.arange(len(gain))))


def link(cells: dict, columns: tuple[str, ...]) -> tuple[pd.DataFrame, np.ndarray]:
    """Rank correlation, over the kinds of heads, of each column with acceptance; (a table by cell, and the draws (D, columns) of
    its mean over the cells, from drawing documents, the same ones in every cell of a corpus).

    cells: (backbone, corpus) -> name -> (heads, documents): `accepted` and `passes`, counts, and each of the columns.
    """
    rows, total = [], 0.0
    for (backbone, corpus), of in cells.items():
        n = of["accepted"].shape[1]
        weights = np.vstack([np.ones(n), metrics.resamples(n)])
        with np.errstate(invalid="ignore", divide="ignore"):
            acceptance = (weights @ of["accepted"].T) / (weights @ of["passes"].T)  # (1 + D, heads)
            found = [_spearman(weights @ of[column].T, acceptance) for column in columns]
        rows.append({"backbone": backbone, "corpus": corpus} | {c: x[0] for c, x in zip(columns, found, strict=True)})
        total = total + np.stack(found, 1) / len(cells)
    return pd.DataFrame(rows), total[1:]


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row of (D, n) with the same row of the other."""
    a, b = (stats.rankdata(x, axis=1) for x in (a, b))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
