"""The contrast that decides each claim, the rule that makes a verdict of it, and the verdict. Reads tables only.

What a contrast compares is computed in marginal_claims.py (C1, C2 size), kinds.py (C2 data) and head_claims.py (C3, C4).
Everything a notebook shows beyond these contrasts is exploratory.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import metrics
from .changes import CHANGES

ALPHA = 0.05
OFFSET = 2
LABELS = "data"
POWER = 1.96 + 0.84  # standard errors that an effect needs for 80 % power at a two-sided 5 %
DOUBLING = 0.10  # C4c: a last doubling of the tokens that closes more of the gap than this leaves it open whether one remains


@dataclass(frozen=True)
class Contrast:
    """What decides a claim: the quantity, which has to lie above the threshold, its metric, the corpora, and when
    that was fixed; changes.py has what was changed since, after results had been seen."""

    quantity: str
    metric: str
    needs: str
    fixed: str
    corpora: str = "every corpus"
    threshold: float = 0.0


COUNTING = "heads that are ahead of unigram, skip-bigram and skip-trigram on validation in every corpus, else it is inconclusive"
COUNTING_KNOWN = COUNTING.replace("every corpus", "every corpus judged")
FEW = "at four positions of each document (the run's largest backbone, if its sum is exact; else one), adjusted for which"
KNOWN_CORPORA = "every corpus that the backbone knows (ahead of the trigram at offset 1; else partly at the most)"
CONTRASTS = {
    "C1": Contrast(
        "the marginal's top-1 minus each control's (unigram, skip-bigram, skip-trigram, cache n-gram model), and each control's "
        "cross-entropy minus the marginal's, on the last rung; at four positions of each document, one where no sum is exact",
        "top-1 and cross-entropy",
        "all eight comparisons in a corpus (the least certain one decides); a corpus on which the backbone loses to the trigram "
        "at offset 1, its own task, is not judged, and the verdict is partly at the most then",
        "2026-11-24",
    ),
    "C2 (size)": Contrast(
        "fall of the marginal's cross-entropy per factor four in parameters (least-squares slope, its interval with the spread "
        "between documents and between training runs)",
        "cross-entropy [nats]",
        "the same sign in every training seed; at least three sizes",
        "2026-11-24",
    ),
    "C2 (data)": Contrast(
        "translations against each open-ended kind of text on the last rung: how much less the token after next costs beyond "
        "the next one (CE2 - CE1), and how much further the marginal's top-1 is ahead of the skip-trigram's",
        "cross-entropy [nats], top-1",
        f"both, against every open-ended kind (the less certain one decides), {FEW}",
        "2026-11-24",
        corpora="translations by people where there are any, else the grammar's",
    ),
    "C3a": Contrast(
        "cross-entropy of the best kind of frozen heads (chosen on validation, trained on data) minus the marginal's, on the "
        "last rung",
        "cross-entropy [nats]",
        f"the same sign in every training seed of the heads, {FEW}; the kind chosen on text of corpora that the backbone knows; "
        f"{COUNTING_KNOWN}",
        "2026-11-25",
        corpora=KNOWN_CORPORA,
    ),
    "C3b": Contrast(
        "cross-entropy of heads on the frozen NTP backbone minus that of the same kind on its twin pre-trained for several "
        "tokens, and minus that of the model trained on offset 2 alone",
        "cross-entropy [nats]",
        f"both (the less certain one decides), with the same sign in every training seed of the heads and every pre-training "
        f"run; {COUNTING}",
        "2026-11-25",
    ),
    "C4a": Contrast(
        "cross-entropy of frozen heads minus that of heads trained together with their backbone, on as many positions, on the "
        "last rung or the one that the profile names",
        "cross-entropy [nats]",
        f"the same sign in every training seed; rates settled at the smallest budget and tried again at each larger one, as "
        f"often on either side; {COUNTING_KNOWN}",
        "2026-11-26",
        corpora=KNOWN_CORPORA,
    ),
    "C4b": Contrast(
        "cross-entropy of frozen heads minus that of heads trained together with their backbone, in as many operations: multiply-"
        "adds of forward and backward passes, those that make the frozen heads' states among them, on the rung of C4a",
        "cross-entropy [nats]",
        f"as C4a; {COUNTING_KNOWN}",
        "2026-11-26",
        corpora=KNOWN_CORPORA,
    ),
    "C4c": Contrast(
        "cross-entropy of heads trained together with their backbone minus that of the base model's marginal, on the rung of C4a",
        "cross-entropy [nats]",
        f"the same sign in every training seed, {FEW}; the gap remains *at this budget* unless the last doubling of it closed "
        f"less than {DOUBLING:.0%} of it; {COUNTING_KNOWN}",
        "2026-11-26",
        corpora=KNOWN_CORPORA,
    ),
}


def decided(claim: str) -> str:
    """What decides a claim, in words, as Markdown: shown where the verdict is printed."""
    c = CONTRASTS[claim]
    where = f"{LABELS} labels, offset {OFFSET}, {c.corpora}; metric: {c.metric}"
    rule = f"It has to lie above {c.threshold:g} with a p, adjusted over corpora (Holm), below {ALPHA:g}"
    lines = [f"**What decides {claim}** (fixed on {c.fixed}): {c.quantity}; {where}. {rule}. Needed: {c.needs}."]
    lines += [f"*Changed on {date}, after results had been seen:* {what}." for date, what in CHANGES.get(claim, ())]
    return "\n\n".join(lines)


@dataclass(frozen=True)
class Verdict:
    """One claim judged. effect, ci_low, ci_high: of the corpus where the claim does worst; n: documents a corpus."""

    claim: str
    contrast: str
    effect: float
    ci_low: float
    ci_high: float
    seeds: tuple[int, ...]
    n: int
    verdict: str
    text: str


ONE_RUN = " One pre-training run of each backbone: the spread between those is not in the interval."


def found_with_80(row) -> float:
    """The least effect that a 95 % interval of this width (ci_low, ci_high) would have found with 80 % power."""
    return POWER * (row["ci_high"] - row["ci_low"]) / (2 * 1.96)


def verdict_on(claim: str, contrast: str, row, seeds: tuple[int, ...], verdict: str, text: str) -> Verdict:
    """The verdict with the numbers of the row (effect, ci_low, ci_high, n_documents) where the claim does worst."""
    numbers = float(row.effect), float(row.ci_low), float(row.ci_high)
    return Verdict(claim, contrast, *numbers, seeds, int(row.n_documents), verdict, text)


def decide(effects: pd.DataFrame, threshold: float, seeds_agree: bool = True) -> str:
    """`reproduced`: every corpus above the threshold (Holm-adjusted p < ALPHA) and every seed of that sign; `not reproduced`:
    every interval at or below the threshold; `contradicted in some corpora`: some (adjusted too), whatever the others say;
    `partly`: some above it; else `inconclusive`. effects: effect, ci_high, p."""
    clear = np.array(metrics.holm(effects["p"].tolist())) < ALPHA
    held, against = (effects["effect"] > threshold) & clear, effects["ci_high"] <= threshold
    if held.all() and seeds_agree:
        return "reproduced"
    if against.all():
        return "not reproduced"
    if (against & clear).any():
        return "contradicted in some corpora"
    return "partly" if held.any() else "inconclusive"


def decide_known(effects: pd.DataFrame, unknown: Collection[str], decided: Callable[[pd.DataFrame], str]) -> tuple:
    """(rows judged, verdict): `decided` by the corpora that a backbone knows, to `partly` at the most where it does not know all;
    where it knows none, inconclusive, on all rows."""
    judged = effects[~effects.corpus.isin(unknown)]
    if judged.empty:
        return effects, "inconclusive"
    verdict = decided(judged)
    return judged, "partly" if len(judged) < len(effects) and verdict == "reproduced" else verdict


def not_testable(unknown: Collection[str]) -> str:
    """Why corpora that a backbone does not know are not judged, in words."""
    return f"Not testable on {', '.join(unknown)}: at offset 1 the backbone itself loses to the trigram there"
