"""C3: heads on a frozen backbone fall short of the marginal (a), because the layers specialise for the next token (b).
C4: training heads and backbone together helps, and a gap to the base model's marginal remains.

The contrasts stand in claims.py. Reads the frames of gaps.scored only.
"""

import numpy as np
import pandas as pd

from . import metrics
from .claims import CONTRASTS, DOUBLING, LABELS, OFFSET, Verdict, decide, verdict_on
from .ngrams import PREDICTORS


def seeded_effect(table: pd.DataFrame, column: str, against: pd.DataFrame | None = None) -> dict:
    """Mean of a column, minus its mean in `against` on the same positions, with its interval: seeds averaged within
    documents, documents as the unit, the variance between training seeds of either side added. Columns: document, position,
    seed, `column`. Also p (two-sided), and whether every seed has the sign.
    """
    ours = _by_document(table, column)
    theirs = _by_document(against, column) if against is not None else ours * 0
    if not ours.index.equals(theirs.index):
        raise ValueError(f"other documents on the two sides: {len(ours)} and {len(theirs)}")
    difference = ours.mean(axis=1) - theirs.mean(axis=1)
    value = float(difference.mean())
    parts = [(difference.var(ddof=1) / len(difference), len(difference) - 1)]
    parts += [(x.mean().var(ddof=1) / x.shape[1], x.shape[1] - 1) for x in (ours, theirs) if x.shape[1] > 1]
    error, freedom = metrics.combined_error(parts)
    each = [*(ours.mean() - theirs.mean().mean()), *(ours.mean().mean() - theirs.mean())]
    return {
        "effect": value,
        **metrics.t_interval(value, error, freedom),
        "se_documents": float(parts[0][0] ** 0.5),
        "se_seeds": float(sum(v for v, _ in parts[1:]) ** 0.5),
        "seeds_agree": bool((np.sign(each) == np.sign(value)).all()),
        "n_documents": len(difference),
        "n_seeds": ours.shape[1],
    }


def _by_document(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """(documents, seeds) means of a column."""
    return table.groupby(["document", "seed"])[column].mean().unstack()


def _judged(table: pd.DataFrame) -> pd.DataFrame:
    """The rows a contrast is about: offset 2, data labels."""
    return table[(table.offset == OFFSET) & (table.label_source == LABELS)]


def behind_counting(on_validation: pd.DataFrame) -> list[str]:
    """The corpora in which heads are not ahead of every counting control on validation: columns corpus, heads, each control."""
    behind = on_validation["heads"] >= on_validation[list(PREDICTORS)].min(axis=1)
    return on_validation[behind]["corpus"].tolist()


def _unless_behind(verdict: str, behind: list[str]) -> tuple[str, str]:
    """(verdict, what is said with it): inconclusive, by rule, where heads lose to counting, for they prove nothing."""
    if not behind:
        return verdict, ""
    return "inconclusive", f" By rule: on validation the heads are not ahead of counting in {', '.join(behind)}."


def c3a_effects(scores: pd.DataFrame) -> pd.DataFrame:
    """C3a, by corpus: cross-entropy of the heads minus the marginal's on the same positions, data labels, data-trained heads,
    offset 2 (positive: the heads fall short). scores: one arm's rows of gaps.scored, all its seeds."""
    parts = _judged(scores).groupby("corpus", sort=False)
    return pd.DataFrame([{"corpus": c, **seeded_effect(part, "excess_ce")} for c, part in parts])


def c3a(effects: pd.DataFrame, backbone: str, arm: str, seeds: tuple[int, ...], behind: list[str] = ()) -> Verdict:
    """C3a: the best head (chosen on validation) has a higher cross-entropy than the marginal in every corpus and seed. behind:
    the corpora in which it is not ahead of counting."""
    row = effects.sort_values("effect").iloc[0]
    verdict, why = _unless_behind(decide(effects, CONTRASTS["C3a"].threshold, bool(effects["seeds_agree"].all())), behind)
    return verdict_on(
        "C3a",
        f"{backbone}, offset 2, data labels: cross-entropy of the best frozen head ({arm}, trained on data) minus the "
        f"marginal's [nats], worst corpus ({row.corpus})",
        row,
        seeds,
        verdict,
        _each(effects) + why,
    )


def c3b_effects(frozen: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """C3b, by corpus and control: cross-entropy of the heads on the NTP backbone minus the control's, offset 2, data labels,
    same positions (positive: the NTP backbone's heads stay behind). Tables of gaps.scored, all their seeds."""
    rows = []
    for control, other in controls.items():
        for corpus, ours in _judged(frozen).groupby("corpus", sort=False):
            theirs = _judged(other)
            rows.append(
                {"corpus": corpus, "control": control, **seeded_effect(theirs[theirs.corpus == corpus], "log_prob", ours)}
            )
    return pd.DataFrame(rows)


def c3b(effects: pd.DataFrame, backbone: str, arm: str, seeds: tuple[int, ...], behind: list[str] = ()) -> Verdict:
    """C3b: in every corpus the heads on the NTP backbone stay behind *every* control (the least certain one decides, an
    intersection-union test), then Holm over corpora. behind: the corpora in which they are not ahead of counting."""
    worst = metrics.hardest(effects, "corpus")
    row = worst.sort_values("effect").iloc[0]
    verdict, why = _unless_behind(decide(worst, CONTRASTS["C3b"].threshold, bool(effects["seeds_agree"].all())), behind)
    return verdict_on(
        "C3b",
        f"{backbone}, offset 2, data labels: cross-entropy of frozen heads ({arm}) minus that of the same heads on the twin "
        f"pre-trained for MTP and of the model trained on offset 2 alone [nats], the less certain of the two, worst corpus "
        f"({row.corpus}, {row.control})",
        row,
        seeds,
        verdict,
        _each(worst) + why + " One pre-training run of each backbone: the spread between those is not in the interval.",
    )


def c4_effects(frozen: pd.DataFrame, joint: pd.DataFrame, longer: pd.DataFrame, as_long: bool = True) -> pd.DataFrame:
    """C4, by corpus, its three parts, each positive where it holds [nats, offset 2, data labels, same positions]: joint heads
    ahead of frozen ones at equal tokens; ahead of frozen ones trained on more tokens; behind the base model's marginal.
    as_long: whether those on more tokens took at least as long as the joint run. Tables of gaps.scored, all their seeds."""
    rows, (frozen, joint, longer) = [], map(_judged, (frozen, joint, longer))
    for corpus, ours in joint.groupby("corpus", sort=False):
        parts = {
            "helps at equal tokens": seeded_effect(ours, "log_prob", frozen[frozen.corpus == corpus]),
            "helps at equal seconds" if as_long else "helps against four times the tokens": seeded_effect(
                ours, "log_prob", longer[longer.corpus == corpus]
            ),
            "a gap remains": seeded_effect(ours, "excess_ce"),
        }
        rows += [{"corpus": corpus, "part": part, **found} for part, found in parts.items()]
    return pd.DataFrame(rows)


def shares_closed(ours: pd.DataFrame, against: pd.DataFrame) -> pd.DataFrame:
    """What our gap is smaller than another's, as a share of it: 1 - gap(ours) / gap(against) by corpus, offset 2, data labels,
    with its 95 % interval (bootstrap over documents, and over the seeds of either side); nan where the interval of the gap it
    is held against does not lie above 0. On data it may exceed 1."""
    rows, ours, against = [], _judged(ours), _judged(against)
    for corpus, part in ours.groupby("corpus", sort=False):
        mine, theirs = (_by_document(x, "excess_ce") for x in (part, against[against.corpus == corpus]))
        if not mine.index.equals(theirs.index):
            raise ValueError(f"other documents on the two sides: {len(mine)} and {len(theirs)}")
        rng, documents = np.random.default_rng(0), metrics.resamples(len(mine))
        gaps = []
        for table in (mine, theirs):
            means, n = documents @ table.to_numpy() / len(table), table.shape[1]  # (draws, seeds)
            centre = means.mean(1, keepdims=True)
            means = centre + (means - centre) * (n / max(1, n - 1)) ** 0.5  # few seeds drawn again vary too little
            gaps.append(np.take_along_axis(means, rng.integers(n, size=means.shape), 1).mean(1))
        low = np.quantile(gaps[1], 0.025)
        value, interval = np.nan, (np.nan, np.nan)
        if low > 0:
            value = 1 - mine.to_numpy().mean() / theirs.to_numpy().mean()
            interval = np.quantile(1 - gaps[0] / gaps[1], [0.025, 0.975])
        rows.append({"corpus": corpus, "value": value, "ci_low": interval[0], "ci_high": interval[1], "n_documents": len(mine)})
    return pd.DataFrame(rows)


def c4(effects: pd.DataFrame, shares: pd.DataFrame, doubling: pd.DataFrame, backbone: str, arm: str, seeds: tuple) -> Verdict:
    """C4 holds in a corpus when all three parts of `c4_effects` do (the least certain decides), then Holm over corpora.

    shares: of the frozen gap, at equal tokens; doubling: of the joint gap, what twice the tokens closed. Where that is more
    than DOUBLING, or not known, the gap remains *at this budget*.
    """
    worst = metrics.hardest(effects, "corpus")
    row = worst.sort_values("effect").iloc[0]
    settled = bool((doubling["ci_high"] < DOUBLING).all())
    second = next(part for part in effects["part"] if part not in ("helps at equal tokens", "a gap remains"))
    text = "; ".join(
        f"{s.corpus}: "
        + (f"{_interval(s)} of the frozen gap closed" if s.value == s.value else "no gap of the frozen heads is above 0")
        + (f", the last doubling of the tokens closed {_interval(d)} of what was left" if d.value == d.value else "")
        for s, d in zip(shares.itertuples(), doubling.itertuples(), strict=True)
    )
    return verdict_on(
        "C4",
        f"{backbone}, offset 2, data labels ({arm}): joint heads ahead of frozen ones at equal tokens and "
        f"{second.removeprefix('helps ')}, and behind the base model's marginal{'' if settled else ' at this budget'} [nats]; "
        f"the least certain of the three, worst corpus ({row.corpus}: {row.part})",
        row,
        seeds,
        decide(worst, CONTRASTS["C4"].threshold, bool(effects["seeds_agree"].all())),
        text + ".",
    )


def _interval(row) -> str:
    return f"{row.value:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"


def identity_z(log_prob: np.ndarray, entropy: np.ndarray, kl: np.ndarray, documents: np.ndarray) -> float:
    """z of the mean of -log q(w) - (H(m2) + KL(m2 || q)) over labels w drawn from the model: near 0 where all three are right."""
    difference = pd.Series(-log_prob - entropy - kl).groupby(documents).mean()
    return float(difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference))))


def fading(scores: pd.DataFrame, chosen: int, last: int) -> dict:
    """Paired contrast on test: cross-entropy read from the last layer minus that from the layer chosen on validation
    (positive: the information fades towards the last layer). scores: rows of one backbone, corpus and offset, data labels,
    probes on single layers."""
    parts = [scores[scores.features == str(layer)] for layer in (chosen, last)]
    return metrics.paired(parts[0], parts[1], "log_prob")


def _each(effects: pd.DataFrame) -> str:
    return "; ".join(f"{r.corpus}: {r.effect:+.3f} [{r.ci_low:+.3f}, {r.ci_high:+.3f}] nats" for r in effects.itertuples()) + "."
