"""What is measured of heads and of stored states: what heads say at the scored positions, their least gap, the next token's
loss, how alike layers are. Nothing here tunes, trains or arranges."""

import numpy as np
import pandas as pd
import torch

from ..backbones.anatomy import unembed
from ..base.records import Arrays
from ..heads.features import BLOCKS, FrozenFeatures
from ..heads.heads import Heads
from ..heads.spec import HeadSpec
from ..heads.training import heads_from
from . import metrics, scoring
from .scoring import Labels

SCORES = ("log_prob", "top1", "top5")


def initial_heads(backbone, spec: HeadSpec) -> dict[str, np.ndarray]:
    """The tensors of untrained heads, as training.trained_heads leaves them."""
    return Heads(backbone, spec).arrays()


def states_made(features: FrozenFeatures, layers: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Makes the states of a text, for the seconds that takes; `bytes`: their size."""
    return {"bytes": np.array(features.states.nbytes)}


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
    for start in range(0, len(blocks.tokens), BLOCKS):
        part = slice(start, start + BLOCKS)
        logits = unembed(model, features.batch(part, (last,))[:, :, 0]).cpu()
        means, _ = scoring.next_token_losses(logits, blocks.tokens[part], blocks.mask[part])
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
