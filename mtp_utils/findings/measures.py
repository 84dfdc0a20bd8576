"""Measuring functions of the marginal: a backbone and evaluation blocks in, a tidy DataFrame (or arrays) out.

Columns of a score table, a row for each scored position, label source and predictor: backbone, corpus, document, position,
offset, label_source, predictor, estimator, log_prob (nats, of the label), top1, top5 (0/1). Summaries and intervals are made
from these tables by metrics.py, figures from those.
"""

import numpy as np
import pandas as pd
import torch

from ..base import ranks
from ..marginal.future import future_log_probs, future_tokens
from ..marginal.rows import one_prefix
from ..text import offsets
from . import scoring
from .scoring import Labels, estimator_name, parts_of, positions_of, score, seeds_of


def next_token_arrays(backbone, blocks) -> dict[str, np.ndarray]:
    """What the backbone says of the data's own next token at *every* token of each document's window, whatever is scored:
    `log_prob` (documents, CONTEXT - 1) float32, nats, nan where the text has ended, and `top1` (0/1); column t speaks of token
    t + 1."""
    shape = len(blocks.tokens), blocks.tokens.shape[1] - 1
    found = {"log_prob": np.full(shape, np.nan, np.float32), "top1": np.zeros(shape, np.float32)}
    rows, size = [], scoring.rows_at_once(backbone.model, blocks.tokens.shape[1])
    for part in parts_of(blocks, f"next tokens {backbone.name} {blocks.corpus}"):
        for few in part[blocks.mask[part].sum(1).argsort(stable=True)].split(size):
            longest = int(blocks.mask[few].sum(1).max())  # what stands behind the text is not read
            tokens, mask = blocks.tokens[few, :longest], blocks.mask[few, :longest]
            with torch.no_grad():
                inputs = {"input_ids": tokens, "attention_mask": mask.long()}
                logits = backbone.model(**{name: x.to(backbone.model.device) for name, x in inputs.items()}).logits
            for row, each, ids, n in zip(few.tolist(), logits, tokens, mask.sum(1).tolist(), strict=True):  # each is large
                rows.append((row, scoring.scores(each[: n - 1].float().log_softmax(-1), ids[1:n].to(each.device))))
    for row, of in (row for share in ranks.gather(rows) for row in share):
        for name, values in found.items():
            values[row, : len(of[name])] = of[name]
    return found


def label_table(blocks, drawn: dict[str, np.ndarray]) -> pd.DataFrame:
    """The token at each offset by label source: the document's own, and those of `drawn`, source -> (positions, horizon).

    One row per offset, source and scored position; token_class of the data's own, -1 for the others.
    """
    keys, frames = positions_of(blocks), []
    for offset in range(1, blocks.horizon + 1):
        label = offsets.labels_of(blocks.tokens, blocks.scored, offset).numpy()
        kind = offsets.labels_of(blocks.classes, blocks.scored, offset).numpy()
        frames.append(keys.assign(offset=offset, label_source="data", label=label, token_class=kind))
        for source, tokens in drawn.items():
            frames.append(keys.assign(offset=offset, label_source=source, label=tokens[:, offset - 1], token_class=-1))
    return pd.concat(frames, ignore_index=True)


def marginal_arrays(backbone, blocks, estimators: dict[str, dict], drawn: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The marginal at every offset on all scored positions, whatever the label, and the labels drawn from the backbone.

    estimators: offset -> arguments of future_log_probs. By offset k: `log_probs.k` (positions, vocab) float32, nats;
    `captured_mass.k`, `certified.k`, `candidates.k`, `entropy.k` and `max_prob.k` of the distribution (positions,); with an
    exact sum and drawn labels `mutual_information.k`, else nan. `labels.<source>` (positions, horizon): drawn once, seeded
    per document and position, and stored, so that every later measurement scores the same labels.
    """
    found = {}
    seeds = {name: seeds_of(name, blocks) for name in ("labels", *(f"offset {k}" for k in estimators))}
    for part in parts_of(blocks, f"{backbone.name} {blocks.corpus}"):
        wanted = blocks.scored[part]
        call = {"attention_mask": blocks.mask[part], "positions": wanted}
        with one_prefix():
            for source in drawn:
                tokens = future_tokens(
                    backbone.model,
                    blocks.tokens[part],
                    blocks.horizon,
                    sample=source == "sampled",
                    seed=seeds["labels"][part],
                    **call,
                )
                found.setdefault(f"labels.{source}", []).append(tokens[wanted].numpy())
            for k, estimator in estimators.items():
                with_entropy = bool(estimator.get("exact") and drawn) and k != "1"
                f = future_log_probs(
                    backbone.model,
                    blocks.tokens[part],
                    int(k),
                    with_entropy=with_entropy,
                    seed=seeds[f"offset {k}"][part],
                    **estimator,
                    **call,
                )
                for name, values in _of_positions(f, wanted).items():
                    found.setdefault(f"{name}.{k}", []).append(values.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in scoring.gathered(found).items()}


def _of_positions(f, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is kept of a FutureLogProbs, at the wanted positions only."""
    log_probs, known = f.at(wanted), f.conditional_entropy
    entropy = scoring.entropy(log_probs)
    return {
        "log_probs": log_probs,
        "captured_mass": f.captured_mass[wanted],
        "certified": f.certified[wanted].float(),
        "candidates": f.num_candidates[wanted].float(),
        "entropy": entropy,
        "mutual_information": torch.full_like(entropy, torch.nan) if known is None else entropy - known[wanted],
        "max_prob": log_probs.max(-1).values.exp(),
    }


def marginal_table(marginal, labels: Labels, name: str, offset: int, estimator: dict) -> pd.DataFrame:
    """The stored marginal at one offset, scored against every label source in `labels`; see `marginal_arrays`."""
    log_probs = torch.from_numpy(marginal.values["log_probs"])
    rows = score(log_probs, labels.table, offset, name, "marginal", estimator_name(offset, estimator))
    extra = {name: values.astype(float) for name, values in marginal.values.items() if name != "log_probs"}
    sources = len(rows) // len(log_probs)
    return rows.assign(**{name: np.tile(values, sources) for name, values in extra.items()})


@one_prefix()
def truncation_table(backbone, blocks, estimators: list[dict], reference: dict | None = None) -> pd.DataFrame:
    """At offset 2, each estimator against the exact sum (or a `reference`, arguments of future_log_probs) on the same positions:
    error of the distribution (total variation), of the cross-entropy, H and I, captured mass, certified share, agreement of the
    arg-max, candidates."""
    frames = {}
    data = offsets.labels_of(blocks.tokens, blocks.scored, 2)
    keys, seeds, others = positions_of(blocks), seeds_of("truncation", blocks), seeds_of("reference", blocks)
    against = reference or {"exact": True}
    for part in parts_of(blocks, f"truncation {backbone.name} {blocks.corpus}"):
        wanted = blocks.scored[part]
        call = {"attention_mask": blocks.mask[part], "positions": wanted, "with_entropy": True}
        exact = future_log_probs(backbone.model, blocks.tokens[part], 2, seed=others[part], **against, **call)
        true = exact.at(wanted)
        here = keys["document"].isin([blocks.documents[r] for r in part]).tolist()
        label = data[torch.tensor(here)]
        for estimator in estimators:
            found = future_log_probs(backbone.model, blocks.tokens[part], 2, seed=seeds[part], **estimator, **call)
            log_probs = found.at(wanted)
            captured = found.captured_mass[wanted]
            bounded = "samples" not in estimator
            scored = {"S": 1.0} | ({"S/M": captured} if bounded else {})
            for which, scale in scored.items():
                values = (log_probs.exp() / torch.as_tensor(scale).expand_as(captured)[:, None]).log()
                known = found.conditional_entropy[wanted] / scale
                frames.setdefault((estimator_name(2, estimator), which), []).append(
                    keys[here].assign(
                        backbone=backbone.name,
                        estimator=estimator_name(2, estimator),
                        scored=which,
                        log_prob=values.gather(1, label[:, None])[:, 0].double().numpy(),
                        log_prob_exact=true.gather(1, label[:, None])[:, 0].double().numpy(),
                        total_variation=(0.5 * (values.exp() - true.exp()).abs().sum(1)).double().numpy(),
                        outside_bounds=_outside(values, true, captured).numpy() if bounded and which == "S" else np.nan,
                        entropy=scoring.entropy(values).double().numpy(),
                        entropy_exact=scoring.entropy(true).double().numpy(),
                        mutual_information=(scoring.entropy(values) - known).double().numpy(),
                        mutual_information_exact=exact.mutual_information[wanted].double().numpy(),
                        captured_mass=captured.double().numpy(),
                        certified=found.certified[wanted].double().numpy(),
                        same_argmax=(log_probs.argmax(1) == true.argmax(1)).double().numpy(),
                        candidates=found.num_candidates[wanted].double().numpy(),
                    )
                )
    return pd.concat([part for parts in scoring.gathered(frames).values() for part in parts], ignore_index=True)


def _outside(log_s: torch.Tensor, log_m: torch.Tensor, captured: torch.Tensor, margin: float = 1e-5) -> torch.Tensor:
    """1 where some w breaks S(w) <= m2(w) <= S(w) + 1 - M by more than rounding."""
    low, m = log_s.exp(), log_m.exp()
    high = low + (1 - captured).clamp(min=0)[:, None]
    return ((m < low - margin) | (m > high + margin)).any(1).double()
