"""Training heads on the stored states of a frozen backbone: one plain loop, the same for every head and every label.

train_labels: `data` (the text's own tokens), `sampled` (drawn from the backbone along its own continuation), `soft` (the
backbone's distribution p after one path drawn from it, whose expectation is the marginal). Heads learn them by cross-entropy. The
other two take p as `soft` does and ask for acceptance instead, A = sum_w min(p(w), q(w)), the chance that a token drawn from the
head's q is kept when p verifies it (Leviathan et al., arXiv 2211.17192, 3.3): the loss is 1 - A (`accepted`) or -log A
(`log_accepted`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from ..backbones import sharded
from ..backbones.anatomy import unembed
from ..backbones.checkpoints import WARMUP, rate_at
from ..base import ranks
from ..base.runtime import progress
from ..text.offsets import labels_at, predictions_at
from .features import FrozenFeatures
from .heads import Heads
from .parts import cast_once
from .spec import HeadSpec

TRAIN_LABELS = ("data", "sampled", "soft", "accepted", "log_accepted")
NUMBERS = 2**24  # of logits held at once: fewer read an unembedding of 262k rows more often than they compute
MIX_RATE = 10.0  # w and gamma (LayerMix's, Corrected's) learn at this multiple of the rate


@dataclass(frozen=True)
class Training:
    """How heads are trained: peak rate of every offset's head, or of each (linear warm-up over a share of the steps, cosine to a
    tenth), tokens (positions) in all, in so many epochs, labels, blocks a step; the seed orders the blocks and draws what is
    random."""

    rate: float | tuple[float, ...]
    tokens: int
    labels: str = "data"
    seed: int = 0
    blocks: int = 1
    epochs: int = 1  # every one in an order of its own
    checks: int = 4  # validations after the one of the untrained heads; each offset keeps the head of its best one
    bf16: bool = False  # bfloat16 autocast around forward and backward; validation and what is kept stay in float32
    warmup: float = WARMUP

    def __post_init__(self):
        if self.labels not in TRAIN_LABELS:
            raise ValueError(f"labels={self.labels!r}; there are {', '.join(TRAIN_LABELS)}")
        for name in ("blocks", "epochs", "checks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup={self.warmup} must lie in [0, 1]")

    def rates(self, offsets: tuple[int, ...]) -> tuple[float, ...]:
        """The peak rate of each offset's head."""
        rates = self.rate if isinstance(self.rate, tuple) else (self.rate,) * len(offsets)
        if len(rates) != len(offsets):
            raise ValueError(f"rate={self.rate}: one for all heads, or one for each of offsets={offsets}")
        return rates


def trained_heads(
    features: FrozenFeatures, validation: FrozenFeatures, spec: HeadSpec, training: Training
) -> dict[str, np.ndarray]:
    """Heads trained on frozen features, as arrays: `heads.<name>` for each tensor, and what was seen on the way.

    The heads of different offsets share nothing: each has its rate, its own clipping and its best check. loss (steps,
    offsets) and validation (checks, offsets): cross-entropy to the training labels, nats a token, or the labels' own loss; check
    0 is before the first step, `kept` (offsets,) the check whose head this is. Every arm of a seed sees the same blocks in the
    same order.

    Raises:
        ValueError: more tokens than `features` has, or an offset beyond its drawn labels; FloatingPointError: a loss that
            is not finite.
    """
    accelerator = Accelerator()
    heads = Heads(features.backbone, spec, training.seed)
    heads.begin(features.tokens)
    order, checks = plan(features, spec, training)
    groups = [g for k, rate in zip(spec.offsets, training.rates(spec.offsets), strict=True) for g in head_groups(heads, k, rate)]
    optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True))
    losses, best = [], _Best(heads, validate(heads, validation, training.labels))
    name = f"{spec.kind} on {spec.features}, {features.backbone.name}"
    autocast = torch.autocast(features.device.type, torch.bfloat16, enabled=training.bf16)
    with autocast:
        head = cast_once(heads.model) if spec.reads_backbones else None  # it rests to the end
    for step in progress(range(len(order)), name):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, len(order), group["peak"], training.warmup)
        with autocast:
            found = step_losses(heads, features, share_of(order[step]), training.labels, accelerator.backward, head=head)
        losses.append(averaged(found))
        norms = [combine(accelerator, list(heads.of(k).values())) for k in spec.offsets]
        if not np.isfinite([*losses[-1], *norms]).all():
            raise FloatingPointError(f"{name}: losses {losses[-1]}, norms {norms} at step {step} (rate {training.rate})")
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in checks:
            best.see(validate(heads, validation, training.labels))
    return best.arrays | {"loss": np.array(losses), "validation": np.array(best.seen), "kept": np.array(best.kept)}


def plan(features: FrozenFeatures, spec: HeadSpec, training) -> tuple[np.ndarray, set[int]]:
    """The blocks of each step (steps, blocks), and the steps after which to validate. Raises ValueError; see trained_heads."""
    per_step = training.blocks * features.tokens.shape[1]
    each = training.tokens // (per_step * training.epochs)  # steps of an epoch
    if not 1 <= each * training.blocks <= len(features.tokens):
        least, most = per_step * training.epochs, features.tokens.numel() * training.epochs
        raise ValueError(f"tokens={training.tokens} in {training.epochs} epochs: between {least} and {most} for these features")
    if training.labels != "data" and max(spec.offsets) > features.horizon:
        raise ValueError(f"offsets={spec.offsets}: labels are drawn up to offset {features.horizon}, the features' horizon")
    rng, steps = np.random.default_rng(training.seed), each * training.epochs
    order = np.concatenate([rng.permutation(each * training.blocks) for _ in range(training.epochs)])
    return order.reshape(steps, training.blocks), {round((i + 1) * steps / training.checks) for i in range(training.checks)}


def share_of(blocks: np.ndarray) -> np.ndarray:
    """This process's blocks of a step; all of them where they cannot be shared out evenly."""
    return blocks[ranks.number() :: ranks.count()] if len(blocks) % ranks.count() == 0 else blocks


def averaged(losses: list[float]) -> list[float]:
    """The mean over the processes."""
    return np.mean(ranks.gather(losses), axis=0).tolist() if ranks.count() > 1 else losses


def combine(accelerator: Accelerator, parameters: list, norm: float = 1.0) -> float:
    """Gradients averaged over the processes (those of shared-out parameters are already), then clipped to that norm together;
    returns the norm they had."""
    whole, shares = sharded.by_kind(parameters)
    for p in whole if accelerator.num_processes > 1 else ():
        if p.grad is not None:
            p.grad = accelerator.reduce(p.grad, "mean")
    parts = [part for part in (whole, shares) if part]
    norms = [torch.nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in parts]
    norms = [sharded.whole(x).to(part[0].device) for x, part in zip(norms, parts, strict=True)]
    had = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for part in parts:
        torch.nn.utils.clip_grads_with_norm_(part, norm, had)
    return float(had)


class _Best:
    """The tensors of each offset's head at its best check."""

    def __init__(self, heads: Heads, losses: list[float]):
        self.heads, self.seen, self.kept, self.arrays = heads, [losses], [0] * len(losses), heads.arrays()

    def see(self, losses: list[float]) -> None:
        """Keep the heads that are better than all before."""
        self.seen.append(losses)
        now = None
        for i, k in enumerate(self.heads.spec.offsets):
            if losses[i] < self.seen[self.kept[i]][i]:
                self.kept[i] = len(self.seen) - 1
                now = now or self.heads.arrays()
                self.arrays |= {f"heads.{n}": now[f"heads.{n}"] for n in self.heads.of(k)}


def heads_from(arrays, backbone, spec: HeadSpec) -> Heads:
    """The heads that `trained_heads` left in stored arrays."""
    heads = Heads(backbone, spec)
    state = {n.removeprefix("heads."): torch.from_numpy(x) for n, x in arrays.values.items() if n.startswith("heads.")}
    heads.load_state_dict(state)
    return heads.eval()


def step_losses(
    heads: Heads, features: FrozenFeatures, rows, labels: str, backward=None, *, states=None, weights: tuple = (), head=None
) -> list[float]:
    """Mean loss (cross-entropy [nats/token], or what the labels ask) at each offset on some blocks; with `backward`, gradients
    of their sum, or of the sum weighted by `weights`, into the heads (and into `states`, where those are given instead of the
    features' own). head: the backbone's LM head as parts.cast_once gave it.

    Logits are made, used and let go NUMBERS at a time, one head after another (as Gloeckle et al., arXiv 2404.19737); each
    block's gradient stops at the hidden state and goes through the trunk once.
    """
    hidden = heads(features.batch(rows, heads.layers) if states is None else states)
    found, teacher = [], features.backbone.model
    for (k, h), weight in zip(hidden.items(), weights or (1.0,) * len(hidden), strict=True):
        aligned, target = _aligned(features, rows, labels, k, h)
        leaf = aligned.detach().requires_grad_(aligned.requires_grad)
        size = max(1, NUMBERS // heads.vocabulary)
        total = 0.0
        for part, wanted in zip(leaf.split(size), target.split(size), strict=True):
            loss = _losses(heads.log_probs(k, part, head), wanted, teacher, labels).sum() / len(leaf)
            total += loss.item()
            if backward:
                backward(weight * loss)
        found.append(total)
        if backward and leaf.grad is not None:
            aligned.backward(leaf.grad)
    return found


def validate(heads: Heads, features: FrozenFeatures, labels: str) -> list[float]:
    """Mean loss [nats/token, or 1] by the labels at each offset, over all blocks of `features`."""
    return over_blocks(lambda part: step_losses(heads, features, part, labels), len(features.tokens))


@torch.no_grad()
def over_blocks(losses, n: int, at_once: int = 8) -> list[float]:
    """Means over n blocks of what `losses` says of a slice of them."""
    parts = [slice(a, min(a + at_once, n)) for a in range(0, n, at_once)]
    return np.average([losses(p) for p in parts], axis=0, weights=[p.stop - p.start for p in parts]).tolist()


def _aligned(features: FrozenFeatures, rows, labels: str, offset: int, hidden: torch.Tensor):
    """(positions, d) and their targets: (positions,) tokens, or (positions, d) the states soft labels are made from."""
    if labels == "data":
        h, target = predictions_at(hidden, offset), labels_at(features.tokens[rows], offset)
    elif labels == "sampled":
        h, target = hidden, features.paths.tokens[rows][..., offset - 1]
    else:
        h, target = hidden, torch.from_numpy(features.paths.states[rows][..., offset - 1, :])
    return h.flatten(0, 1), target.flatten(0, 1).to(h.device)


def _losses(log_probs: torch.Tensor, target: torch.Tensor, teacher, labels: str) -> torch.Tensor:
    """(positions,): -log q of a token, nats; where the target is the teacher's state that p is made from, - sum_w p(w) log q(w),
    or what asks for acceptance."""
    if target.ndim == 1:
        return -log_probs.gather(1, target[:, None])[:, 0]
    with torch.autocast(target.device.type, enabled=False):
        p = unembed(teacher, target).float().softmax(-1)
    if labels == "soft":
        return -(p * log_probs).sum(-1)
    accepted = torch.minimum(p, log_probs.exp()).sum(-1)
    return 1 - accepted if labels == "accepted" else -accepted.clamp_min(torch.finfo(p.dtype).tiny).log()


def head_groups(heads: Heads, offset: int, rate: float) -> list[dict]:
    """Parameter groups of one offset's head; `peak` is each one's largest rate."""
    named = heads.of(offset)
    mixes = [p for n, p in named.items() if n.endswith((".w", ".gamma"))]
    others = [p for n, p in named.items() if not n.endswith((".w", ".gamma"))]
    return [{"params": ps, "lr": rate, "peak": m * rate} for ps, m in ((others, 1.0), (mixes, MIX_RATE)) if ps]
