"""What the marginal is held against: counting, the greedy path, the grammar's own distribution, other documents' labels.

Tables as in measures.py: one row per scored position and predictor.
"""

import numpy as np
import pandas as pd
import torch

from ..base import ranks
from ..marginal.future import future_log_probs
from ..marginal.masks import masked_log_probs
from ..text import blocks as blocks_module
from ..text import corpora, offsets
from ..text.grammar import translation
from ..text.tokens import encode, front_of, vocabulary_of
from . import scoring
from .counting import CACHED, PLAIN, PREDICTORS, Counts
from .scoring import Labels, Tokenizer, score


def control_table(tokenizer: Tokenizer, blocks, labels: Labels, name: str, split: str, text: str) -> pd.DataFrame:
    """Unigram, skip-bigram, interpolated skip-trigram and the cache n-gram model, counted on a split of the same corpus, at every
    offset; text: the digest of what is counted. `estimator` names what the cache model was chosen to be on validation text."""
    frames = []
    for offset in range(1, blocks.horizon + 1):
        counts, models = counted(tokenizer, blocks, split, text, offset)
        sources = list(labels.table[labels.table.offset == offset].groupby("label_source", sort=False))
        found = counts.scores(np.stack([rows["label"].to_numpy() for _, rows in sources], 1), models)
        for predictor, (order, weight) in models.items():
            plain = "counts" if predictor in PREDICTORS else f"{order} tokens, the document's own x {weight:g}"
            for i, (_, rows) in enumerate(sources):
                about = {"backbone": name, "predictor": predictor, "estimator": plain}
                of_source = {what: values[:, i] for what, values in found[predictor].items()}
                frames.append(rows.drop(columns="label").assign(**about, **of_source))
    return pd.concat(frames, ignore_index=True)


_counted = {}  # of one text: the same for every backbone


def counted(tokenizer: Tokenizer, blocks, split: str, text: str, offset: int) -> tuple[Counts, dict[str, tuple[int, float]]]:
    """What follows the scored positions of these blocks, counted on a split of the same corpus; and the controls: predictor ->
    (tokens of context, what a token of the document counts), the cache model's chosen on validation text."""
    key = tokenizer.fingerprint, blocks.fingerprint, split, text
    if key not in _counted:
        _counted.clear()
        _counted[key] = {}
    if offset not in _counted[key]:
        read = [f(blocks.corpus, split, tokenizer.tokenizer) for f in (blocks_module.stream, blocks_module.begins)]
        row, t = np.nonzero(blocks.scored.numpy())
        prefixes = [blocks.tokens[r, : e + 1].numpy() for r, e in zip(row, t, strict=True)]
        asked, tried = _validation_positions(tokenizer.tokenizer, blocks.corpus, offset)
        size = offset, vocabulary_of(tokenizer.tokenizer)
        models = PLAIN | {CACHED: Counts(*read, asked, *size).best(tried)}
        _counted[key][offset] = Counts(*read, prefixes, *size), models
    return _counted[key][offset]


ASKED = 400  # positions of validation text at which the cache model is chosen


def _validation_positions(tokenizer, corpus: str, offset: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Up to ASKED positions anywhere in validation documents: what stands before each (from MIN_CONTEXT tokens to a window's
    length), and the token `offset` ahead."""
    stream, begins = (f(corpus, "validation", tokenizer).astype(np.int64) for f in (blocks_module.stream, blocks_module.begins))
    first = np.repeat(begins, np.diff([*begins, len(stream)]))  # where the document of each token begins
    at = np.arange(len(stream))
    allowed = at[(at - first >= blocks_module.MIN_CONTEXT) & (at + offset < len(stream))]
    allowed = allowed[first[allowed] == first[allowed + offset]]
    chosen = np.random.default_rng(seed).choice(allowed, min(ASKED, len(allowed)), replace=False)
    starts = np.maximum(first[chosen], chosen - blocks_module.CONTEXT + 1)
    return [stream[a : t + 1] for a, t in zip(starts, chosen, strict=True)], stream[chosen + offset]


def counting_table(tokenizer: Tokenizer, blocks, split: str, text: str) -> pd.DataFrame:
    """The counting controls at every scored position of these blocks, on the data's own token after next: corpus, document,
    position, predictor, log_prob (nats), top1. text: the digest of what is counted."""
    counts, models = counted(tokenizer, blocks, split, text, 2)
    found = counts.scores(offsets.labels_of(blocks.tokens, blocks.scored, 2).numpy()[:, None], models)
    keys = scoring.positions_of(blocks)
    return pd.concat(
        [keys.assign(predictor=name, log_prob=of["log_prob"][:, 0], top1=of["top1"][:, 0]) for name, of in found.items()],
        ignore_index=True,
    )


def greedy_path_table(labels: Labels, name: str) -> pd.DataFrame:
    """The backbone's greedy continuation as a predictor of the other label sources (a point mass: top-1 alone)."""
    keys = ["corpus", "document", "position", "offset"]
    table = labels.table
    greedy = table[table.label_source == "greedy"][[*keys, "label"]]
    others = table[table.label_source != "greedy"].merge(greedy, on=keys, suffixes=("", "_greedy"), validate="many_to_one")
    hit = (others.label == others.label_greedy).astype(float)
    return others[[*keys, "label_source", "token_class"]].assign(
        backbone=name, predictor="greedy_path", estimator="greedy", log_prob=np.nan, top1=hit, top5=np.nan
    )


def esp_table(backbone, blocks, labels: Labels) -> pd.DataFrame:
    """The training-free rival (marginal/masks.py): mask embeddings behind the prefix, read at offsets 2 to the horizon."""
    found = {k: [] for k in range(2, blocks.horizon + 1)}
    for part in scoring.parts_of(blocks, f"masks {backbone.name} {blocks.corpus}"):
        asked = {"attention_mask": blocks.mask[part], "positions": blocks.scored[part]}
        for k, rows in masked_log_probs(backbone.model, blocks.tokens[part], blocks.horizon, **asked).items():
            found[k].append(rows)
    whole = {k: torch.cat(parts) for k, parts in scoring.gathered(found).items()}
    return pd.concat([score(x, labels.table, k, backbone.name, "esp", "one pass") for k, x in whole.items()], ignore_index=True)


def gold_table(tokenizer: Tokenizer, blocks, labels: Labels, offset: int = 2) -> pd.DataFrame:
    """The true distribution of the token `offset` ahead in generated translations, given the English and the German so far.

    Every German sentence the grammar allows is encoded; those that agree with the prefix, weighted by their true
    probability, give the token `offset` ahead. With the entropy of that true distribution.
    """
    tokenizer = tokenizer.tokenizer
    documents = {d.id: d for d in corpora.documents("translation", blocks.split)}
    row, position = np.nonzero(blocks.scored.numpy())
    n = len(front_of(tokenizer))  # tokens of a block that stand before its document
    log_probs = torch.full((len(row), len(tokenizer)), -torch.inf, dtype=torch.float64)
    for i, (r, t) in enumerate(zip(row, position, strict=True)):
        mass = torch.zeros(len(tokenizer), dtype=torch.float64)
        for ids, p in _alternatives(documents[blocks.documents[r]], blocks.tokens[r, n : t + 1].tolist(), tokenizer):
            mass[ids[t + offset - n]] += p
        log_probs[i] = (mass / mass.sum()).log()
    found = score(log_probs, labels.table[labels.table.label_source == "data"], offset, "grammar", "gold", "exact")
    return found.assign(entropy=scoring.entropy(log_probs).numpy(), max_prob=log_probs.max(-1).values.exp().numpy())


def _alternatives(document, prefix: list[int], tokenizer) -> list[tuple[list[int], float]]:
    """(token ids of the document with another German sentence, probability) for all that agree with the prefix ids."""
    starts = [a for a, _ in tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    now = starts[len(prefix)]  # the first character not yet seen
    pair, (first, last) = next((p, s) for p, s in zip(document.pairs, document.spans, strict=True) if s[0] <= now < s[1])
    options = translation.german_distribution(pair, document.rate)
    texts = [document.text[:first] + german + document.text[last - 1 :] for german, _ in options]
    encoded = encode(tokenizer, texts)
    return [(ids, p) for ids, (_, p) in zip(encoded, options, strict=True) if ids[: len(prefix)] == prefix]


def blind_table(backbone, blocks) -> pd.DataFrame:
    """What m2 at the first scored position t of each document changes by, where all that stands behind t is another document's:
    corpus, document, position, replaced (tokens), difference (the largest of a probability, 64 candidates). The end of the window
    is asked for too, so that what stands behind t is read in the same pass."""
    first = blocks.scored & (blocks.scored.cumsum(1) == 1)
    behind, end = first.cumsum(1).bool() & ~first, blocks.mask.cumsum(1) == (blocks.mask.sum(1, keepdim=True) - 2)
    changed = torch.where(behind, blocks.tokens.roll(1, 0), blocks.tokens)
    given, rows = {"offset": 2, "top_k": min(64, vocabulary_of(backbone.tokenizer))}, []
    for part in scoring.parts_of(blocks, f"later tokens {backbone.name} {blocks.corpus}"):
        asked = {"attention_mask": blocks.mask[part], "positions": (first | end)[part], **given}
        each = [future_log_probs(backbone.model, x[part], **asked).at(first[part]).exp() for x in (blocks.tokens, changed)]
        found = (each[0] - each[1]).abs().amax(1).tolist()
        replaced = (behind & blocks.mask & (changed != blocks.tokens))[part].sum(1).tolist()
        names = [blocks.documents[i] for i in part.tolist()]
        rows += zip(names, first[part].int().argmax(1).tolist(), replaced, found, strict=True)
    rows = [row for share in ranks.gather(rows) for row in share]
    return pd.DataFrame(rows, columns=["document", "position", "replaced", "difference"]).assign(corpus=blocks.corpus)


def negative_control_table(marginal, blocks, labels: Labels, name: str, seed: int = 0, draws: int = 200) -> pd.DataFrame:
    """Arg-max predictions paired with *another* document's labels: what being right is worth by the frequencies of tokens alone.

    marginal: the stored arrays at offset 2. One row per random re-pairing: rate; top1_true_pairs, the rate of the documents' own.
    """
    argmax = marginal.values["log_probs"].argmax(1)
    data = labels.table
    data = data[(data.offset == 2) & (data.label_source == "data")]
    rng = np.random.default_rng(seed)
    documents = data["document"].to_numpy()
    other = documents[:, None] != documents[None]
    hits = argmax[:, None] == data["label"].to_numpy()[None]
    own = float(hits.diagonal().mean())
    rows = []
    for draw in range(draws):
        partner = np.array([rng.choice(np.flatnonzero(allowed)) for allowed in other])
        rows.append((name, blocks.corpus, draw, float(hits[np.arange(len(hits)), partner].mean()), own))
    return pd.DataFrame(rows, columns=["backbone", "corpus", "draw", "rate", "top1_true_pairs"])
