"""C2 (data): near-deterministic against open-ended kinds of text on one model."""

import numpy as np
import pandas as pd

from . import claims, metrics
from .claims import CONTRASTS, LABELS, OFFSET, Verdict, decide, found_with_80, verdict_on
from .counting import PREDICTORS
from .means import at_scored, error_by_package

TRANSLATIONS = ("translation", "catalogues")  # whose continuation is nearly given by the text before; by our grammar, by people


def between_kinds(scores: pd.DataFrame, backbone: str, everywhere: pd.DataFrame | None = None) -> pd.DataFrame:
    """Translations against each open-ended kind of text on one model, offset 2, data labels: the difference of means over
    documents with its 95 % interval (Welch). `top1`: accuracy; `excess`: minus what the second token costs more than the first,
    CE1 - CE2 in nats; `lead`: top-1 over the skip-trigram's. `se`: of the effect; `se_packages`: with packages as the unit of
    text that is theirs (means.error_by_package). scores: as `c1_effects`, and everywhere too, with which the means of either
    side are adjusted; `plain_` is what they are without."""
    here = scores[(scores.backbone == backbone) & (scores.label_source == LABELS) & scores.offset.isin([1, OFFSET])]
    means = here.groupby(["corpus", "document", "predictor", "offset"], sort=False)[["top1", "log_prob"]].mean().unstack([2, 3])
    top1, log_prob = means["top1"], means["log_prob"]["marginal"]
    measures = {
        "top1": top1["marginal", OFFSET],
        "excess": log_prob[OFFSET] - log_prob[1],
        "lead": top1["marginal", OFFSET] - top1[PREDICTORS[-1], OFFSET],
    }
    rows = []
    for name, values in measures.items():
        plain = {corpus: x.droplevel("corpus") for corpus, x in values.groupby("corpus", sort=False)}
        of = plain if everywhere is None else {corpus: _adjusted(x, here, everywhere, corpus) for corpus, x in plain.items()}
        for near in (corpus for corpus in TRANSLATIONS if corpus in of):
            for other in (corpus for corpus in of if corpus not in TRANSLATIONS):
                row = {"kind": near, "against": other, "measure": name} | _welch(of[near], of[other])
                plainly = _welch(plain[near], plain[other])
                rows.append(row | {f"plain_{x}": plainly[x] for x in ("effect", "ci_low", "ci_high")})
    return pd.DataFrame(rows)


def _adjusted(means: pd.Series, scored: pd.DataFrame, everywhere: pd.DataFrame, corpus: str) -> pd.Series:
    """Documents' means, adjusted by what the backbone and the trigram say everywhere."""
    known = everywhere[(everywhere.corpus == corpus) & (everywhere.predictor == PREDICTORS[-1])]
    return at_scored(means, scored, known.drop(columns="predictor"))


def _welch(ours: pd.Series, theirs: pd.Series) -> dict[str, float]:
    """The difference of two means over documents, with its interval, errors and what would have been found."""
    sides = ours, theirs
    parts = [(x.var(ddof=1) / len(x), len(x) - 1) for x in sides]
    effect, (error, freedom) = float(ours.mean() - theirs.mean()), metrics.combined_error(parts)
    row = {"effect": effect, **metrics.t_interval(effect, error, freedom), "se": error}
    clustered = [error_by_package(x) for x in sides]
    variances = [v if np.isnan(e) else e**2 for e, (v, _) in zip(clustered, parts, strict=True)]
    row |= {"se_packages": np.nan if np.isnan(clustered).all() else sum(variances) ** 0.5}
    return row | {"n_documents": len(ours) + len(theirs), "found_with_80": found_with_80(row)}


def c2_data(kinds: pd.DataFrame, backbone: str, seeds: tuple[int, ...] = (0,), unknown: tuple[str, ...] = ()) -> Verdict:
    """C2 (data): against every open-ended kind of text, translations (by people, where there are any) cost less in excess and
    lead further over counting: the less certain of the two decides, then Holm over the open-ended kinds. kinds: of
    `between_kinds`; unknown: corpora that the backbone does not know (`not_known`), which the text says."""
    judged = next(kind for kind in reversed(TRANSLATIONS) if kind in set(kinds["kind"]))
    effects = kinds[(kinds.kind == judged) & kinds.measure.isin(["excess", "lead"])]
    worst = metrics.hardest(effects, "against")
    row = worst.sort_values("effect").iloc[0]
    said = {"excess": "less excess by", "lead": "further lead by"}
    each = (f"{r.against}: {said[r.measure]} {r.effect:+.3f} [{r.ci_low:+.3f}, {r.ci_high:+.3f}]" for r in effects.itertuples())
    text = f"{judged} (above 0: easier) against " + "; ".join(each) + "."
    if "plain_effect" in effects and not np.allclose(effects["effect"], effects["plain_effect"]):
        plain = "; ".join(f"{r.against}: {r.measure} {r.plain_effect:+.3f}" for r in effects.itertuples())
        text += f" Without the adjustment for which positions were scored: {plain}."
    text += claims.ONE_RUN
    if judged in unknown:
        text += f" The backbone loses to the trigram on {judged} at offset 1, its own task: to it they are not given."
    return verdict_on(
        "C2 (data)",
        f"{backbone}, offset 2, data labels: {judged} against open-ended text: how much less excess CE2 - CE1 [nats], how "
        f"much more top-1 over the skip-trigram's; the less certain of the two, worst kind ({row.against}: {row.measure})",
        row,
        seeds,
        decide(worst, CONTRASTS["C2 (data)"].threshold),
        text,
    )
