"""What is cheap at *every* eligible position: the next token's loss, and counting. Where the marginal is known at one position of
a document, these say how that position differs from the document's others, and take that part of the noise away."""

import numpy as np
import pandas as pd
import torch
from scipy import stats

from ..base import ranks
from ..text import offsets
from . import controls, metrics
from .scoring import Tokenizer, parts_of, positions_of, scores

ROWS = 8  # of a pass that keeps the logits of every token
OFFSET = 2
FEWEST = 10  # documents a variate, below which nothing is adjusted


def next_tokens_table(backbone, blocks) -> pd.DataFrame:
    """At every scored position t of these blocks log-probability (nats) and top-1 of the token at t + 1 (`next_`), and of that at
    t + 2 given the true one before it (`after_`): corpus, document, position, next_log_prob, next_top1, after_log_prob, ..."""
    found = []
    for part in parts_of(blocks, f"next tokens everywhere {backbone.name} {blocks.corpus}"):
        for few in part[blocks.mask[part].sum(1).argsort(stable=True)].split(ROWS):
            longest = int(blocks.mask[few].sum(1).max())
            tokens, mask = blocks.tokens[few, :longest], blocks.mask[few, :longest]
            with torch.no_grad():
                inputs = {"input_ids": tokens, "attention_mask": mask.long()}
                logits = backbone.model(**{name: x.to(backbone.model.device) for name, x in inputs.items()}).logits
            for row, each, ids in zip(few.tolist(), logits, tokens, strict=True):  # a row at a time: a vocabulary is large
                at = blocks.scored[row].nonzero()[:, 0]
                of = {}
                for name, t in (("next", at), ("after", at + 1)):
                    log_probs = each[t.to(each.device)].float().log_softmax(-1)
                    of |= {f"{name}_{x}": v for x, v in scores(log_probs, ids[t + 1].to(each.device)).items() if x != "top5"}
                found.append((row, of))
    rows = sorted((row for share in ranks.gather(found) for row in share), key=lambda row: row[0])
    values = {name: np.concatenate([of[name] for _, of in rows]) for name in rows[0][1]}
    return positions_of(blocks).assign(**values)


def counting_table(tokenizer: Tokenizer, blocks, split: str, text: str) -> pd.DataFrame:
    """The counting controls at every scored position of these blocks, on the data's own token after next: corpus, document,
    position, predictor, log_prob (nats), top1. text: the digest of what is counted."""
    counts, models = controls.counted(tokenizer, blocks, split, text, OFFSET)
    found = counts.scores(offsets.labels_of(blocks.tokens, blocks.scored, OFFSET).numpy()[:, None], models)
    keys = positions_of(blocks)
    return pd.concat(
        [keys.assign(predictor=name, log_prob=of["log_prob"][:, 0], top1=of["top1"][:, 0]) for name, of in found.items()],
        ignore_index=True,
    )


def paired(first: pd.DataFrame, second: pd.DataFrame, metric: str, everywhere: pd.DataFrame) -> dict[str, float]:
    """As `metrics.paired`, adjusted by the variates: everywhere (corpus, document, position and variates, all columns but these
    three) at all eligible positions, the scored ones of `first` among them. `variance`: what is left of it, as a share."""
    keys = ["document", "position"]
    both = first[[*keys, metric]].merge(second[[*keys, metric]], on=keys, validate="one_to_one")
    difference = (both[f"{metric}_x"] - both[f"{metric}_y"]).groupby(both["document"]).mean()
    moving = everywhere.drop(columns=["corpus", "position"])
    here = everywhere.merge(both[keys], on=keys, validate="one_to_one").drop(columns=["corpus", "position"])
    if not len(first) == len(second) == len(both) == len(here):
        sides = f"{len(first)} and {len(second)} rows, {len(both)} shared, {len(here)} with variates"
        raise ValueError(f"paired() needs the same positions everywhere: {sides}")
    values = adjusted(difference, here.groupby("document").mean(), moving.groupby("document").mean())
    effect, low, high = (float(x[0]) for x in metrics.intervals(values.to_numpy()[:, None]))
    p = float(stats.ttest_1samp(values, 0.0).pvalue) if np.ptp(values) > 0 else float(effect == 0)
    found = {"effect": effect, "ci_low": low, "ci_high": high, "p": p, "n_documents": len(values), "n_positions": len(both)}
    return found | {"variance": float(values.var() / difference.var()) if difference.var() > 0 else 1.0}


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
