"""Counting's gap to the marginal: its whole distribution beside that of m2."""

import numpy as np
import pandas as pd
import torch

from ..base.records import Arrays
from ..text.tokens import vocabulary_of
from . import controls, scoring
from .counting import PREDICTORS
from .scoring import Tokenizer


def kl_table(tokenizer: Tokenizer, blocks, marginal: Arrays, split: str, text: str, offset: int = 2) -> pd.DataFrame:
    """KL(m_k || counting) [nats] at every scored position: corpus, document, position, name (the control), gap.

    marginal: arrays with `log_probs` (positions, V) at that offset; text: the digest of the split that is counted. Counting is
    asked for every token at every position, positions x V^2 comparisons: for vocabularies over which m2 is summed exactly.
    """
    counts, models = controls.counted(tokenizer, blocks, split, text, offset)
    log_m = torch.from_numpy(marginal.values["log_probs"]).double()
    every = np.tile(np.arange(vocabulary_of(tokenizer.tokenizer)), (len(log_m), 1))
    found = counts.scores(every, {name: models[name] for name in PREDICTORS})
    rows = [scoring.positions_of(blocks).assign(name=name, gap=scoring.kl(log_m, torch.from_numpy(of["log_prob"])).numpy())
            for name, of in found.items()]  # fmt: skip
    return pd.concat(rows, ignore_index=True)
