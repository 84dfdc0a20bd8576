"""The marginal, labels and controls of one backbone on one corpus, measured once: what every notebook scores against."""

import hashlib
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from ..backbones.anatomy import rows_of
from ..base import records
from ..text.blocks import everywhere, stream_digest
from . import controls, measures
from .scoring import Labels, Tokenizer, positions_of

DRAWN = ("sampled", "greedy")  # label sources beyond the data's own
# How the marginal is computed at each offset, wherever it is scored. Offsets 3 and 4 have no exact reference at this
# vocabulary: hybrid, with captured_mass in the table and the bias measured at offset 2.
ESTIMATORS = {1: {"exact": True}, 2: {"exact": True}, 3: {"top_k": 8, "samples": 64}, 4: {"top_k": 4, "samples": 64}}
LARGEST_EXACT = 4096  # vocabulary up to which offset 2 is summed over all of it
# Above that: each candidate costs a pass of a larger model, and offsets 3 and 4 are exploratory.
BEYOND = {2: {"top_k": 128, "samples": 128}, 3: {"top_k": 8, "samples": 32}, 4: {"top_k": 4, "samples": 32}}
NEARLY = {"top_k": 1024, "samples": 256}  # what that is held against, on few documents: unbiased, and little of it is sampled


def sums_exactly(backbone) -> bool:
    """Whether offset 2 is an exact sum on this backbone."""
    return rows_of(backbone.model.get_output_embeddings()) <= LARGEST_EXACT


def estimators_of(backbone) -> dict[int, dict]:
    """offset -> arguments of future_log_probs, for a vocabulary of that size."""
    return ESTIMATORS if sums_exactly(backbone) else ESTIMATORS | BEYOND


def held_against(backbone) -> tuple[dict, str]:
    """What estimators of offset 2 are held against on this backbone: arguments of future_log_probs, and in words."""
    nearly = f"{NEARLY['top_k']:,} candidates and {NEARLY['samples']} samples"
    return ({"exact": True}, "the exact sum") if sums_exactly(backbone) else (NEARLY, nearly)


def stem_of(backbone, blocks) -> str:
    """How the tables of one backbone on one corpus are called."""
    return f"{backbone.name.replace('/', '-')}_{blocks.corpus}"


def measured_at(run, backbone) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(offsets, label sources beyond data) of a backbone: all for the profile's last rungs, offsets 1 and 2 for the others."""
    last = backbone.name in run.profile.last_rungs
    return (tuple(range(1, run.profile.horizon + 1)), DRAWN) if last else ((1, 2), ())


def marginals(run, backbone, blocks, offset: int = 1) -> records.Arrays:
    """The arrays of one backbone on one corpus that hold this offset (and the drawn labels), measured if they are not stored."""
    offsets_wanted, drawn = measured_at(run, backbone)
    stem = f"01_marginals_{stem_of(backbone, blocks)}"
    if offset not in offsets_wanted:
        stem, offsets_wanted, drawn = f"{stem}_{offset}", (offset,), ()
    return run.measure_arrays(
        stem,
        measures.marginal_arrays,
        backbone=backbone,
        blocks=blocks,
        estimators={str(k): estimators_of(backbone)[k] for k in offsets_wanted},
        drawn=drawn,
    )


def marginal(run, backbone, blocks, offset: int) -> records.Arrays:
    """The marginal of one backbone on one corpus at one offset: the arrays of `marginal_arrays`, without the offset's number."""
    return at_offset(marginals(run, backbone, blocks, offset), offset)


def at_offset(found: records.Arrays, offset: int) -> records.Arrays:
    """Of the arrays of `marginal_arrays` those of one offset, without its number."""
    ending = f".{offset}"
    values = {name.removesuffix(ending): x for name, x in found.values.items() if name.endswith(ending)}
    return records.Arrays(values, f"{found.fingerprint}{ending}")


def scored_at(blocks, chosen: torch.Tensor, how: str):
    """The blocks with only those of their scored positions scored that are `chosen` (documents, CONTEXT); how: said in the
    fingerprint."""
    digest = hashlib.sha256(f"{blocks.fingerprint}/{how}".encode()).hexdigest()
    return replace(blocks, scored=blocks.scored & chosen, fingerprint=digest)


def labels(run, backbone, blocks) -> Labels:
    """The labels of one backbone on one corpus: all sources for the profile's last rungs, the data's own for the others."""
    found = marginals(run, backbone, blocks)
    key = blocks.fingerprint, found.fingerprint
    if key not in _KEPT:
        drawn = {n.split(".")[1]: x for n, x in found.values.items() if n.startswith("labels.")}
        _KEPT[key] = Labels(measures.label_table(blocks, {source: drawn[source] for source in DRAWN if source in drawn}))
    return _KEPT[key]


_KEPT = {}  # every arm that is scored asks for them


def marginal_scores(run, backbone, blocks, offsets_wanted: tuple[int, ...]) -> pd.DataFrame:
    """The marginal's scores of one backbone on one corpus at these offsets, from stored tables where they exist."""
    known = labels(run, backbone, blocks)
    frames = [
        run.measure(
            f"01_scores{offset}_{stem_of(backbone, blocks)}",
            measures.marginal_table,
            marginal=marginal(run, backbone, blocks, offset),
            labels=known,
            name=backbone.name,
            offset=offset,
            estimator=estimators_of(backbone)[offset],
        )
        for offset in offsets_wanted
    ]
    return pd.concat(frames, ignore_index=True)


def control_scores(run, backbone, blocks) -> pd.DataFrame:
    """The scores of the counting controls and of the greedy path on one backbone's labels, from stored tables."""
    stem, counted = stem_of(backbone, blocks), counting_of(run, backbone, blocks)
    common = {"labels": labels(run, backbone, blocks), "name": backbone.name}
    frames = [
        run.measure(f"01_controls_{stem}", controls.control_table, **common, **counted),
        run.measure(f"01_greedy_path_{stem}", controls.greedy_path_table, **common),
    ]
    return pd.concat(frames, ignore_index=True)


def rival_scores(run, backbone, blocks) -> pd.DataFrame:
    """The scores of the training-free rival on one backbone's labels, from stored tables."""
    known = labels(run, backbone, blocks)
    return run.measure(f"01_esp_{stem_of(backbone, blocks)}", controls.esp_table, backbone=backbone, blocks=blocks, labels=known)


def next_tokens(run, backbone, blocks) -> records.Arrays:
    """What one backbone says of the next token everywhere in the windows of one corpus (measures.next_token_arrays)."""
    stem = f"00_next_{stem_of(backbone, blocks)}"
    return run.measure_arrays(stem, measures.next_token_arrays, backbone=backbone, blocks=blocks)


def next_token_losses(run, backbone, blocks) -> pd.DataFrame:
    """Held-out next-token cross-entropy, the mean over all tokens of each document's window, nats: backbone, corpus, document,
    cross_entropy, n_tokens."""
    log_prob = next_tokens(run, backbone, blocks).values["log_prob"].astype(float)
    keys = {"backbone": backbone.name, "corpus": blocks.corpus, "document": blocks.documents}
    return pd.DataFrame({**keys, "cross_entropy": -np.nanmean(log_prob, axis=1), "n_tokens": (~np.isnan(log_prob)).sum(1)})


def variates_of(run, backbone, blocks) -> pd.DataFrame:
    """What is known at *all* eligible positions t of these blocks' documents, for metrics.paired_with: by predictor of counting
    and position what the backbone says of the token at t + 1 (`next_log_prob`, `next_top1`) and, that one known, of the one at
    t + 2 (`after_`), and what that predictor says of the token after next."""
    wide, said = everywhere(blocks, backbone.tokenizer), next_tokens(run, backbone, blocks).values
    row, t = np.nonzero(wide.scored.numpy())
    known = {f"{at}_{x}": said[x][row, t + k].astype(float) for k, at in enumerate(("next", "after")) for x in said}
    of_counting = counted_everywhere(run, backbone, blocks)
    return of_counting.merge(positions_of(wide).assign(**known), on=["corpus", "document", "position"], validate="many_to_one")


def counted_everywhere(run, backbone, blocks) -> pd.DataFrame:
    """What counting says of the data's own token after next at all eligible positions (controls.counting_table)."""
    given = counting_of(run, backbone, everywhere(blocks, backbone.tokenizer))
    return run.measure(f"01_counting_everywhere_{blocks.corpus}", controls.counting_table, **given)


def counting_of(run, backbone, blocks) -> dict:
    """What every measurement of counting is given: the tokenizer, the blocks, and the split that is counted with its digest."""
    split = run.profile.control_split
    given = {"tokenizer": Tokenizer(backbone.tokenizer), "blocks": blocks, "split": split}
    return given | {"text": stream_digest(blocks.corpus, split, backbone.tokenizer)}
