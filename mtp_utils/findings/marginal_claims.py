"""C1 and C2 (size): the marginal beats counting, and grows with size. Reads the score tables of stored.py only."""

import numpy as np
import pandas as pd
from scipy import stats

from . import claims, metrics
from .claims import CONTRASTS, LABELS, OFFSET, Verdict, decide, decide_known, found_with_80, not_testable, verdict_on
from .counting import CONTROLS, PREDICTORS
from .means import KEYS, at_scored, error_by_package


def c1_effects(scores: pd.DataFrame, backbone: str, everywhere: pd.DataFrame | None = None) -> pd.DataFrame:
    """C1, every comparison: marginal minus control in top-1, control minus marginal in cross-entropy (both: more is better),
    on data labels at offsets 1 and 2, paired by position, by corpus, metric and control; found_with_80: the effect that as many
    documents would have told from 0 with 80 % power. scores: rows of stored.marginal_scores and control_scores; everywhere: of
    stored.variates_of, with which offset 2 is adjusted; `variance` says what is left of the plain means' variance,
    `plain_effect` with its interval what they are, and `se_packages` what the error is with packages as the unit
    (means.error_by_package)."""
    here = scores[(scores.backbone == backbone) & scores.offset.isin([1, OFFSET]) & (scores.label_source == LABELS)]
    rows = []
    for (corpus, offset), group in here.groupby(["corpus", "offset"], sort=False):
        marginal = group[group.predictor == "marginal"]
        for metric, column in (("top1", "top1"), ("cross_entropy", "log_prob")):
            for control in CONTROLS:
                theirs = group[group.predictor == control]
                plain = metrics.paired(marginal, theirs, column)
                if everywhere is None or offset != OFFSET:
                    found = plain | {"variance": 1.0}
                else:
                    known = everywhere[(everywhere.corpus == corpus) & (everywhere.predictor == control)]
                    known = known.drop(columns="predictor")
                    found = metrics.paired_with(marginal, theirs, column, known)
                    found["se_packages"] = _error_by_package(marginal, theirs, column, known)
                found |= {f"plain_{name}": plain[name] for name in ("effect", "ci_low", "ci_high")}
                row = {"corpus": corpus, "offset": offset, "metric": metric, "control": control, **found}
                rows.append(row | {"found_with_80": found_with_80(found)})
    return pd.DataFrame(rows)


def _error_by_package(first: pd.DataFrame, second: pd.DataFrame, column: str, known: pd.DataFrame) -> float:
    """means.error_by_package of the adjusted differences of a column."""
    both = first[[*KEYS, column]].merge(second[[*KEYS, column]], on=KEYS)
    means = (both[f"{column}_x"] - both[f"{column}_y"]).groupby(both["document"]).mean()
    return error_by_package(at_scored(means, both, known))


def not_known(effects: pd.DataFrame) -> list[str]:
    """Corpora on which a backbone loses to the trigram at offset 1, its own task: they test no claim about what it knows.
    effects: of `c1_effects`."""
    own = effects[(effects.offset == 1) & (effects.metric == "cross_entropy") & (effects.control == PREDICTORS[-1])]
    return own[own["effect"] <= 0]["corpus"].tolist()


def c1(effects: pd.DataFrame, backbone: str, seeds: tuple[int, ...] = (0,)) -> Verdict:
    """C1 holds in a corpus when the marginal beats *every* control in *both* metrics: the least certain of the eight comparisons
    decides (an intersection-union test), then Holm over corpora.

    A corpus on which the backbone loses to the trigram at its own task, the next token, cannot test the claim: the others
    decide, to `partly` at the most; where there are none it is inconclusive.
    """
    unknown = not_known(effects)
    effects = effects[effects.offset == OFFSET]
    threshold = CONTRASTS["C1"].threshold
    judged, verdict = decide_known(effects, unknown, lambda rows: decide(metrics.hardest(rows, "corpus"), threshold))
    hardest = metrics.hardest(effects[effects.metric == "top1"], "corpus")
    row = hardest[hardest.corpus.isin(judged.corpus)].sort_values("effect").iloc[0]
    text = "; ".join(
        f"{r.corpus}: top-1 {r.effect:+.3f} [{r.ci_low:+.3f}, {r.ci_high:+.3f}] over the {r.control.replace('_', ' ')}"
        for r in hardest.itertuples()
    )
    least = judged[judged.metric == "cross_entropy"]["effect"].min()
    where = " where it is judged" if unknown else ""
    text += f"; in cross-entropy ahead of every control by at least {least:.2f} nats{where}" if least > 0 else ""
    if row.variance < 1:
        unadjusted = f"{row.plain_effect:+.3f} [{row.plain_ci_low:+.3f}, {row.plain_ci_high:+.3f}]"
        text += f". Without the adjustment for which positions were scored, {row.corpus} is {unadjusted}"
    left_out = not_testable(unknown)
    text += f". {left_out}" if unknown else ""
    text += f".{claims.ONE_RUN.rstrip('.')}"
    return verdict_on(
        "C1",
        f"{backbone}, offset 2, data labels: top-1 of the marginal minus that of the control hardest to beat, worst corpus "
        f"({row.corpus}: {row.control.replace('_', ' ')}); decided on all four controls, top-1 and cross-entropy"
        + (f"; {left_out[0].lower()}{left_out[1:]}" if unknown else ""),
        row,
        seeds,
        verdict,
        text + ".",
    )


def slopes(
    scores: pd.DataFrame, n_params: dict[str, int], runs: dict[str, tuple[str, int]], resamples: int = 1000
) -> pd.DataFrame:
    """C2 (size): least-squares slope of cross-entropy on log4(parameters), by corpus, in nats per factor of four.

    scores: the marginal's rows, offset 2, data labels, same positions for every backbone. n_params: of each rung;
    runs: backbone -> (rung, seed). Rungs with several runs enter by their mean. The interval adds two variances: of the
    documents (bootstrap, paired over backbones) and of the training run (pooled over the rungs with several runs,
    carried through the regression's weights). se_packages decides nothing: means.error_by_package.
    """
    rungs = list(n_params)
    x = np.log([n_params[r] for r in rungs]) / np.log(4)
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    rng = np.random.default_rng(0)
    rows = []
    for corpus, group in scores.groupby("corpus", sort=False):
        ce = -group.groupby(["document", "backbone"])["log_prob"].mean().unstack()  # (documents, backbones)
        by_rung = {r: [b for b, (rung, _) in runs.items() if rung == r and b in ce] for r in rungs}
        means = np.stack([ce[by_rung[r]].mean(axis=1) for r in rungs], 1)  # (documents, rungs)
        slope = float(weights @ means.mean(0))
        draws = [weights @ means[rng.integers(len(means), size=len(means))].mean(0) for _ in range(resamples)]
        repeated = [r for r in rungs if len(by_rung[r]) > 1]
        freedom = sum(len(by_rung[r]) - 1 for r in repeated)
        run_variance = sum(ce[by_rung[r]].mean().var(ddof=1) * (len(by_rung[r]) - 1) for r in repeated) / max(freedom, 1)
        between = float(sum(w**2 * run_variance / len(by_rung[r]) for w, r in zip(weights, rungs, strict=True)))
        error, effective = metrics.combined_error([(np.var(draws, ddof=1), len(ce) - 1), (between, freedom)])
        per_seed = _slopes_by_seed(ce, runs, n_params, repeated)
        interval = metrics.t_interval(slope, error, effective)
        rows.append(
            {
                "corpus": corpus,
                "slope": slope,
                **interval,
                "found_with_80": found_with_80(interval),
                "se_documents": float(np.std(draws, ddof=1)),
                "se_packages": error_by_package(pd.Series(means @ weights, ce.index)),
                "se_runs": between**0.5,
                "run_sd": float(run_variance**0.5),
                "several": ", ".join(repeated),
                "effect": -slope,
                "n_documents": len(ce),
                "seeds_agree": all(np.sign(s) == np.sign(slope) for s in per_seed),
                "n_runs": len(ce.columns),
            }
        )
    return pd.DataFrame(rows)


def _slopes_by_seed(ce: pd.DataFrame, runs: dict, n_params: dict[str, int], repeated: list[str]) -> list[float]:
    """The slope over the rungs that have several runs, one seed at a time."""
    found = []
    for seed in sorted({s for _, s in runs.values()}):
        members = [(rung, b) for b, (rung, s) in runs.items() if s == seed and rung in repeated and b in ce]
        if len(members) >= 2:
            found.append(float(np.polyfit([np.log(n_params[r]) for r, _ in members], [ce[b].mean() for _, b in members], 1)[0]))
    return found


def c2_size(table: pd.DataFrame, seeds: tuple[int, ...]) -> Verdict:
    """C2 (size): cross-entropy of the marginal at offset 2 falls with size, in every corpus and every seed."""
    effects = table.assign(ci_high=-table["ci_low"], ci_low=-table["ci_high"])
    row = effects.sort_values("effect").iloc[0]  # nan, where nothing can be said, comes last
    text = "; ".join(
        f"{r.corpus}: {-r.effect:+.3f} [{-r.ci_high:+.3f}, {-r.ci_low:+.3f}] nats per x4" for r in effects.itertuples()
    )
    several = table["several"].iloc[0] or "none"
    text += f". Rungs with several training seeds: {several}"
    return verdict_on(
        "C2 (size)",
        f"offset 2, data labels: fall of the marginal's cross-entropy per factor 4 in parameters, worst corpus ({row.corpus})",
        row,
        seeds,
        decide(effects, CONTRASTS["C2 (size)"].threshold, bool(effects["seeds_agree"].all())),
        text + ".",
    )


def criteria(scores: pd.DataFrame, resamples: int = 1000) -> pd.DataFrame:
    """AUROC, within each corpus, of what is known before the label is seen, for a right arg-max at offset 2.

    scores: the marginal's exact rows on data labels of one backbone, offsets 1 and 2. One row per corpus and criterion with
    its interval (bootstrap over documents)."""
    rng = np.random.default_rng(0)
    rows = []
    keys = ["corpus", "document", "position"]
    ntp = scores.loc[scores.offset == 1, [*keys, "entropy"]].rename(columns={"entropy": "ntp_entropy"})
    scores = scores[scores.offset == OFFSET].merge(ntp, on=keys, validate="one_to_one")
    for corpus, group in scores.groupby("corpus", sort=False):
        chosen = {
            "low H(m2)": -group["entropy"],
            "low I(x1;x2|x)": -group["mutual_information"],
            "high max m2": group["max_prob"],
            "low NTP entropy": -group["ntp_entropy"],
        }
        correct = group["top1"].to_numpy() > 0.5
        members = list(group.groupby("document").indices.values())
        samples = [np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]) for _ in range(resamples)]
        for name, values in chosen.items():
            if values.isna().any():  # not known where the marginal is no exact sum
                continue
            score = values.to_numpy()
            value = metrics.auroc(score, correct)
            draws = np.array([metrics.auroc(score[s], correct[s]) for s in samples])
            error = float(np.nanstd(draws, ddof=1))
            low, high = (float(np.nanquantile(draws, level)) for level in (0.025, 0.975))
            row = {"corpus": corpus, "criterion": name, "effect": value, "ci_low": low, "ci_high": high}
            row["p"] = float(2 * stats.norm.sf(abs(value - 0.5) / error)) if error > 0 else np.nan
            rows.append(row | {"n_documents": len(members), "n_positions": len(group)})
    return pd.DataFrame(rows)
