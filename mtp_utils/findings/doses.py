"""C2's dose-response: how the marginal answers to the true entropy of the token after next, which the grammar of the generated
translations knows, position by position.

A German sentence is all but given by the English one before it, at any rate of free choice. The English one is free: where two
of its tokens or fewer are known, the grammar allows anything from one continuation to hundreds. The ladder was trained on both.
"""

import dataclasses
import hashlib
import random
from collections import Counter

import numpy as np
import pandas as pd
import torch

from ..backbones.load import Backbone
from ..base.runtime import progress
from ..text import corpora
from ..text.grammar import translation
from ..text.tokens import encode, encode_with_starts, front_of, vocabulary_of
from . import controls, measures, metrics, scoring, stored
from .claims import LABELS, OFFSET
from .scoring import Labels, Tokenizer

SENTENCES = 200_000  # drawn from the grammar, for its distribution behind the beginning of one
KNOWN = 2  # tokens of the English sentence that are known at most
RAREST = 400  # of so many sentences one at least begins in that way, or the position is left out
EDGES = (0.0, 0.5, 1.5, 2.5, 3.5, np.inf)  # nats of true entropy


def dose_response(run, backbones: dict[str, Backbone], blocks, scores: pd.DataFrame) -> pd.DataFrame:
    """Cross-entropy and top-1 at offset 2 by the true entropy of m2 in bins (`dose`, its mean, nats), of every backbone and of
    the grammar's own distribution (`grammar`), on both sides of the translations. blocks: the translation blocks; scores: the
    marginal's at offset 2 on their German sides."""
    one = next(iter(backbones.values()))
    tokenizer, free = Tokenizer(one.tokenizer), free_blocks(blocks, one.tokenizer)
    given = {"tokenizer": tokenizer, "blocks": blocks, "labels": stored.labels(run, one, blocks)}
    german = run.measure("02_gold", controls.gold_table, **given)
    labels, n = Labels(measures.label_table(free, {})), SENTENCES if run.profile.judges else SENTENCES // 50
    english = run.measure("02_gold_free", free_truth, tokenizer=tokenizer, blocks=free, labels=labels, n=n)
    frames = [scores[(scores.corpus == blocks.corpus) & scores.backbone.isin(backbones)]]
    for backbone in backbones.values():
        how = stored.estimators_of(backbone)[OFFSET]
        asked = {"backbone": backbone, "blocks": free, "estimators": {str(OFFSET): how}, "drawn": ()}
        found = run.measure_arrays(f"02_free_{stored.stem_of(backbone, free)}", measures.marginal_arrays, **asked)
        log_probs = torch.from_numpy(found.values[f"log_probs.{OFFSET}"])
        name = scoring.estimator_name(OFFSET, how)
        frames.append(scoring.score(log_probs, labels.table, OFFSET, backbone.name, "marginal", name))
    return by_dose(pd.concat(frames, ignore_index=True), pd.concat([german, english], ignore_index=True))


def by_dose(scores: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """The long table of dose_response. truth: the grammar's scores of the same positions with their `entropy`; of the others
    nothing is said."""
    keys = ["corpus", "document", "position"]
    both = pd.concat([scores, truth.drop(columns="entropy")], ignore_index=True)
    both = both.merge(truth[[*keys, "entropy"]].rename(columns={"entropy": "dose"}), on=keys, validate="many_to_one")
    both = both.assign(cross_entropy=-both["log_prob"], bin=pd.cut(both["dose"], EDGES, include_lowest=True).cat.codes)
    found = metrics.summarise(both, ["backbone", "bin"], ["cross_entropy", "top1", "dose"])
    doses = found[(found.metric == "dose") & (found.backbone == "grammar")].set_index("bin")["value"]
    return found[found.metric != "dose"].assign(dose=found["bin"].map(doses)).drop(columns="bin")


def free_blocks(blocks, tokenizer):
    """The windows of generated translations with those positions that count where the language is free: in the last English
    sentence that begins in the window, where none, one, ... KNOWN of its tokens have been read. Called `english`."""
    known, scored = {d.id: d for d in corpora.documents("translation", blocks.split)}, torch.zeros_like(blocks.scored)
    for row, name in enumerate(blocks.documents):
        document = known[name]
        _, starts = encode_with_starts(tokenizer, document.text)
        sides = zip(document.spans, document.pairs, strict=True)
        begins = [starts.index(span[0] - len(pair.english) - 1) for span, pair in sides]
        first, end = len(front_of(tokenizer)) - 1, int(blocks.mask[row].sum()) - KNOWN - blocks.horizon
        t = max(first + begin for begin in begins if first + begin < end)
        scored[row, t : t + KNOWN + 1] = True
    digest = hashlib.sha256(f"{blocks.fingerprint}/english".encode() + scored.numpy().tobytes()).hexdigest()
    return dataclasses.replace(blocks, corpus="english", scored=scored, fingerprint=digest)


def free_truth(tokenizer: Tokenizer, blocks, labels: Labels, n: int, seed: int = 0) -> pd.DataFrame:
    """The true distribution of the token after next where `free_blocks` counts: by n sentences drawn from the grammar, those that
    begin as the one at hand. Scored as in measures.py, with its `entropy` (Miller and Madow's estimate, nats); positions of which
    too few sentences say anything are left out."""
    tokenizer, rng = tokenizer.tokenizer, random.Random(f"sentences/{seed}")
    drawn = [translation.sample_pair(rng, 0.0).english + "\n" for _ in progress(range(n), "sentences of the grammar")]
    begins = [tuple(ids[: KNOWN + OFFSET]) for ids in encode(tokenizer, drawn)]
    width, counts = vocabulary_of(tokenizer), {}
    for known in range(KNOWN + 1):
        for ids in begins:
            counts.setdefault(ids[:known], Counter())[ids[known + OFFSET - 1]] += 1
    rows, entropies, enough = [], [], []
    for i, (row, t) in enumerate(blocks.scored.nonzero().tolist()):
        known = i % (KNOWN + 1)
        found = counts.get(tuple(blocks.tokens[row, t - known + 1 : t + 1].tolist()), Counter())
        p = np.zeros(width)
        p[list(found)] = list(found.values())
        total = p.sum()
        enough.append(total >= max(2, n / RAREST))
        if enough[-1]:
            p /= total
            entropies.append(-(p[p > 0] * np.log(p[p > 0])).sum() + (len(found) - 1) / (2 * total))
            rows.append(np.log((total * p + 1 / width) / (total + 1)))  # a label that no drawn sentence has is no impossible one
    data = labels.table[(labels.table.offset == OFFSET) & (labels.table.label_source == LABELS)]
    scored = scoring.score(torch.from_numpy(np.stack(rows)), data[enough], OFFSET, "grammar", "gold", f"{n} sentences")
    return scored.assign(entropy=entropies)
