"""Statistics on tables: intervals by documents, paired contrasts, Holm, AUROC, CKA. Nothing here measures."""

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

RESAMPLES = 2000
FEWEST = 10  # documents a variate, below which nothing is adjusted


def mean_interval(values: np.ndarray, documents: np.ndarray) -> tuple[float, float, float]:
    """Mean over documents' means with its 95 % interval; see `intervals`."""
    means = pd.Series(values).groupby(documents, sort=True).mean().to_numpy()
    return tuple(float(x[0]) for x in intervals(means[:, None]))


def intervals(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of the columns of (documents, M) with their 95 % BCa bootstrap intervals over documents, each (M,).

    As scipy.stats.bootstrap(method="BCa") computes them for a mean (Efron 1987), with the same resamples for every column,
    so that thousands cost one matrix product. A constant column, or a single document, has an interval of width 0.
    """
    n, centre = len(means), means.sum(0) / len(means)
    if n < 2:
        return centre, centre, centre
    draws = resamples(n) @ means / n  # whole counts: a draw of hits that equals the mean is equal to the last bit
    below = ((draws < centre).mean(0) + (draws <= centre).mean(0)) / 2
    deviation = means - centre
    with np.errstate(invalid="ignore", divide="ignore"):
        bias = stats.norm.ppf(below)
        acceleration = (deviation**3).sum(0) / (6 * (deviation**2).sum(0) ** 1.5)
        levels = [stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in stats.norm.ppf([0.025, 0.975])]
    spread = np.isfinite(levels).all(0) & (np.ptp(means, axis=0) > 0)
    low, high = (
        np.array([np.quantile(draws[:, i], level[i]) if spread[i] else centre[i] for i in range(len(centre))]) for level in levels
    )
    return centre, low, high


@lru_cache(maxsize=8)
def resamples(n: int) -> np.ndarray:
    """(RESAMPLES, n): how often each document is drawn in each resample."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)


def summarise(table: pd.DataFrame, by: list[str], metrics: list[str]) -> pd.DataFrame:
    """Long table: one row per group and metric with value, ci_low, ci_high, n_documents, n_positions (a row is one, or so many
    as its `positions` says)."""
    rows = []
    for keys, group in table.groupby(by, sort=False, observed=True, dropna=False):
        means = group.groupby("document")[metrics].mean().to_numpy(float)
        n_positions = int(group["positions"].sum()) if "positions" in group else len(group)
        for metric, *found in zip(metrics, *intervals(means), strict=True):
            rows.append((*keys, metric, *map(float, found), len(means), n_positions))
    return pd.DataFrame(rows, columns=[*by, "metric", "value", "ci_low", "ci_high", "n_documents", "n_positions"])


def paired(first: pd.DataFrame, second: pd.DataFrame, metric: str) -> dict[str, float]:
    """Mean paired difference first - second over documents, 95 % interval, and the two-sided p of a t-test over documents."""
    keys = ["document", "position"]
    both = first[[*keys, metric]].merge(second[[*keys, metric]], on=keys, validate="one_to_one", suffixes=("_1", "_2"))
    if not len(both) == len(first) == len(second):
        raise ValueError(
            f"paired() needs the same positions on both sides: {len(first)} and {len(second)} rows, {len(both)} shared"
        )
    means = (both[f"{metric}_1"] - both[f"{metric}_2"]).groupby(both["document"]).mean()
    return _against_zero(means) | {"n_positions": len(both)}


def _against_zero(means: pd.Series) -> dict[str, float]:
    """effect, ci_low, ci_high, p, n_documents of documents' means: their mean, its interval, and the two-sided p of a t-test."""
    effect, low, high = (float(x[0]) for x in intervals(means.to_numpy()[:, None]))
    p = float(stats.ttest_1samp(means, 0.0).pvalue) if np.ptp(means) > 0 else float(effect == 0 or len(means) < 2)
    return {"effect": effect, "ci_low": low, "ci_high": high, "p": p, "n_documents": len(means)}


def paired_with(first: pd.DataFrame, second: pd.DataFrame, metric: str, everywhere: pd.DataFrame) -> dict[str, float]:
    """As `paired`, adjusted by variates: everywhere (corpus, document, position and variates, all columns but these
    three) at all eligible positions, the scored ones of `first` among them. `variance`: what is left of it, as a share."""
    keys = ["document", "position"]
    both = first[[*keys, metric]].merge(second[[*keys, metric]], on=keys, validate="one_to_one")
    difference = (both[f"{metric}_x"] - both[f"{metric}_y"]).groupby(both["document"]).mean()
    moving = everywhere.drop(columns=["corpus", "position"])
    here = everywhere.merge(both[keys], on=keys, validate="one_to_one").drop(columns=["corpus", "position"])
    if not len(first) == len(second) == len(both) == len(here):
        sides = f"{len(first)} and {len(second)} rows, {len(both)} shared, {len(here)} with variates"
        raise ValueError(f"paired_with() needs the same positions everywhere: {sides}")
    values = adjusted(difference, here.groupby("document").mean(), moving.groupby("document").mean())
    left = float(values.var() / difference.var()) if difference.var() > 0 else 1.0
    return _against_zero(values) | {"n_positions": len(both), "variance": left}


def adjusted(means: pd.Series, here: pd.DataFrame, everywhere: pd.DataFrame) -> pd.Series:
    """The regression estimator of a mean (Cochran 1977, Sampling Techniques, chapter 7) with several variates, as values by
    document whose mean and spread are those of the estimate.

    means (documents,): of what is known at the scored positions alone; here, everywhere (documents, variates): means of the
    variates over the scored and over all eligible positions. Scored positions are drawn at random from the eligible ones, so
    that here - everywhere is 0 in the mean, and means - (here - everywhere) b has the mean of `means` whatever b is: b by least
    squares, and what is left scaled up to the variance of the intercept. Fewer than FEWEST documents a variate: as they are.
    """
    moved = (here - everywhere).loc[means.index].to_numpy()
    n, design = len(moved), np.column_stack([np.ones(len(moved)), moved[:, moved.std(0) > 1e-12]])
    if n < FEWEST * (design.shape[1] - 1):
        return means
    inverse = np.linalg.pinv(design.T @ design)
    fitted = inverse @ design.T @ means.to_numpy()
    scale = np.sqrt((n - 1) / (n - design.shape[1]) * n * inverse[0, 0])
    return pd.Series(fitted[0] + scale * (means.to_numpy() - design @ fitted), means.index)


def cka(states: list[np.ndarray]) -> np.ndarray:
    """Linear CKA of every two of several (n, d), rows paired: (L, L), with the unbiased HSIC estimator (Song et al. 2012;
    Kornblith et al., arXiv 1905.00414); independent states are near 0 however wide they are, equal ones at 1."""
    grams = []
    for x in states:
        x = x.astype(float)
        x = x - x.mean(0)
        grams.append(x @ x.T)
        np.fill_diagonal(grams[-1], 0.0)
    n, sums = len(grams[0]), [k.sum(0) for k in grams]
    hsic = np.empty((len(grams), len(grams)))
    for i, (k, a) in enumerate(zip(grams, sums, strict=True)):
        for j, (m, b) in enumerate(zip(grams[: i + 1], sums, strict=False)):
            value = np.vdot(k, m) + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a @ b) / (n - 2)
            hsic[i, j] = hsic[j, i] = value / (n * (n - 3))
    own = np.sqrt(np.diag(hsic))
    return hsic / own / own[:, None]


def combined_error(parts: list[tuple[float, int]]) -> tuple[float, float]:
    """Standard error of a sum of independent estimates, and its degrees of freedom (Welch-Satterthwaite).

    parts: (variance of the estimate, degrees of freedom it was estimated with)."""
    variance = sum(v for v, _ in parts)
    spread = sum(v**2 / f for v, f in parts if f > 0)
    return float(variance**0.5), float(variance**2 / spread) if spread > 0 else np.inf


def t_interval(value: float, error: float, freedom: float) -> dict[str, float]:
    """ci_low, ci_high (95 %) and the two-sided p of a value with its standard error and degrees of freedom."""
    quantile = stats.t.ppf(0.975, freedom)
    p = float(2 * stats.t.sf(abs(value) / error, freedom)) if error > 0 else float(value == 0)
    return {"ci_low": value - quantile * error, "ci_high": value + quantile * error, "p": p}


def hardest(effects: pd.DataFrame, by: str) -> pd.DataFrame:
    """The row of each group with the largest one-sided p (effect > 0): what an intersection-union test is decided by."""
    one_sided = np.where(effects["effect"] > 0, effects["p"] / 2, 1 - effects["p"] / 2)
    one_sided = np.nan_to_num(one_sided, nan=1.0)  # of an infinite effect: no test passes it over
    return effects.loc[pd.Series(one_sided, effects.index).groupby(effects[by], sort=False).idxmax()]


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p_values)
    adjusted, running = np.empty(len(p_values)), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted.tolist()


def auroc(score: np.ndarray, correct: np.ndarray) -> float:
    """Probability that a correct position scores above a wrong one, ties half (Mann-Whitney U / n1 n0)."""
    correct = np.asarray(correct, bool)
    if correct.all() or not correct.any():
        return float("nan")
    ranks = stats.rankdata(score)
    n1 = correct.sum()
    return float((ranks[correct].sum() - n1 * (n1 + 1) / 2) / (n1 * (len(correct) - n1)))
