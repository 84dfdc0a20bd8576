"""Heads against the marginal on the same positions: scores, and the long table of their gaps."""

import numpy as np
import pandas as pd
import torch

from ..text import blocks as blocks_module
from . import counted_gaps, head_measures, metrics, scoring, stored
from .arms import Arm, Bench
from .counting import PREDICTORS
from .head_measures import SCORES
from .stored import stem_of

MOST_NUMBERS = 2**28  # log-probs of a corpus asked of an arm where all eligible positions count: 2,000 Gflop at 1,000 wide


def scored(run, bench: Bench, arms: list[Arm], base=None) -> pd.DataFrame:
    """Scores of arms on every test corpus beside the marginal of `base` (the base model; the arms' own backbone if None).

    Columns of measures.py, those of the arm, and its kind in words as `arm`; kl_to_marginal KL(m_k || head) in nats;
    marginal_log_prob, marginal_top1, marginal_top5 of the same position and label; excess_ce, the marginal's log_prob minus the
    head's, nats; entropy_m2 of the marginal at that offset; estimator of the marginal.
    """
    base, frames = base or bench.backbone, []
    offsets = sorted({k for arm in arms for k in arm.spec.offsets})
    for blocks, states in bench.test.values():
        labels = stored.labels(run, base, blocks)
        marginals = {k: stored.marginal(run, base, blocks, k) for k in offsets}
        table = dict(list(stored.marginal_scores(run, base, blocks, tuple(offsets)).groupby("offset")))
        for arm in arms:
            stem = f"03_gaps_{stem_of(bench.backbone, blocks)}_{arm.name}"
            found = run.measure_arrays(
                stem if base is bench.backbone else f"{stem}_{base.name.replace('/', '-')}",
                head_measures.gap_arrays,
                features=states,
                blocks=blocks,
                labels=labels,
                marginals={k: marginals[k] for k in arm.spec.offsets},
                heads=arm.arrays,
                spec=arm.spec,
            )
            names = {"backbone": bench.backbone.name, "predictor": "head", **arm.columns, "arm": arm.kind}
            frames += [_beside(table[k], found.values, k).assign(**names) for k in arm.spec.offsets]
    return pd.concat(frames, ignore_index=True)


def everywhere(run, bench: Bench, arms: list[Arm]) -> pd.DataFrame:
    """log_prob of the data's own tokens at *all* eligible positions of the test windows: head against head needs no marginal.
    Columns corpus, document, position, offset, label_source, log_prob, cross_entropy, and those of the arm."""
    frames = []
    for blocks, states in bench.test.values():
        wide = eligible(blocks, bench.backbone)
        keys = scoring.positions_of(wide)
        for arm in arms:
            found = on_data(run, bench, wide, states, arm)
            names = {"backbone": bench.backbone.name, "label_source": "data", **arm.columns, "arm": arm.kind}
            frames += [keys.assign(offset=k, log_prob=x, **names) for k, x in found.items()]
    table = pd.concat(frames, ignore_index=True)
    return table.assign(cross_entropy=-table["log_prob"])


def eligible(blocks, backbone):
    """The blocks with all eligible positions scored; of a large vocabulary every n-th of a document, so that no more than
    MOST_NUMBERS log-probs are asked of an arm."""
    wide = blocks_module.everywhere(blocks, backbone.tokenizer)
    each = -(-int(wide.scored.sum()) * len(backbone.tokenizer) // MOST_NUMBERS)
    if each == 1:
        return wide
    count = wide.scored.cumsum(1) - 1 - torch.arange(len(wide.scored))[:, None]  # another first one in each document
    return stored.scored_at(wide, count % each == 0, str(each))


def on_data(run, bench: Bench, wide, states, arm: Arm) -> dict[int, np.ndarray]:
    """offset -> (positions,) log_prob [nats] of the data's own tokens by an arm, at every scored position of `wide`."""
    stem = f"04_everywhere_{stem_of(bench.backbone, wide)}_{arm.name}"
    given = {"features": states, "blocks": wide, "heads": arm.arrays, "spec": arm.spec}
    found = run.measure_arrays(stem, head_measures.data_arrays, **given).values
    return {k: found[f"log_prob.{k}"] for k in arm.spec.offsets}


def next_token(run, bench: Bench, stem: str) -> pd.DataFrame:
    """Held-out next-token loss of a bench's backbone by document of its test text (head_measures.states_ntp_table); stem: how
    its stored tables are called."""
    found = []
    for blocks, states in bench.test.values():
        given = {"features": states, "blocks": blocks}
        found.append(run.measure(f"{stem}_{stem_of(bench.backbone, blocks)}", head_measures.states_ntp_table, **given))
    return pd.concat(found, ignore_index=True)


def counted(run, base, test: dict, offsets: tuple[int, ...] = (2,)) -> pd.DataFrame:
    """What counting says at the scored positions on data labels (`name`: the control), beside the marginal of `base`: corpus,
    document, position, offset, log_prob, top1, cross_entropy and excess_ce."""
    frames, keys = [], ["corpus", "document", "position", "offset"]
    for blocks in test.values():
        table = stored.control_scores(run, base, blocks)
        table = table[(table.label_source == "data") & table.predictor.isin(PREDICTORS) & table.offset.isin(offsets)]
        marginal = stored.marginal_scores(run, base, blocks, offsets)
        marginal = marginal[marginal.label_source == "data"][[*keys, "log_prob"]]
        frames.append(table.merge(marginal, on=keys, suffixes=("", "_marginal"), validate="many_to_one"))
    found = pd.concat(frames, ignore_index=True)
    excess = found["log_prob_marginal"] - found["log_prob"]
    return found.assign(name=found["predictor"], cross_entropy=-found["log_prob"], excess_ce=excess)


def counted_kl(run, base, test: dict) -> pd.DataFrame:
    """KL of counting to the marginal of `base` at offset 2 (counted_gaps.kl_table), in the rows of `counted`; none where that is
    no exact sum."""
    if not stored.sums_exactly(base):
        return pd.DataFrame(columns=["corpus", "document", "position", "name", "gap"])
    frames = []
    for blocks in test.values():
        given = stored.counting_of(run, base, blocks) | {"marginal": stored.marginal(run, base, blocks, 2)}
        frames.append(run.measure(f"04_counting_kl_{stem_of(base, blocks)}", counted_gaps.kl_table, **given))
    return pd.concat(frames, ignore_index=True)


def counted_everywhere(run, base, test: dict) -> pd.DataFrame:
    """What counting says of the token after next at all eligible positions (`name`: the control), as in `everywhere`."""
    found = pd.concat([stored.counted_everywhere(run, base, blocks) for blocks in test.values()], ignore_index=True)
    return found.assign(name=found["predictor"], cross_entropy=-found["log_prob"])


def _beside(marginal: pd.DataFrame, found: dict[str, np.ndarray], offset: int) -> pd.DataFrame:
    """A head's arrays at one offset beside the marginal's scores of the same positions and labels."""
    keys = ["corpus", "document", "position", "offset", "label_source", "token_class", "estimator"]
    theirs = {f"marginal_{name}": marginal[name] for name in SCORES} | {"entropy_m2": marginal["entropy"]}
    ours = {name: found[f"{name}.{offset}"] for name in (*SCORES, "entropy", "kl_to_marginal")}
    shape = ours["log_prob"].shape  # (sources, positions); what no label plays a part in has positions alone
    found = marginal[keys].assign(**theirs, **{name: np.broadcast_to(x, shape).ravel() for name, x in ours.items()})
    return found.assign(excess_ce=found["marginal_log_prob"] - found["log_prob"])


def gap_summary(scores: pd.DataFrame, by_class: bool = False) -> pd.DataFrame:
    """The long table: one row per arm, corpus, offset, label source (and class of the label) and metric, with intervals."""
    table = scores.assign(cross_entropy=-scores["log_prob"], marginal_cross_entropy=-scores["marginal_log_prob"])
    if not by_class:
        table = table.assign(token_class="all")
    return metrics.summarise(table, KEYS, METRICS)


KEYS = ["backbone", "corpus", "label_source", "train_labels", "offset", "head", "features", "head_layers", "unembedding"]
KEYS += ["train_tokens", "seed", "estimator", "token_class"]
METRICS = ["top1", "top5", "cross_entropy", "excess_ce", "kl_to_marginal", "entropy_m2"]
METRICS += ["marginal_top1", "marginal_cross_entropy"]
