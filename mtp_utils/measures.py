"""Measuring functions: a backbone and evaluation blocks in, a tidy DataFrame out, one row per scored position and predictor.

Columns shared by all: backbone, corpus, document, position, offset, label_source, predictor, estimator, log_prob (nats, of
the label), top1, top5 (0/1). Summaries and intervals are made from these tables by metrics.py, figures from those.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from . import blocks as blocks_module
from . import corpora, metrics, ngrams, offsets, translation
from .marginal import future_log_probs, future_tokens
from .runtime import progress, seed_for

BATCH = 8  # documents a step
# How the marginal is computed at each offset, wherever it is scored. Offsets 3 and 4 have no exact reference at this
# vocabulary: hybrid, with captured_mass in the table and the bias measured at offset 2.
ESTIMATORS = {1: {"exact": True}, 2: {"exact": True}, 3: {"top_k": 8, "samples": 64}, 4: {"top_k": 4, "samples": 64}}


@dataclass(frozen=True)
class Labels:
    """A stored table of labels; its fingerprint makes measurements on it depend on the labels themselves."""

    table: pd.DataFrame

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.table.to_csv(index=False).encode()).hexdigest()


def collect(run, backbone, blocks, offsets_wanted: tuple[int, ...]) -> pd.DataFrame:
    """Every score of one backbone on one corpus, from stored tables where they exist: marginal, controls, greedy path."""
    import sys

    name = f"{backbone.name.replace('/', '-')}_{blocks.corpus}"
    modules = [sys.modules[__name__]]
    labels = Labels(run.measure(f"01_labels_{name}", label_table, modules=modules, backbone=backbone, blocks=blocks))
    frames = [
        run.measure(
            f"01_controls_{name}",
            control_table,
            modules=modules,
            tokenizer=Tokenizer(backbone.tokenizer),
            blocks=blocks,
            labels=labels,
            name=backbone.name,
            split=run.profile.control_split,
        ),
        run.measure(f"01_greedy_path_{name}", greedy_path_table, modules=modules, labels=labels, name=backbone.name),
    ]
    for offset in offsets_wanted:
        frames.append(
            run.measure(
                f"01_marginal{offset}_{name}",
                marginal_table,
                modules=modules,
                backbone=backbone,
                blocks=blocks,
                labels=labels,
                offset=offset,
                estimator=ESTIMATORS[offset],
            )
        )
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that can be part of a measurement's key."""

    tokenizer: object

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def ntp_table(backbone, blocks) -> pd.DataFrame:
    """Held-out next-token cross-entropy: the mean over all real tokens of each document's window, in nats."""
    rows = []
    for part in _parts(blocks, f"next-token loss {backbone.name} {blocks.corpus}"):
        with torch.no_grad():
            logits = backbone.model(blocks.tokens[part], attention_mask=blocks.mask[part].long()).logits
        logits, labels = offsets.predictions_at(logits, 1), offsets.labels_at(blocks.tokens[part], 1)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
        keep = offsets.labels_at(blocks.mask[part], 1)
        means = (losses.view_as(labels) * keep).sum(1) / keep.sum(1)
        rows += [
            (backbone.name, blocks.corpus, blocks.documents[r], float(m), int(n))
            for r, m, n in zip(part.tolist(), means, keep.sum(1), strict=True)
        ]
    return pd.DataFrame(rows, columns=["backbone", "corpus", "document", "cross_entropy", "n_tokens"])


def positions_of(blocks) -> pd.DataFrame:
    """document, position of every scored position, row by row: the order of all tables."""
    row, position = np.nonzero(blocks.scored.numpy())
    return pd.DataFrame({"corpus": blocks.corpus, "document": [blocks.documents[r] for r in row], "position": position})


def label_table(backbone, blocks) -> pd.DataFrame:
    """The token at each offset by label source: the document's own, drawn from the backbone, its greedy continuation.

    Drawn once, seeded per document and position; stored, so that every later measurement scores the same labels.
    """
    frames = []
    keys = positions_of(blocks)
    drawn = {"sampled": [], "greedy": []}
    seeds = _seeds("labels", blocks)
    for part in _parts(blocks, f"labels {backbone.name} {blocks.corpus}"):
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


def marginal_table(backbone, blocks, labels: Labels, offset: int, estimator: dict) -> pd.DataFrame:
    """The marginal at one offset, scored against every label source in `labels`; estimator: arguments of
    future_log_probs. Exact ones also give entropy, mutual_information, max_prob; all give ntp_entropy,
    captured_mass, certified, candidates."""
    exact = bool(estimator.get("exact")) and offset > 1
    columns = {
        name: []
        for name in ("captured_mass", "certified", "candidates", "entropy", "mutual_information", "max_prob", "ntp_entropy")
    }
    log_probs, seeds = [], _seeds(f"offset {offset}", blocks)
    for part in _parts(blocks, f"offset {offset} {backbone.name} {blocks.corpus}"):
        wanted = blocks.scored[part]
        call = {"attention_mask": blocks.mask[part], "positions": wanted}
        found = future_log_probs(
            backbone.model, blocks.tokens[part], offset, with_entropy=exact, seed=seeds[part], **estimator, **call
        )
        log_probs.append(found.log_probs[wanted])
        columns["captured_mass"].append(found.captured_mass[wanted])
        columns["certified"].append(found.certified[wanted].float())
        columns["candidates"].append(found.num_candidates[wanted].float())
        ntp = found if offset == 1 else future_log_probs(backbone.model, blocks.tokens[part], 1, exact=True, **call)
        columns["ntp_entropy"].append(metrics.entropy(ntp.log_probs[wanted]))
        columns["entropy"].append(metrics.entropy(log_probs[-1]))
        columns["max_prob"].append(log_probs[-1].max(-1).values.exp())
        columns["mutual_information"].append(
            found.mutual_information[wanted] if exact else torch.full((int(wanted.sum()),), torch.nan)
        )
    extra = {name: torch.cat(values).double().numpy() for name, values in columns.items()}
    rows = _score(torch.cat(log_probs), labels.table, offset, backbone.name, "marginal", estimator_name(offset, estimator))
    sources = len(rows) // len(extra["entropy"])
    return rows.assign(**{name: np.tile(values, sources) for name, values in extra.items()})


def estimator_name(offset: int, estimator: dict) -> str:
    """`ntp`, `exact`, `top_k=64`, `top_k=64 samples=64`, ..."""
    if offset == 1:
        return "ntp"
    return "exact" if estimator.get("exact") else " ".join(f"{k}={v:g}" for k, v in estimator.items() if k != "seed")


def control_table(tokenizer: Tokenizer, blocks, labels: Labels, name: str, split: str) -> pd.DataFrame:
    """Unigram, skip-bigram and interpolated skip-trigram, counted on a split of the same corpus, at every offset."""
    tokenizer = tokenizer.tokenizer
    stream = blocks_module.stream(blocks.corpus, split, tokenizer)
    end = tokenizer.convert_tokens_to_ids(blocks_module.END)
    row, t = np.nonzero(blocks.scored.numpy())
    contexts = np.stack([blocks.tokens[row, t - 1].numpy(), blocks.tokens[row, t].numpy()], 1)
    frames = []
    for offset in range(1, blocks.horizon + 1):
        for predictor, probs in ngrams.ngram_probs(stream, end, contexts, offset, len(tokenizer)).items():
            frames.append(_score(torch.from_numpy(np.log(probs)), labels.table, offset, name, predictor, "counts"))
    return pd.concat(frames, ignore_index=True)


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
    log_probs = torch.full((len(row), len(tokenizer)), -torch.inf, dtype=torch.float64)
    for i, (r, t) in enumerate(zip(row, position, strict=True)):
        mass = torch.zeros(len(tokenizer), dtype=torch.float64)
        for ids, p in _alternatives(documents[blocks.documents[r]], blocks.tokens[r, 1 : t + 1].tolist(), tokenizer):
            mass[ids[t + offset - 1]] += p  # token 0 of a block is END
        log_probs[i] = (mass / mass.sum()).log()
    found = _score(log_probs, labels.table[labels.table.label_source == "data"], offset, "grammar", "gold", "exact")
    return found.assign(entropy=metrics.entropy(log_probs).numpy(), max_prob=log_probs.max(-1).values.exp().numpy())


def _alternatives(document, prefix: list[int], tokenizer) -> list[tuple[list[int], float]]:
    """(token ids of the document with another German sentence, probability) for all that agree with the prefix ids."""
    starts = [a for a, _ in tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    now = starts[len(prefix)]  # the first character not yet seen
    pair, (first, last) = next((p, s) for p, s in zip(document.pairs, document.spans, strict=True) if s[0] <= now < s[1])
    options = translation.german_distribution(pair, document.rate)
    texts = [document.text[:first] + german + document.text[last - 1 :] for german, _ in options]
    encoded = blocks_module.encode(tokenizer, texts)
    return [(ids, p) for ids, (_, p) in zip(encoded, options, strict=True) if ids[: len(prefix)] == prefix]


def negative_control_table(backbone, blocks, labels: Labels, seed: int = 0, draws: int = 200) -> pd.DataFrame:
    """Arg-max predictions paired with *another* document's labels, against the product of the two marginal frequencies.

    The observed hit rate over random re-pairings must equal sum_w freq(prediction = w) freq(label = w) restricted to
    pairs of different documents. One row per offset-2 re-pairing: rate, expected.
    """
    argmax = torch.cat(
        [
            future_log_probs(
                backbone.model, blocks.tokens[p], 2, top_k=64, attention_mask=blocks.mask[p], positions=blocks.scored[p]
            )
            .log_probs[blocks.scored[p]]
            .argmax(-1)
            for p in _parts(blocks, f"negative control {backbone.name} {blocks.corpus}")
        ]
    ).numpy()
    data = labels.table
    data = data[(data.offset == 2) & (data.label_source == "data")]
    rng = np.random.default_rng(seed)
    documents = data["document"].to_numpy()
    other = documents[:, None] != documents[None]
    hits = argmax[:, None] == data["label"].to_numpy()[None]
    expected = float(hits[other].mean())
    rows = []
    for draw in range(draws):
        partner = np.array([rng.choice(np.flatnonzero(allowed)) for allowed in other])
        rows.append(
            (
                backbone.name,
                blocks.corpus,
                draw,
                float(hits[np.arange(len(hits)), partner].mean()),
                expected,
                float(hits.diagonal().mean()),
            )
        )
    return pd.DataFrame(rows, columns=["backbone", "corpus", "draw", "rate", "expected", "top1_true_pairs"])


def truncation_table(backbone, blocks, estimators: list[dict]) -> pd.DataFrame:
    """At offset 2, each estimator against the exact sum on the same positions: error of the distribution (total
    variation), of the cross-entropy, H and I, captured mass, certified share, agreement of the arg-max, candidates."""
    frames = []
    data = offsets.labels_of(blocks.tokens, blocks.scored, 2)
    keys, seeds = positions_of(blocks), _seeds("truncation", blocks)
    for part in _parts(blocks, f"truncation {backbone.name} {blocks.corpus}"):
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


def _score(log_probs: torch.Tensor, labels: pd.DataFrame, offset: int, name: str, predictor: str, estimator: str) -> pd.DataFrame:
    frames = []
    for _, rows in labels[labels.offset == offset].groupby("label_source", sort=False):
        frames.append(
            rows.drop(columns="label").assign(
                backbone=name,
                predictor=predictor,
                estimator=estimator,
                **metrics.scores(log_probs, torch.from_numpy(rows["label"].to_numpy().copy())),
            )
        )
    return pd.concat(frames, ignore_index=True)


def _seeds(stream: str, blocks) -> torch.Tensor:
    """(documents, CONTEXT) int64: a seed per document and position, so that draws do not depend on how rows are batched."""
    seeds = torch.zeros_like(blocks.tokens)
    for row, t in blocks.scored.nonzero().tolist():
        seeds[row, t] = seed_for(f"{stream}/{blocks.documents[row]}/{t}")
    return seeds


def _parts(blocks, description: str):
    rows = torch.arange(len(blocks.tokens))
    return progress(list(rows.split(BATCH)), description)
