"""What the marginal is held against: counting, the greedy path, the grammar's own distribution, other documents' labels.

Tables as in measures.py: one row per scored position and predictor.
"""

import numpy as np
import pandas as pd
import torch

from ..text import blocks as blocks_module
from ..text import corpora
from ..text.grammar import translation
from ..text.tokens import encode, front_of, vocabulary_of
from . import ngrams, scoring
from .scoring import Labels, Tokenizer, score


def control_table(tokenizer: Tokenizer, blocks, labels: Labels, name: str, split: str, text: str) -> pd.DataFrame:
    """Unigram, skip-bigram and interpolated skip-trigram, counted on a split of the same corpus, at every offset; text: the
    digest of what is counted."""
    frames = []
    for offset in range(1, blocks.horizon + 1):
        found = _control_log_probs(tokenizer, blocks, split, text, offset).items()
        frames += [score(log_probs, labels.table, offset, name, predictor, "counts") for predictor, log_probs in found]
    return pd.concat(frames, ignore_index=True)


_counted = {}  # of small vocabularies: the same for every backbone
KEPT = 4096  # tokens of a vocabulary, at most; of a larger one they are gigabytes


def _control_log_probs(tokenizer: Tokenizer, blocks, split: str, text: str, offset: int) -> dict[str, torch.Tensor]:
    """predictor -> (positions, vocab) log-probs of the counting controls at an offset, nats."""
    vocabulary = vocabulary_of(tokenizer.tokenizer)
    key = tokenizer.fingerprint, blocks.fingerprint, split, text, vocabulary
    if key not in _counted:
        _counted.clear()
        _counted[key] = {}
    if offset not in _counted[key]:
        stream = blocks_module.stream(blocks.corpus, split, tokenizer.tokenizer)
        begins = blocks_module.begins(blocks.corpus, split, tokenizer.tokenizer)
        row, t = np.nonzero(blocks.scored.numpy())
        contexts = np.stack([blocks.tokens[row, t - 1].numpy(), blocks.tokens[row, t].numpy()], 1)
        probs = ngrams.ngram_probs(stream, begins, contexts, offset, vocabulary)
        found = {predictor: torch.from_numpy(np.log(values)) for predictor, values in probs.items()}
        if vocabulary > KEPT:
            return found
        _counted[key][offset] = found
    return _counted[key][offset]


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


def negative_control_table(marginal, blocks, labels: Labels, name: str, seed: int = 0, draws: int = 200) -> pd.DataFrame:
    """Arg-max predictions paired with *another* document's labels, against the product of the two marginal frequencies.

    The observed hit rate over random re-pairings must equal sum_w freq(prediction = w) freq(label = w) restricted to
    pairs of different documents. marginal: the stored arrays at offset 2. One row per re-pairing: rate, expected.
    """
    argmax = marginal.values["log_probs"].argmax(1)
    data = labels.table
    data = data[(data.offset == 2) & (data.label_source == "data")]
    rng = np.random.default_rng(seed)
    documents = data["document"].to_numpy()
    other = documents[:, None] != documents[None]
    hits = argmax[:, None] == data["label"].to_numpy()[None]
    expected, own = float(hits[other].mean()), float(hits.diagonal().mean())
    rows = []
    for draw in range(draws):
        partner = np.array([rng.choice(np.flatnonzero(allowed)) for allowed in other])
        rows.append((name, blocks.corpus, draw, float(hits[np.arange(len(hits)), partner].mean()), expected, own))
    return pd.DataFrame(rows, columns=["backbone", "corpus", "draw", "rate", "expected", "top1_true_pairs"])
