"""What is cheap at *every* eligible position: the next token's loss, and counting. Where the marginal is known at one position of
a document, these say how that position differs from the document's others, and take that part of the noise away."""

import numpy as np
import pandas as pd
import torch

from ..base import ranks
from ..text import offsets
from . import controls
from .scoring import Tokenizer, parts_of, positions_of, scores

ROWS = 8  # of a pass that keeps the logits of every token
OFFSET = 2


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
