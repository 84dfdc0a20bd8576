"""What every measuring function shares: keys of positions, stored labels, seeds, and scores of a distribution as rows."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from ..backbones.anatomy import rows_of
from ..base import ranks
from ..base.runtime import progress, seed_for
from ..marginal.expansion import entropy_of
from ..text import offsets

BATCH = 32  # documents a step: fewer leave the passes over their candidates narrow
LOGITS = 2**27  # numbers of a pass that keeps the logits of every token


@dataclass(frozen=True)
class Labels:
    """A stored table of labels; its fingerprint makes measurements on it depend on the labels themselves."""

    table: pd.DataFrame

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.table.to_csv(index=False).encode()).hexdigest()


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that can be part of a measurement's key."""

    tokenizer: object

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def scores(log_probs: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """Per-position log-probability of the label (nats), top-1 and top-5 hits. log_probs: (N, V); labels: (N,)."""
    of_label = log_probs.gather(1, labels[:, None])
    better = (log_probs > of_label).sum(1)  # ties count for the label with the lower id, as in arg-max
    ties = ((log_probs == of_label) & (torch.arange(log_probs.shape[1], device=labels.device) < labels[:, None])).sum(1)
    rank = (better + ties).cpu().numpy()
    return {"log_prob": of_label[:, 0].double().cpu().numpy(), "top1": (rank < 1).astype(float), "top5": (rank < 5).astype(float)}


def entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """H(p) = - sum p log p in nats over the last dimension; zero-probability tokens add nothing. Normalise first."""
    return entropy_of(log_probs.exp())


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) = sum p (log p - log q) in nats over the last dimension; no epsilon, so q = 0 < p gives inf."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def next_token_losses(logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's mean next-token cross-entropy over its real tokens, nats (rows,), and their number (rows,).

    logits (rows, T, V); tokens, mask (rows, T).
    """
    logits, labels = offsets.predictions_at(logits, 1), offsets.labels_at(tokens, 1)
    each = zip(logits, labels, strict=True)  # a row at a time: of a large vocabulary several are gigabytes
    losses = torch.stack([torch.nn.functional.cross_entropy(x.float(), y, reduction="none") for x, y in each])
    keep = offsets.labels_at(mask, 1)
    return (losses * keep).sum(1) / keep.sum(1), keep.sum(1)


def gathered(found: dict[object, list]) -> dict[object, list]:
    """What every process found in its rows, by name and in the order of the rows; a process may have had none."""
    shares = [share for share in ranks.gather(found) if share]
    return {name: [x for share in shares for x in share[name]] for name in shares[0]}


def positions_of(blocks) -> pd.DataFrame:
    """document, position of every scored position, row by row: the order of all tables."""
    row, position = np.nonzero(blocks.scored.numpy())
    return pd.DataFrame({"corpus": blocks.corpus, "document": [blocks.documents[r] for r in row], "position": position})


def estimator_name(offset: int, estimator: dict) -> str:
    """`ntp`, `exact`, `top_k=64`, `top_k=64 samples=64`, ..."""
    if offset == 1:
        return "ntp"
    return "exact" if estimator.get("exact") else " ".join(f"{k}={v:g}" for k, v in estimator.items() if k != "seed")


def score(log_probs: torch.Tensor, labels: pd.DataFrame, offset: int, name: str, predictor: str, estimator: str) -> pd.DataFrame:
    frames = []
    for _, rows in labels[labels.offset == offset].groupby("label_source", sort=False):
        frames.append(
            rows.drop(columns="label").assign(
                backbone=name,
                predictor=predictor,
                estimator=estimator,
                **scores(log_probs, torch.from_numpy(rows["label"].to_numpy().copy())),
            )
        )
    return pd.concat(frames, ignore_index=True)


def seeds_of(stream: str, blocks) -> torch.Tensor:
    """(documents, CONTEXT) int64: a seed per document and position, so that draws do not depend on how rows are batched."""
    seeds = torch.zeros_like(blocks.tokens)
    for row, t in blocks.scored.nonzero().tolist():
        seeds[row, t] = seed_for(f"{stream}/{blocks.documents[row]}/{t}")
    return seeds


def rows_at_once(model, length: int) -> int:
    """Rows of so many tokens in a pass that keeps the logits of every one: eight, fewer where these are more than LOGITS."""
    return max(1, min(8, LOGITS // (length * rows_of(model.get_output_embeddings()))))


def parts_of(blocks, description: str):
    """This process's rows of a text, BATCH at a time."""
    rows = torch.arange(len(blocks.tokens))[ranks.share(len(blocks.tokens))]
    return progress(list(rows.split(BATCH)), description)
