"""C3: heads on a frozen backbone fall short of the marginal (a), because the layers specialise for the next token (b).
C4: training heads and backbone together helps at equal tokens (a) and at equal operations (b); a gap to the marginal remains (c).

The contrasts stand in claims.py, what was changed in them in changes.py. Reads the frames of gaps.scored only.
"""

import numpy as np
import pandas as pd

from . import claims, metrics
from .claims import CONTRASTS, DOUBLING, LABELS, OFFSET, Verdict, decide, decide_known, found_with_80, not_testable, verdict_on
from .counting import PREDICTORS
from .means import error_by_package


def seeded_effect(table: pd.DataFrame, column: str, against: pd.DataFrame | None = None) -> dict:
    """Mean of a column, minus its mean in `against` on the same positions, with its interval: seeds averaged within
    documents, documents as the unit, the variance between training seeds of either side added; where the backbone was
    pre-trained more than once, that between the means of those runs, which has the seeds' in it. Columns: document, position,
    seed, `column`, and `run` (of pre-training) where there are several. Also p (two-sided), whether every training has the
    sign, and beside `se_documents` what it would be with packages as the unit (means.error_by_package), which decides nothing.
    """
    ours = _by_document(table, column)
    theirs = _by_document(against, column) if against is not None else ours * 0
    if not ours.index.equals(theirs.index):
        raise ValueError(f"other documents on the two sides: {len(ours)} and {len(theirs)}")
    units = [_units(x) for x in (ours, theirs)]
    difference = units[0].mean(axis=1) - units[1].mean(axis=1)
    value = float(difference.mean())
    parts = [(difference.var(ddof=1) / len(difference), len(difference) - 1)]
    parts += [(x.mean().var(ddof=1) / x.shape[1], x.shape[1] - 1) for x in units if x.shape[1] > 1]
    error, freedom = metrics.combined_error(parts)
    each = [*(ours.mean() - units[1].mean().mean()), *(units[0].mean().mean() - theirs.mean())]
    interval = metrics.t_interval(value, error, freedom)
    return {
        "effect": value,
        **interval,
        "found_with_80": found_with_80(interval),
        "se_documents": float(parts[0][0] ** 0.5),
        "se_packages": error_by_package(difference),
        "se_seeds": float(sum(v for v, _ in parts[1:]) ** 0.5),
        "seeds_agree": bool((np.sign(each) == np.sign(value)).all()),
        "n_documents": len(difference),
        "n_seeds": ours.shape[1],
        "n_runs": ours.columns.get_level_values("run").nunique(),
    }


def _by_document(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """(documents, trainings) means of a column; a training is a seed of the heads on a pre-training run of their backbone."""
    runs = table["run"] if "run" in table else 0
    return table.assign(run=runs).groupby(["document", "run", "seed"])[column].mean().unstack(["run", "seed"])


def _units(trainings: pd.DataFrame) -> pd.DataFrame:
    """What the spread between trainings is taken over: pre-training runs where there are several, else seeds of the heads."""
    several = trainings.columns.get_level_values("run").nunique() > 1
    return trainings.T.groupby(level="run").mean().T if several else trainings


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
    offset 2 (positive: the heads fall short). scores: one arm's rows of gaps.scored, or of adjusted.excess, all its seeds; of the
    latter `plain_` is what it is without the adjustment."""
    rows = []
    for corpus, part in _judged(scores).groupby("corpus", sort=False):
        rows.append({"corpus": corpus, **seeded_effect(part, "excess_ce")})
        if "plain" in part:
            plain = seeded_effect(part, "plain")
            rows[-1] |= {f"plain_{name}": plain[name] for name in ("effect", "ci_low", "ci_high")}
    return pd.DataFrame(rows)


def c3a(
    effects: pd.DataFrame, backbone: str, arm: str, seeds: tuple[int, ...], behind: list[str] = (), unknown: tuple[str, ...] = ()
) -> Verdict:
    """C3a: the best head (chosen on validation) has a higher cross-entropy than the marginal in every corpus and seed. behind:
    the corpora in which it is not ahead of counting; unknown: those that the backbone does not know (marginal_claims.not_known),
    in which what heads learn of the text is held against a marginal that says nothing: they are said and not judged."""
    words = f"cross-entropy of the best frozen head ({arm}, trained on data) minus the marginal's"
    return _gap_verdict("C3a", effects, f"{backbone}, offset 2, data labels: {words}", seeds, behind, unknown)


def _gap_verdict(
    claim: str, effects: pd.DataFrame, contrast: str, seeds: tuple, behind: list[str], unknown: tuple = (), text: str = ""
) -> Verdict:
    """The verdict on a difference in nats that has to lie above 0 in every corpus: by those that the backbone knows, to `partly`
    at the most where it does not know all."""
    threshold = CONTRASTS[claim].threshold
    judged, found = decide_known(effects, unknown, lambda rows: decide(rows, threshold, bool(rows["seeds_agree"].all())))
    row = judged.sort_values("effect").iloc[0]
    text += _alone(seeds) + (f" {not_testable(unknown)}." if effects.corpus.isin(unknown).any() else "")
    text += _without_adjustment(effects) + (claims.ONE_RUN if "n_runs" in effects and effects["n_runs"].min() == 1 else "")
    verdict, why = _unless_behind(found, [corpus for corpus in behind if corpus in set(judged.corpus)])
    return verdict_on(claim, f"{contrast} [nats], worst corpus ({row.corpus})", row, seeds, verdict, _each(effects) + text + why)


def _without_adjustment(effects: pd.DataFrame) -> str:
    """What plain means are where those that decide are adjusted, in words."""
    if "plain_effect" not in effects:
        return ""
    return f" Without the adjustment: {'; '.join(f'{r.corpus} {r.plain_effect:+.3f}' for r in effects.itertuples())}."


def c3b_effects(frozen: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """C3b, by corpus and control: cross-entropy of the heads on the NTP backbone minus the control's, offset 2, data labels,
    same positions (positive: the NTP backbone's heads stay behind). Tables of gaps.scored, all their seeds and runs."""
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
        _each(worst) + why + _alone(seeds) + (claims.ONE_RUN if effects["n_runs"].min() == 1 else ""),
    )


def ahead_effects(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """C4a and C4b, by corpus: cross-entropy of their heads minus ours, offset 2, data labels, same positions (positive: ours are
    ahead). Tables with all seeds of either side: corpus, document, position, seed, log_prob, ..."""
    ours, theirs = _judged(ours), _judged(theirs)
    parts = ours.groupby("corpus", sort=False)
    return pd.DataFrame([{"corpus": c, **seeded_effect(x, "log_prob", theirs[theirs.corpus == c])} for c, x in parts])


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


def c4_ahead(
    claim: str, effects: pd.DataFrame, backbone: str, what: str, seeds: tuple[int, ...], behind: list[str] = (),
    unknown: tuple[str, ...] = (),
) -> Verdict:  # fmt: skip
    """C4a (at equal tokens) and C4b (at equal operations): joint heads are ahead of frozen ones in every corpus and seed.
    effects: of ahead_effects; behind: the corpora in which either are not ahead of counting; unknown: as in `c3a`."""
    equal = {"C4a": "tokens", "C4b": "operations"}[claim]
    words = f"cross-entropy of frozen heads minus that of joint ones at equal {equal}"
    contrast = f"{backbone}, offset 2, data labels ({what}): {words}"
    return _gap_verdict(claim, effects, contrast, seeds, behind, unknown)


def c4c(
    effects: pd.DataFrame, doubling: pd.DataFrame, backbone: str, what: str, seeds: tuple[int, ...], behind: list[str] = (),
    unknown: tuple[str, ...] = (),
) -> Verdict:  # fmt: skip
    """C4c: joint heads have a higher cross-entropy than the marginal in every corpus and seed. effects: of c3a_effects; doubling:
    the share of the gap that twice the budget closed: where that is more than DOUBLING, or not known, it remains *at this
    budget*; unknown: as in `c3a`."""
    judged = doubling[~doubling.corpus.isin(unknown)]
    settled = len(judged) > 0 and bool((judged["ci_high"] < DOUBLING).all())
    words = f"cross-entropy of joint heads minus that of the base model's marginal{'' if settled else ' at this budget'}"
    known = doubling[doubling["value"].notna()]
    text = "; ".join(f"{d.corpus}: {_interval(d)}" for d in known.itertuples()) or "not known"
    text = f" The last doubling of the budget closed of the gap: {text}."
    return _gap_verdict("C4c", effects, f"{backbone}, offset 2, data labels ({what}): {words}", seeds, behind, unknown, text)


def _alone(seeds: tuple) -> str:
    return " One training seed: exploratory." if len(seeds) == 1 else ""


def _interval(row) -> str:
    return f"{row.value:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"


def identity_z(log_prob: np.ndarray, entropy: np.ndarray, kl: np.ndarray, documents: np.ndarray) -> float:
    """z of the mean of -log q(w) - (H(m2) + KL(m2 || q)) over labels w drawn from the model: near 0 where all three are right."""
    difference = pd.Series(-log_prob - entropy - kl).groupby(documents).mean()
    return float(difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference))))


def fading(scores: pd.DataFrame, chosen: int, last: int) -> dict:
    """Paired contrast on test: cross-entropy read from the last layer minus that from the layer chosen on validation
    (positive: the information fades towards the last layer). scores: each document's mean `cross_entropy` by layer, of one
    backbone, corpus and offset."""
    last_one, best = (scores[scores.layer == layer].assign(position=0) for layer in (last, chosen))
    return metrics.paired(last_one, best, "cross_entropy") | {"n_positions": int(best["positions"].sum())}


def _each(effects: pd.DataFrame) -> str:
    return "; ".join(f"{r.corpus}: {r.effect:+.3f} [{r.ci_low:+.3f}, {r.ci_high:+.3f}] nats" for r in effects.itertuples()) + "."
