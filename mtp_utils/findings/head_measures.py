"""What is measured of heads and of stored states: what heads say at the scored positions, what the lens and counting say, the
least gap, the next token's loss, how alike layers are. Nothing here tunes, trains or arranges."""

import numpy as np
import pandas as pd
import torch

from ..backbones.anatomy import unembed
from ..backbones.wrapped import decoder
from ..base.records import Arrays
from ..heads.features import BLOCKS, BOUND, FrozenFeatures, by_length
from ..heads.heads import Heads
from ..heads.spec import HeadSpec
from ..heads.training import heads_from, step_losses
from ..text import blocks as blocks_module
from ..text import offsets
from . import metrics, scoring
from .counting import PLAIN, Counts
from .scoring import Labels, Tokenizer

SCORES = ("log_prob", "top1", "top5")


def initial_heads(backbone, spec: HeadSpec) -> dict[str, np.ndarray]:
    """The tensors of untrained heads, as training.trained_heads leaves them."""
    return Heads(backbone, spec).arrays()


def states_made(features: FrozenFeatures, layers: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The `states` of a text where they take BOUND bytes or less, and what making them takes in seconds; `bytes`: their size."""
    made = features.states
    return {"bytes": np.array(made.nbytes)} | ({"states": made} if made.nbytes <= BOUND else {})


@torch.no_grad()
def gap_arrays(features: FrozenFeatures, blocks, labels: Labels, marginals: dict, heads: Arrays, spec: HeadSpec) -> dict:
    """What the head says at every offset k: `log_prob.k`, `top1.k`, `top5.k` (sources, positions), nats;
    `entropy.k` and `kl_to_marginal.k` (positions,)."""
    found = {}
    for k, log_q in head_log_probs(heads_from(heads, features.backbone, spec), features, blocks.scored).items():
        log_m = torch.from_numpy(marginals[k].values["log_probs"])
        found[f"kl_to_marginal.{k}"] = scoring.kl(log_m - log_m.logsumexp(-1, keepdim=True), log_q).double().numpy()
        found[f"entropy.{k}"] = scoring.entropy(log_q).double().numpy()
        rows = labels.table[labels.table.offset == k].groupby("label_source", sort=False)["label"]
        each = [scoring.scores(log_q, torch.from_numpy(part.to_numpy().copy())) for _, part in rows]
        found |= {f"{name}.{k}": np.stack([s[name] for s in each]) for name in SCORES}
    return found


@torch.no_grad()
def lens_arrays(backbone, blocks, at: tuple[int, ...], bf16: bool = False) -> dict[str, np.ndarray]:
    """`log_prob.k` (layers + 1, positions) [nats]: what the logit lens of each layer (its state through the final norm, which the
    last has been through, and the LM head) says of the data's own token at each offset k. Nothing is trained."""
    n = backbone.model.config.get_text_config().num_hidden_layers
    lenses = [Heads(backbone, HeadSpec("linear", layer, offsets=(1,))) for layer in range(n + 1)]

    def log_probs(hidden: tuple, layer: int, here: torch.Tensor) -> list[torch.Tensor]:
        lens = lenses[layer]
        h = hidden[layer][here].to(next(lens.parameters()).dtype)
        return [lens.log_probs(1, lens(h[None, :, None])[1])[0]] * len(at)  # it says the same of every offset

    return by_layer(backbone, blocks, at, log_probs, bf16)


@torch.no_grad()
def by_layer(backbone, blocks, at: tuple[int, ...], log_probs, bf16: bool = False) -> dict[str, np.ndarray]:
    """`log_prob.k` (layers + 1, positions) [nats] of the data's own token at each offset k, at every scored position of the
    blocks, by log_probs(hidden states, layer, scored) -> for each offset (positions, vocab)."""
    model, lengths, number = backbone.model, blocks.mask.sum(1), blocks.scored.flatten().cumsum(0).view_as(blocks.scored) - 1
    shape = model.config.get_text_config().num_hidden_layers + 1, int(blocks.scored.sum())
    found = {k: np.empty(shape) for k in at}
    for part in by_length(lengths):
        ids, here = (x[part, : lengths[part].max()].to(model.device) for x in (blocks.tokens, blocks.scored))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            hidden = decoder(model)(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        labels, each = [offsets.labels_of(ids, here, k)[:, None] for k in at], {k: [] for k in at}
        for layer in range(len(hidden)):
            for k, label, log_q in zip(at, labels, log_probs(hidden, layer, here), strict=True):
                each[k].append(log_q.gather(1, label)[:, 0])
        for k, values in each.items():
            found[k][:, number[part][blocks.scored[part]]] = torch.stack(values).double().cpu().numpy()
    return {f"log_prob.{k}": values for k, values in found.items()}


@torch.no_grad()
def validation_table(features: FrozenFeatures, heads: Arrays, spec: HeadSpec, corpora: tuple, step: int) -> pd.DataFrame:
    """By corpus the cross-entropy [nats/token] of `heads` at offset 2 at every step-th position of the validation blocks.
    corpora: in the order in which blocks take turns."""
    rows, model = [], heads_from(heads, features.backbone, spec)
    for c, corpus in enumerate(corpora):
        part = slice(c, None, len(corpora))
        tokens, h = features.tokens[part], model(features.batch(part, model.layers))[2]
        at = torch.arange(2, tokens.shape[1] - 2, step)
        label = tokens[:, at + 2].flatten()[:, None].to(h.device)
        log_q = model.log_probs(2, h[:, at.to(h.device)]).flatten(0, 1).gather(1, label)
        rows.append({"corpus": corpus, "heads": -float(log_q.mean())})
    return pd.DataFrame(rows)


def validation_counts(
    tokenizer: Tokenizer, n_blocks: int, vocabulary: int, corpora: tuple, step: int, split: str, text: list
) -> pd.DataFrame:
    """By corpus the cross-entropy [nats/token] of the counting controls at the positions that `validation_table` asks heads at.
    text: the digests of what is counted, and of the validation text."""
    rows, blocks = [], blocks_module.training_blocks("validation", tokenizer.tokenizer, n_blocks, 0).astype(np.int64)
    for c, corpus in enumerate(corpora):
        tokens = blocks[c :: len(corpora)]
        at = np.arange(2, tokens.shape[1] - 2, step)
        before = np.stack([tokens[:, at - 2], tokens[:, at - 1], tokens[:, at]], -1).reshape(-1, 3)
        read = [f(corpus, split, tokenizer.tokenizer) for f in (blocks_module.stream, blocks_module.begins)]
        found = Counts(*read, list(before), 2, vocabulary).scores(tokens[:, at + 2].reshape(-1, 1), PLAIN)
        rows.append({"corpus": corpus} | {name: -float(of["log_prob"].mean()) for name, of in found.items()})
    return pd.DataFrame(rows)


@torch.no_grad()
def validation_losses(features: FrozenFeatures, heads: Arrays, spec: HeadSpec, corpora: tuple) -> pd.DataFrame:
    """By corpus and offset the cross-entropy [nats/token] of heads on all of the validation blocks. corpora: in the order in
    which blocks take turns."""
    model, rows = heads_from(heads, features.backbone, spec), []
    for c, corpus in enumerate(corpora):
        losses = step_losses(model, features, slice(c, None, len(corpora)), "data")
        rows += [{"corpus": corpus, "offset": k, "cross_entropy": x} for k, x in zip(spec.offsets, losses, strict=True)]
    return pd.DataFrame(rows)


@torch.no_grad()
def head_log_probs(heads: Heads, features: FrozenFeatures, scored: torch.Tensor) -> dict[int, torch.Tensor]:
    """offset -> (positions, vocab) log-probs of the heads at the scored positions of each block."""
    found = {k: [] for k in heads.spec.offsets}
    for start in range(0, len(scored), BLOCKS):
        part = slice(start, start + BLOCKS)
        here, states = scored[part].to(features.device), features.batch(part, heads.layers)
        if heads.spec.kind != "block":  # it alone reads other positions
            here, states = here[here][None], states[here][None]
        for k, h in heads(states).items():
            found[k].append(heads.log_probs(k, h[here]).cpu())
    return {k: torch.cat(parts) for k, parts in found.items()}


@torch.no_grad()
def data_arrays(features: FrozenFeatures, blocks, heads: Arrays, spec: HeadSpec) -> dict[str, np.ndarray]:
    """`log_prob.k` (positions,) [nats] of the data's own token at each offset k, at every scored position of the blocks."""
    model, found = heads_from(heads, features.backbone, spec), {k: [] for k in spec.offsets}
    for start in range(0, len(blocks.tokens), BLOCKS):
        part = slice(start, start + BLOCKS)
        here = blocks.scored[part]
        for k, h in model(features.batch(part, model.layers)).items():
            label = offsets.labels_of(blocks.tokens[part], here, k).to(h.device)
            log_q = model.log_probs(k, h[here.to(h.device)]).gather(1, label[:, None])
            found[k].append(log_q[:, 0].double().cpu().numpy())
    return {f"log_prob.{k}": np.concatenate(parts) for k, parts in found.items()}


def unembedding_floor(log_m: torch.Tensor, weight: torch.Tensor, bias=None, steps: int = 200) -> torch.Tensor:
    """min over h in R^d of KL(m || softmax(W h + b)), nats (positions,): what the head's width alone costs.

    Convex in h, and each position has its own; L-BFGS over all at once, so an upper bound that `steps` brings down to the
    minimum. log_m (positions, vocab), normalised; weight (vocab, d); bias (vocab,) or None.
    """
    log_m, weight, bias = (None if x is None else x.detach().double() for x in (log_m, weight, bias))
    h = torch.zeros(len(log_m), weight.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([h], max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-9)
    m = log_m.exp()

    def log_q() -> torch.Tensor:
        return torch.nn.functional.linear(h, weight, bias).log_softmax(-1)

    def closure():
        optimizer.zero_grad()
        loss = -(m * log_q()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return scoring.kl(log_m, log_q())


@torch.no_grad()
def states_ntp_table(features: FrozenFeatures, blocks) -> pd.DataFrame:
    """Held-out next-token cross-entropy of each document's window, nats a token, from the last layer's states."""
    model, rows = features.backbone.model, []
    last = model.config.get_text_config().num_hidden_layers
    size = scoring.rows_at_once(model, blocks.tokens.shape[1])
    for start in range(0, len(blocks.tokens), size):
        part = slice(start, start + size)
        longest = blocks.mask[part].sum(1).max()  # what stands behind the text is not asked
        logits = unembed(model, features.batch(part, (last,))[:, :longest, 0]).cpu()
        means, _ = scoring.next_token_losses(logits, blocks.tokens[part, :longest], blocks.mask[part, :longest])
        names = blocks.documents[part]
        rows += [(features.backbone.name, blocks.corpus, n, 0, float(m)) for n, m in zip(names, means, strict=True)]
    return pd.DataFrame(rows, columns=["backbone", "corpus", "document", "position", "cross_entropy"])


def similarity_table(features: FrozenFeatures, blocks, n: int = 1500) -> pd.DataFrame:
    """Unbiased linear CKA of every two layers over `n` tokens drawn from the blocks, never a block's first: layer, other, cka."""
    inside = blocks.mask.clone()
    inside[:, 0] = False
    row, t = (x.numpy() for x in inside.nonzero(as_tuple=True))
    chosen = np.random.default_rng(0).choice(len(row), min(n, len(row)), replace=False)
    alike = metrics.cka([layer[row[chosen], t[chosen]] for layer in features.states])
    names = {"backbone": features.backbone.name, "corpus": blocks.corpus}
    return pd.DataFrame(
        [{**names, "layer": a, "other": b, "cka": alike[i, j]}
         for i, a in enumerate(features.layers) for j, b in enumerate(features.layers)]
    )  # fmt: skip
