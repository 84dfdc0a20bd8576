"""Means for which the marginal is needed: it is asked at few positions of a document, and what is cheap and known at all of them
corrects for which these were (control variates; metrics.adjusted)."""

import numpy as np
import pandas as pd
import torch

from ..backbones.load import Backbone
from ..text import blocks as blocks_module
from . import gaps, measures, scoring, stored
from .arms import Arm, Bench
from .claims import LABELS, OFFSET
from .counting import PREDICTORS
from .means import KEYS, by_document
from .scoring import Labels

POSITIONS = 4  # of a document, at which the largest backbone's marginal is asked where it is an exact sum
OF_BACKBONE = ["next_log_prob", "next_top1", "after_log_prob", "after_top1"]  # of stored.variates_of


def at_more(run, backbone: Backbone, test: dict, seed: int, n: int = POSITIONS) -> pd.DataFrame:
    """Scores on data labels of the marginal at offsets 1 and 2 and of counting at offset 2, with `n` positions of each document's
    window scored, drawn anew from the eligible ones (all, where there are fewer)."""
    frames = []
    for part in test.values():
        blocks, variates = more_positions(part, backbone.tokenizer, n, seed), stored.variates_of(run, backbone, part)
        stem, estimator = f"{stored.stem_of(backbone, part)}_{n}", stored.estimators_of(backbone)[OFFSET]
        given = {"backbone": backbone, "blocks": blocks, "estimators": {str(OFFSET): estimator}, "drawn": ()}
        found = run.measure_arrays(f"01_marginals_{stem}", measures.marginal_arrays, **given)
        labels = Labels(measures.label_table(blocks, {}))
        marginal = measures.marginal_table(stored.at_offset(found, OFFSET), labels, backbone.name, OFFSET, estimator)
        here = variates.merge(marginal[KEYS], on=KEYS)
        next_token = here[here.predictor == PREDICTORS[0]][[*KEYS, "next_log_prob", "next_top1"]]
        next_token = next_token.rename(columns=lambda name: name.removeprefix("next_")).assign(predictor="marginal", offset=1)
        counted = here[[*KEYS, "predictor", "log_prob", "top1"]].assign(offset=OFFSET)
        frames += [marginal, pd.concat([next_token, counted]).assign(backbone=backbone.name, label_source=LABELS)]
    return pd.concat(frames, ignore_index=True)


def more_positions(blocks, tokenizer, n: int, seed: int):
    """The same windows with `n` of the eligible positions of each scored, drawn at random."""
    wide = blocks_module.everywhere(blocks, tokenizer)
    order = np.where(wide.scored.numpy(), np.random.default_rng(seed).random(wide.scored.shape), np.inf)
    return stored.scored_at(wide, torch.from_numpy(order.argsort(1).argsort(1) < n), f"{n}/{seed}")


def excess(run, bench: Bench, arms: list[Arm], seed: int, base: Backbone | None = None) -> pd.DataFrame:
    """The heads' cross-entropy at offset 2 minus that of the marginal of `base` (the arms' own backbone if None), data labels,
    nats, a row for each document and arm: `excess_ce` adjusted by what the base model says of the next two tokens and by the
    heads' own loss, known everywhere, and `plain` as it is at the scored positions. Columns as gaps.scored has them.

    Where notebook 01 asks the base model's marginal at POSITIONS of a document (with this seed), so many are scored, else one.
    """
    base, rows = base or bench.backbone, []
    more = stored.sums_exactly(base) and base.name == run.profile.backbones[-1]
    marginal = at_more(run, base, bench.blocks, seed) if more else None
    scored = [] if more else [gaps.scored(run, bench, [arm], base) for arm in arms]
    for corpus, (blocks, states) in bench.test.items():
        wide, known = gaps.eligible(blocks, bench.backbone), stored.variates_of(run, base, blocks)
        keys, known = scoring.positions_of(wide), known[known.predictor == PREDICTORS[0]][[*KEYS, *OF_BACKBONE]]
        for i, arm in enumerate(arms):
            heads = keys.assign(heads=gaps.on_data(run, bench, wide, states, arm)[OFFSET])
            if more:
                here = marginal[(marginal.corpus == corpus) & (marginal.predictor == "marginal") & (marginal.offset == OFFSET)]
                n, here = len(here), here.rename(columns={"log_prob": "marginal"}).merge(heads, on=KEYS, validate="one_to_one")
                assert n == len(here), f"heads are asked at {len(here)} of {n} positions of the marginal"
            else:
                here = scored[i]
                here = here[(here.corpus == corpus) & (here.offset == OFFSET) & (here.label_source == LABELS)]
                here = here.rename(columns={"log_prob": "heads", "marginal_log_prob": "marginal"})
            plain = (here["marginal"] - here["heads"]).groupby(here["document"]).mean()
            value = by_document(plain, known.merge(here[[*KEYS, "heads"]], on=KEYS), known.merge(heads, on=KEYS, how="left"))
            about = {"corpus": corpus, "position": 0, "offset": OFFSET, "label_source": LABELS, **arm.columns}
            rows.append(pd.DataFrame({"document": plain.index, "excess_ce": value, "plain": plain}).assign(**about))
    return pd.concat(rows, ignore_index=True)
