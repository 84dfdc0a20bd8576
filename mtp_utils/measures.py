"""Measuring functions: a backbone and evaluation blocks in, a tidy DataFrame out, one row per scored position and predictor.

Columns shared by all: backbone, corpus, document, position, offset, label_source, predictor, estimator, log_prob (nats, of
the label), top1, top5 (0/1). Summaries and intervals are made from these tables by metrics.py, figures from those.
"""

import sys

import numpy as np
import pandas as pd
import torch

from . import controls, metrics, offsets
from .marginal import future_log_probs, future_tokens
from .scoring import Labels, Tokenizer, estimator_name, parts_of, positions_of, score, seeds_of

DRAWN = ("sampled", "greedy")  # label sources beyond the data's own
# How the marginal is computed at each offset, wherever it is scored. Offsets 3 and 4 have no exact reference at this
# vocabulary: hybrid, with captured_mass in the table and the bias measured at offset 2.
ESTIMATORS = {1: {"exact": True}, 2: {"exact": True}, 3: {"top_k": 8, "samples": 64}, 4: {"top_k": 4, "samples": 64}}


def stem_of(backbone, blocks) -> str:
    """How the tables of one backbone on one corpus are called."""
    return f"{backbone.name.replace('/', '-')}_{blocks.corpus}"


def stored_labels(run, backbone, blocks) -> Labels:
    """The labels of one backbone on one corpus: all sources for the profile's last rungs, the data's own for the others."""
    stem = f"01_labels_{stem_of(backbone, blocks)}"
    drawn = DRAWN if backbone.name in run.profile.last_rungs else ()
    return Labels(run.measure(stem, label_table, modules=[sys.modules[__name__]], backbone=backbone, blocks=blocks, drawn=drawn))


def stored_marginal(run, backbone, blocks, offset: int):
    """The marginal of one backbone on one corpus at one offset, from the stored arrays where they exist."""
    return run.measure_arrays(
        f"01_marginal{offset}_{stem_of(backbone, blocks)}",
        marginal_arrays,
        modules=[sys.modules[__name__]],
        backbone=backbone,
        blocks=blocks,
        offset=offset,
        estimator=ESTIMATORS[offset],
    )


def marginal_scores(run, backbone, blocks, offsets_wanted: tuple[int, ...]) -> pd.DataFrame:
    """The marginal's scores of one backbone on one corpus at these offsets, from stored tables where they exist."""
    labels = stored_labels(run, backbone, blocks)
    frames = [
        run.measure(
            f"01_scores{offset}_{stem_of(backbone, blocks)}",
            marginal_table,
            modules=[sys.modules[__name__]],
            marginal=stored_marginal(run, backbone, blocks, offset),
            labels=labels,
            name=backbone.name,
            offset=offset,
            estimator=ESTIMATORS[offset],
        )
        for offset in offsets_wanted
    ]
    return pd.concat(frames, ignore_index=True)


def control_scores(run, backbone, blocks) -> pd.DataFrame:
    """The scores of the counting controls and of the greedy path on one backbone's labels, from stored tables."""
    labels, stem = stored_labels(run, backbone, blocks), stem_of(backbone, blocks)
    common = {"modules": [controls], "labels": labels, "name": backbone.name}
    counted = {"tokenizer": Tokenizer(backbone.tokenizer), "blocks": blocks, "split": run.profile.control_split}
    frames = [
        run.measure(f"01_controls_{stem}", controls.control_table, **common, **counted),
        run.measure(f"01_greedy_path_{stem}", controls.greedy_path_table, **common),
    ]
    return pd.concat(frames, ignore_index=True)


def ntp_table(backbone, blocks) -> pd.DataFrame:
    """Held-out next-token cross-entropy: the mean over all real tokens of each document's window, in nats."""
    rows = []
    for part in parts_of(blocks, f"next-token loss {backbone.name} {blocks.corpus}"):
        with torch.no_grad():
            inputs = {"input_ids": blocks.tokens[part], "attention_mask": blocks.mask[part].long()}
            logits = backbone.model(**{name: x.to(backbone.model.device) for name, x in inputs.items()}).logits.cpu()
        logits, labels = offsets.predictions_at(logits, 1), offsets.labels_at(blocks.tokens[part], 1)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
        keep = offsets.labels_at(blocks.mask[part], 1)
        means = (losses.view_as(labels) * keep).sum(1) / keep.sum(1)
        rows += [
            (backbone.name, blocks.corpus, blocks.documents[r], float(m), int(n))
            for r, m, n in zip(part.tolist(), means, keep.sum(1), strict=True)
        ]
    return pd.DataFrame(rows, columns=["backbone", "corpus", "document", "cross_entropy", "n_tokens"])


def label_table(backbone, blocks, drawn: tuple[str, ...] = DRAWN) -> pd.DataFrame:
    """The token at each offset by label source: the document's own, drawn from the backbone, its greedy continuation.

    Drawn once, seeded per document and position; stored, so that every later measurement scores the same labels.
    """
    frames = []
    keys = positions_of(blocks)
    drawn = {source: [] for source in drawn}
    seeds = seeds_of("labels", blocks)
    for part in parts_of(blocks, f"labels {backbone.name} {blocks.corpus}") if drawn else ():
        for source in drawn:
            tokens = future_tokens(
                backbone.model,
                blocks.tokens[part],
                blocks.horizon,
                sample=source == "sampled",
                seed=seeds[part],
                attention_mask=blocks.mask[part],
                positions=blocks.scored[part],
            )
            drawn[source].append(tokens[blocks.scored[part]])
    for offset in range(1, blocks.horizon + 1):
        frames.append(
            keys.assign(
                offset=offset,
                label_source="data",
                label=offsets.labels_of(blocks.tokens, blocks.scored, offset).numpy(),
                token_class=offsets.labels_of(blocks.classes, blocks.scored, offset).numpy(),
            )
        )
        for source, tokens in drawn.items():
            frames.append(
                keys.assign(offset=offset, label_source=source, label=torch.cat(tokens)[:, offset - 1].numpy(), token_class=-1)
            )
    return pd.concat(frames, ignore_index=True)


def marginal_arrays(backbone, blocks, offset: int, estimator: dict) -> dict[str, np.ndarray]:
    """The marginal at one offset on all scored positions, whatever the label; estimator: arguments of future_log_probs.

    log_probs (positions, vocab) float32, nats; captured_mass, certified, candidates, entropy and max_prob of the
    distribution (positions,); exact ones: entropy is H, and mutual_information stands beside it.
    """
    exact = bool(estimator.get("exact")) and offset > 1
    found = {}
    seeds = seeds_of(f"offset {offset}", blocks)
    for part in parts_of(blocks, f"offset {offset} {backbone.name} {blocks.corpus}"):
        wanted = blocks.scored[part]
        call = {"attention_mask": blocks.mask[part], "positions": wanted}
        f = future_log_probs(
            backbone.model, blocks.tokens[part], offset, with_entropy=exact, seed=seeds[part], **estimator, **call
        )
        log_probs = f.log_probs[wanted]
        columns = {
            "log_probs": log_probs,
            "captured_mass": f.captured_mass[wanted],
            "certified": f.certified[wanted].float(),
            "candidates": f.num_candidates[wanted].float(),
            "entropy": metrics.entropy(log_probs),
            "mutual_information": f.mutual_information[wanted] if exact else torch.full((len(log_probs),), torch.nan),
            "max_prob": log_probs.max(-1).values.exp(),
        }
        for name, values in columns.items():
            found.setdefault(name, []).append(values.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def marginal_table(marginal, labels: Labels, name: str, offset: int, estimator: dict) -> pd.DataFrame:
    """The stored marginal at one offset, scored against every label source in `labels`; see `marginal_arrays`."""
    log_probs = torch.from_numpy(marginal.values["log_probs"])
    rows = score(log_probs, labels.table, offset, name, "marginal", estimator_name(offset, estimator))
    extra = {name: values.astype(float) for name, values in marginal.values.items() if name != "log_probs"}
    sources = len(rows) // len(log_probs)
    return rows.assign(**{name: np.tile(values, sources) for name, values in extra.items()})


def truncation_table(backbone, blocks, estimators: list[dict]) -> pd.DataFrame:
    """At offset 2, each estimator against the exact sum on the same positions: error of the distribution (total
    variation), of the cross-entropy, H and I, captured mass, certified share, agreement of the arg-max, candidates."""
    frames = []
    data = offsets.labels_of(blocks.tokens, blocks.scored, 2)
    keys, seeds = positions_of(blocks), seeds_of("truncation", blocks)
    for part in parts_of(blocks, f"truncation {backbone.name} {blocks.corpus}"):
        wanted = blocks.scored[part]
        call = {"attention_mask": blocks.mask[part], "positions": wanted, "with_entropy": True}
        exact = future_log_probs(backbone.model, blocks.tokens[part], 2, exact=True, **call)
        true = exact.log_probs[wanted]
        here = keys["document"].isin([blocks.documents[r] for r in part]).tolist()
        label = data[torch.tensor(here)]
        for estimator in estimators:
            found = future_log_probs(backbone.model, blocks.tokens[part], 2, seed=seeds[part], **estimator, **call)
            log_probs = found.log_probs[wanted]
            captured = found.captured_mass[wanted]
            bounded = "samples" not in estimator
            scored = {"S": 1.0} | ({"S/M": captured} if bounded else {})
            for which, scale in scored.items():
                values = (log_probs.exp() / torch.as_tensor(scale).expand_as(captured)[:, None]).log()
                known = found.conditional_entropy[wanted] / scale
                frames.append(
                    keys[here].assign(
                        backbone=backbone.name,
                        estimator=estimator_name(2, estimator),
                        scored=which,
                        log_prob=values.gather(1, label[:, None])[:, 0].double().numpy(),
                        log_prob_exact=true.gather(1, label[:, None])[:, 0].double().numpy(),
                        total_variation=(0.5 * (values.exp() - true.exp()).abs().sum(1)).double().numpy(),
                        outside_bounds=_outside(values, true, captured).numpy() if bounded and which == "S" else np.nan,
                        entropy=metrics.entropy(values).double().numpy(),
                        entropy_exact=metrics.entropy(true).double().numpy(),
                        mutual_information=(metrics.entropy(values) - known).double().numpy(),
                        mutual_information_exact=exact.mutual_information[wanted].double().numpy(),
                        captured_mass=captured.double().numpy(),
                        certified=found.certified[wanted].double().numpy(),
                        same_argmax=(log_probs.argmax(1) == true.argmax(1)).double().numpy(),
                        candidates=found.num_candidates[wanted].double().numpy(),
                    )
                )
    return pd.concat(frames, ignore_index=True)


def _outside(log_s: torch.Tensor, log_m: torch.Tensor, captured: torch.Tensor, margin: float = 1e-5) -> torch.Tensor:
    """1 where some w breaks S(w) <= m2(w) <= S(w) + 1 - M by more than rounding."""
    low, m = log_s.exp(), log_m.exp()
    high = low + (1 - captured).clamp(min=0)[:, None]
    return ((m < low - margin) | (m > high + margin)).any(1).double()
