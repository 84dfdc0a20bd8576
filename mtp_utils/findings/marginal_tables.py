"""C1 and C2, as notebooks 01 and 02 ask them: truncation against the exact sum, the negative control, context, sizes."""

import math

import numpy as np
import pandas as pd

from ..backbones.load import Backbone
from ..text import blocks as blocks_module
from . import controls, measures, metrics, stored
from .claims import LABELS, OFFSET
from .counting import PREDICTORS
from .marginal_claims import c1_effects, not_known, slopes

KS = (1, 4, 16, 64, 256)
SAMPLED = ({"samples": 64}, {"samples": 256}, {"top_k": 64, "samples": 64}, {"top_k": 128, "samples": 128})
CONTEXTS = {"32 to 64": 63, "65 to 128": 127, "over 128": blocks_module.CONTEXT}  # tokens of context: the last position in each


def truncation_scores(run, backbone: Backbone, seed: int) -> pd.DataFrame:
    """measures.truncation_table of top-k, adaptive mass, samples and both against the exact sum or what is nearest to it, on few
    documents of every corpus, with the bias of cross-entropy, H and I."""
    vocabulary, frames = len(backbone.tokenizer), []
    estimators = [{"top_k": k} for k in KS if k <= vocabulary] + [{"mass": 0.9}, {"mass": 0.99}, *SAMPLED]
    reference, _ = stored.held_against(backbone)
    for corpus in run.profile.corpora:
        given = {"backbone": backbone, "blocks": _few(run, backbone, corpus, seed)}
        given |= {"estimators": estimators, "reference": reference}
        frames.append(run.measure(f"01_truncation_{corpus}", measures.truncation_table, **given))
    cut = pd.concat(frames, ignore_index=True)
    cut["cross_entropy_bias"] = cut["log_prob_exact"] - cut["log_prob"]
    cut["entropy_bias"] = cut["entropy"] - cut["entropy_exact"]
    cut["mutual_information_bias"] = cut["mutual_information"] - cut["mutual_information_exact"]
    return cut


def bracketed(scores: pd.DataFrame) -> pd.DataFrame:
    """The marginal's rows with what certificates say of its top-1: `top1_least` (an uncertified arg-max is wrong) and `top1_most`
    (it is right)."""
    rows = scores[scores.predictor == "marginal"]
    return rows.assign(top1_least=rows["top1"] * rows["certified"], top1_most=1 - (1 - rows["top1"]) * rows["certified"])


def brackets(scores: pd.DataFrame) -> pd.DataFrame:
    """Of `bracketed` rows on data labels the means over documents, by backbone, corpus and offset: top-1 as estimated, the share
    `certified`, the bracket that top-1 has, and what the candidates are."""
    keys = ["backbone", "corpus", "offset", "estimator"]
    kept = ["candidates", "captured_mass", "certified", "top1_least", "top1", "top1_most"]
    rows = bracketed(scores[scores.label_source == "data"])
    return rows.groupby([*keys, "document"], sort=False)[kept].mean().groupby(keys, sort=False).mean().reset_index()


def by_candidates(cut: pd.DataFrame) -> pd.DataFrame:
    """What k candidates capture, certify and miss, normalised (S/M): corpus, k, metric, value and its interval."""
    rows = cut[(cut.scored == "S/M") & cut.estimator.str.fullmatch(r"top_k=\d+")]
    rows = rows.assign(k=rows.estimator.str[6:].astype(int))
    return metrics.summarise(rows, ["corpus", "k"], ["captured_mass", "certified", "same_argmax", "total_variation"])


def by_estimator(cut: pd.DataFrame) -> pd.DataFrame:
    """The bias of each estimator, as S and as S/M; the smallest k, which are far off, left out."""
    named = _as_scored(cut)
    far = named["estimator"].str.match(r"top_k=(1|4)(,|$)") | named["estimator"].str.startswith(("top_k=1 ", "top_k=4 "))
    biases = ["cross_entropy_bias", "entropy_bias", "mutual_information_bias"]
    return metrics.summarise(named[~far], ["corpus", "estimator"], [*biases, "candidates"])


def negative_control(run, backbone: Backbone, test: dict, seed: int) -> pd.DataFrame:
    """By corpus how often predictions are right, on their own labels and paired with another document's (99 % of re-pairings:
    `low`, `high`); and what m2 at t moves by, at most, where all tokens behind t are another document's (on few documents)."""
    rows = []
    for corpus, part in test.items():
        marginal, labels = stored.marginal(run, backbone, part, 2), stored.labels(run, backbone, part)
        given = {"marginal": marginal, "blocks": part, "labels": labels, "name": backbone.name}
        found = run.measure(f"01_negative_control_{corpus}", controls.negative_control_table, **given)
        few = _few(run, backbone, corpus, seed)
        blind = run.measure(f"01_blind_{corpus}", controls.blind_table, backbone=backbone, blocks=few)
        low, high = found["rate"].quantile([0.005, 0.995])
        row = {"corpus": corpus, "right pairs": found["top1_true_pairs"].iloc[0], "other document": found["rate"].mean()}
        row |= {"low": low, "high": high}
        rows.append(row | {"later tokens replaced": blind["replaced"].sum(), "m2 moved by": blind["difference"].max()})
    return pd.DataFrame(rows)


def _as_scored(cut: pd.DataFrame) -> pd.DataFrame:
    """The same, S and S/M told apart by the estimator's name."""
    return cut.assign(estimator=cut["estimator"] + cut["scored"].map({"S": "", "S/M": ", S/M"}))


def bias_and_cost(cut: pd.DataFrame, positions: int) -> pd.DataFrame:
    """What each estimator costs and how far it is off in the cross-entropy: a row for each, from the cheapest on, with the passes
    of a position (`candidates`, mean over corpora), its `bias` by corpus [nats], and the largest of these as a share of the
    standard error that the mean over so many positions has (`of the error`). cut: of truncation_scores."""
    rows = []
    for estimator, of in _as_scored(cut).groupby("estimator", sort=False):
        by_corpus = of.groupby("corpus", sort=False)
        bias, error = by_corpus["cross_entropy_bias"].mean(), by_corpus["log_prob"].std(ddof=1) / positions**0.5
        row = {"estimator": estimator, "candidates": by_corpus["candidates"].mean().mean()}
        row |= {f"bias, {corpus}": value for corpus, value in bias.items()}
        rows.append(row | {"of the error": (bias.abs() / error).max()})
    return pd.DataFrame(rows).sort_values("candidates", ignore_index=True)


def _few(run, backbone: Backbone, corpus: str, seed: int):
    """Test blocks of few documents: for what is too dear to measure on all."""
    most = 32 if stored.sums_exactly(backbone) else 12
    size = {"n_documents": min(most, run.profile.n_documents), "positions_per_document": 1, "horizon": run.profile.horizon}
    return blocks_module.evaluation_blocks(corpus, "test", backbone.tokenizer, **size, seed=seed)


def characters_per_token(tokenizer, blocks) -> float:
    """The mean length of the tokens that are predicted, those behind the scored positions up to the horizon, in characters of
    the decoded text."""
    lengths = []
    for row, t in np.argwhere(blocks.scored.numpy()):
        before, after = (tokenizer.decode(blocks.tokens[row, : t + 1 + k]) for k in (0, blocks.horizon))
        lengths.append(len(after) - len(before))
    return float(np.mean(lengths)) / blocks.horizon


def in_bits(summary: pd.DataFrame, lengths: dict[str, float]) -> pd.DataFrame:
    """The rows of the cross-entropy as `bits_per_character`: CE / (ln 2 * characters a token). lengths: by corpus."""
    rows = summary[summary.metric == "cross_entropy"].assign(metric="bits_per_character")
    scale = 1 / (rows["corpus"].map(lengths) * math.log(2))
    return rows.assign(**{name: rows[name] * scale for name in ("value", "ci_low", "ci_high")})


def rounded_against(scores: pd.DataFrame, rounded: pd.DataFrame) -> pd.DataFrame:
    """The marginal's cross-entropy (nats) and misses (1 - top-1) of a rounded backbone minus those of the whole one, on data
    labels, paired by position: corpus, offset, metric, value with its interval. Both: rows of stored.marginal_scores."""
    rows, before, after = [], *(x[x.label_source == "data"].groupby(["corpus", "offset"], sort=False) for x in (scores, rounded))
    for (corpus, offset), whole in before:
        for metric, column in (("cross_entropy", "log_prob"), ("misses", "top1")):
            found = metrics.paired(whole, after.get_group((corpus, offset)), column)
            rows.append({"corpus": corpus, "offset": offset, "metric": metric, "value": found.pop("effect"), **found})
    return pd.DataFrame(rows)


def by_context(scores: pd.DataFrame) -> pd.DataFrame:
    """The marginal's top-1 and cross-entropy by tokens of context. scores: with `position` and `cross_entropy`."""
    edges, bins = [blocks_module.MIN_CONTEXT - 2, *CONTEXTS.values()], list(CONTEXTS)
    context = pd.cut(scores["position"], edges, labels=bins).astype(str)
    found = metrics.summarise(scores.assign(context=context), ["backbone", "corpus", "context"], ["top1", "cross_entropy"])
    return found.sort_values("context", key=lambda c: c.map(bins.index), kind="stable", ignore_index=True)


def unknown_to(run, backbone: Backbone, test: dict) -> tuple[str, ...]:
    """The corpora that a backbone does not know (marginal_claims.not_known)."""
    frames = [stored.marginal_scores(run, backbone, part, (1,)) for part in test.values()]
    frames += [stored.control_scores(run, backbone, part) for part in test.values()]
    scores = pd.concat(frames, ignore_index=True)
    return tuple(not_known(c1_effects(scores[scores.offset == 1], backbone.name)))


def slopes_beside(scores: pd.DataFrame, counted: pd.DataFrame, n_params: dict[str, int], runs: dict) -> pd.DataFrame:
    """C2 (size), shown and not judged: `marginal_claims.slopes`, per factor of four in parameters, of two measures in which the
    next token plays no part of its own: `excess`, CE2 - CE1 in nats, and `lead`, the marginal's top-1 minus the skip-trigram's.

    Rungs that lose to the trigram at offset 1 are left out, by corpus; fewer than three left: no row. scores: the marginal's on
    data labels at offsets 1 and 2; counted: of stored.control_scores, of any one backbone; n_params, runs: as `slopes` has them.
    """
    trigram = counted[(counted.predictor == PREDICTORS[-1]) & (counted.label_source == LABELS)]
    keys, found = ["document", "position"], []
    for corpus, group in scores.groupby("corpus", sort=False):
        theirs = trigram[trigram.corpus == corpus]
        next_token, after = (group[group.offset == k] for k in (1, OFFSET))
        losses = next_token.groupby("backbone")["log_prob"].mean()
        knows = losses.index[losses > theirs[theirs.offset == 1]["log_prob"].mean()]
        kept = {rung: n for rung, n in n_params.items() if rung in knows}
        if len(kept) < 3:
            continue
        both = after.merge(next_token[["backbone", *keys, "log_prob"]], on=["backbone", *keys], suffixes=("", "_next"))
        both = both.merge(theirs[theirs.offset == OFFSET][[*keys, "top1"]], on=keys, suffixes=("", "_trigram"))
        measures = {"excess": both["log_prob"] - both["log_prob_next"], "lead": both["top1_trigram"] - both["top1"]}
        of_kept = {name: run for name, run in runs.items() if name in knows and run[0] in kept}
        for measure, values in measures.items():  # `slopes` takes the negative of a log_prob
            table = slopes(both.assign(log_prob=values), kept, of_kept).drop(columns=["effect", "p", "several"])
            found.append(table.assign(measure=measure, rungs=len(kept)))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()
