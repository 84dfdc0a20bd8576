"""Training heads on the stored states of a frozen backbone: one plain loop, the same for every head and every label.

train_labels: `data` (the text's own tokens), `sampled` (drawn from the backbone along its own continuation), `soft` (the
backbone's distribution after one path drawn from it, whose expectation is the marginal).
"""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from .backbones import unembed
from .features import FrozenFeatures
from .heads import Heads, HeadSpec
from .loop import rate_at
from .offsets import labels_at, predictions_at
from .runtime import progress

TRAIN_LABELS = ("data", "sampled", "soft")
NUMBERS = 2**22  # of logits held at once
MIX_RATE = 10.0  # LayerMix's w and gamma learn at this multiple of the rate


@dataclass(frozen=True)
class Training:
    """How heads are trained: peak rate (linear warm-up, cosine to a tenth), tokens (positions), labels, blocks a step; the
    seed orders the blocks and draws what is initialised at random."""

    rate: float
    tokens: int
    labels: str = "data"
    seed: int = 0
    blocks: int = 4
    checks: int = 4  # validations; the heads of the best one are kept

    def __post_init__(self):
        if self.labels not in TRAIN_LABELS:
            raise ValueError(f"labels={self.labels!r}; there are {', '.join(TRAIN_LABELS)}")


def trained_heads(
    features: FrozenFeatures, validation: FrozenFeatures, spec: HeadSpec, training: Training
) -> dict[str, np.ndarray]:
    """Heads trained on frozen features, as arrays: `heads.<name>` for each tensor, and what was seen on the way.

    loss (steps, offsets) and validation (checks, offsets): cross-entropy to the training labels, nats a token; `kept` is
    the check whose heads these are. Every arm of a seed sees the same blocks in the same order.

    Raises:
        ValueError: more tokens than `features` has, or an offset beyond its drawn labels; FloatingPointError: a loss that
            is not finite.
    """
    accelerator = Accelerator()
    heads = Heads(features.backbone, spec, training.seed)
    per_step = training.blocks * features.tokens.shape[1]
    steps = training.tokens // per_step
    if not 1 <= steps * training.blocks <= len(features.tokens):
        raise ValueError(f"tokens={training.tokens}: between {per_step} and the {features.tokens.numel()} of the features")
    if training.labels != "data" and max(spec.offsets) > features.horizon:
        raise ValueError(f"offsets={spec.offsets}: labels are drawn up to offset {features.horizon}, the features' horizon")
    optimizer = accelerator.prepare(torch.optim.AdamW(_groups(heads, training.rate), betas=(0.9, 0.95), weight_decay=0.0))
    order = np.random.default_rng(training.seed).permutation(steps * training.blocks)
    checks = {round((i + 1) * steps / training.checks) for i in range(training.checks)}
    losses, seen, best = [], [], None
    name = f"{spec.kind} on {spec.features}, {features.backbone.name}"
    for step in progress(range(steps), name):
        for group in optimizer.param_groups:
            group["lr"] = group["multiple"] * rate_at(step, steps, training.rate)
        here = order[step * training.blocks : (step + 1) * training.blocks]
        mine = here[accelerator.process_index :: accelerator.num_processes]
        losses.append(step_losses(heads, features, mine, training.labels, accelerator.backward))
        if not np.isfinite(losses[-1]).all():
            raise FloatingPointError(f"{name}: losses {losses[-1]} at step {step} (rate {training.rate:g})")
        for p in heads.parameters():
            if p.grad is not None:
                p.grad = accelerator.reduce(p.grad, "mean")
        torch.nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in checks:
            seen.append(validate(heads, validation, training.labels))
            if best is None or np.mean(seen[-1]) < np.mean(seen[best[0]]):
                best = len(seen) - 1, heads.arrays()
    return best[1] | {"loss": np.array(losses), "validation": np.array(seen), "kept": np.array([best[0]])}


def heads_from(arrays, backbone, spec: HeadSpec) -> Heads:
    """The heads that `trained_heads` left in stored arrays."""
    heads = Heads(backbone, spec)
    state = {n.removeprefix("heads."): torch.from_numpy(x) for n, x in arrays.values.items() if n.startswith("heads.")}
    heads.load_state_dict(state)
    return heads.eval()


def step_losses(heads: Heads, features: FrozenFeatures, rows, labels: str, backward=None) -> list[float]:
    """Mean cross-entropy [nats/token] at each offset on some blocks; with `backward`, gradients into the heads.

    Logits are made, used and let go NUMBERS at a time; each block's gradient stops at the hidden state and goes through
    the trunk once.
    """
    hidden = heads(features.batch(rows, heads.layers))
    found, leaves = [], []
    for k, h in hidden.items():
        h, target = _aligned(features, rows, labels, k, h)
        leaf = h.detach().requires_grad_(h.requires_grad)
        size = max(1, NUMBERS // heads.vocabulary)
        total = 0.0
        for part, wanted in zip(leaf.split(size), target.split(size), strict=True):
            loss = _cross_entropy(heads.log_probs(k, part), wanted, heads).sum() / len(leaf)
            total += loss.item()
            if backward:
                backward(loss)
        found.append(total)
        leaves.append((h, leaf.grad))
    for h, gradient in leaves if backward else ():
        if gradient is not None:
            h.backward(gradient)
    return found


@torch.no_grad()
def validate(heads: Heads, features: FrozenFeatures, labels: str, blocks: int = 8) -> list[float]:
    """Mean cross-entropy [nats/token] to the labels at each offset, over all blocks of `features`."""
    parts = [slice(a, a + blocks) for a in range(0, len(features.tokens), blocks)]
    sizes = [len(features.tokens[p]) for p in parts]
    return np.average([step_losses(heads, features, p, labels) for p in parts], axis=0, weights=sizes).tolist()


def _aligned(features: FrozenFeatures, rows, labels: str, offset: int, hidden: torch.Tensor):
    """(positions, d) and their targets: (positions,) tokens, or (positions, d) the states soft labels are made from."""
    if labels == "data":
        h, target = predictions_at(hidden, offset), labels_at(features.tokens[rows], offset)
    elif labels == "sampled":
        h, target = hidden, features.paths.tokens[rows][..., offset - 1]
    else:
        h, target = hidden, torch.from_numpy(features.paths.states[rows][..., offset - 1, :])
    return h.flatten(0, 1), target.flatten(0, 1).to(h.device)


def _cross_entropy(log_probs: torch.Tensor, target: torch.Tensor, heads: Heads) -> torch.Tensor:
    """(positions,) nats: -log q of a token, or - sum_w p(w) log q(w) where the target is the state p is made from."""
    if target.ndim == 1:
        return -log_probs.gather(1, target[:, None])[:, 0]
    p = unembed(heads.model, target).float().softmax(-1)
    return -(p * log_probs).sum(-1)


def _groups(heads: Heads, rate: float) -> list[dict]:
    """Parameter groups; `multiple` is what each one's rate is multiplied by."""
    mixes = [p for n, p in heads.named_parameters() if n.endswith((".w", ".gamma"))]
    others = [p for n, p in heads.named_parameters() if not n.endswith((".w", ".gamma"))]
    return [{"params": ps, "lr": rate, "multiple": m} for ps, m in ((others, 1.0), (mixes, MIX_RATE)) if ps]
