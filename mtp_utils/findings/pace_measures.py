"""Heads trained with one thing changed that heads.training holds fixed: where the unembedding starts, a low-rank correction of
it, the share of steps that warm up. One process; what pace.py compares."""

import numpy as np
import torch
from torch import nn

from ..backbones.anatomy import unembed
from ..backbones.checkpoints import FLOOR
from ..base.runtime import progress
from ..heads.features import FrozenFeatures
from ..heads.heads import Heads
from ..heads.spec import HeadSpec
from ..heads.training import Training, head_groups, plan, step_losses, validate


class Corrected(Heads):
    """Heads on the backbone's unembedding U with a trained correction for each offset: logits s U h + B A h + b.

    rank: of B A (B starts at zero; 0: none, as in LoRA, arXiv 2106.09685). s and b start at 1 and 0, so that the head starts as
    the LM head; unigram: at 0 and the log-frequencies of the training text, so that it starts as the unigram.
    """

    def __init__(self, backbone, spec: HeadSpec, rank: int, unigram: bool, seed: int = 0):
        super().__init__(backbone, spec, seed)
        width, self.unigram = backbone.model.config.get_text_config().hidden_size, unigram
        self.corrections = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for k in spec.offsets:
                tensors = {"scale": torch.tensor(0.0 if unigram else 1.0), "bias": torch.zeros(self.vocabulary)}
                if rank:
                    tensors |= {"A": torch.randn(rank, width) / width**0.5, "B": torch.zeros(self.vocabulary, rank)}
                self.corrections[str(k)] = nn.ParameterDict(tensors)
        self.to(device=backbone.model.device)

    def log_probs(self, offset: int, hidden: torch.Tensor) -> torch.Tensor:
        """As of Heads."""
        c = self.corrections[str(offset)]
        low = hidden @ c["A"].T @ c["B"].T if "A" in c else 0.0
        return (c["scale"] * unembed(self.model, hidden) + low + c["bias"]).float().log_softmax(-1)

    @torch.no_grad()
    def begin(self, tokens: torch.Tensor) -> None:
        """The bias as the unigram of these tokens (one more of each counted), where heads start so."""
        counts = torch.bincount(tokens.flatten().cpu(), minlength=self.vocabulary) + 1.0
        for c in self.corrections.values() if self.unigram else ():
            c["bias"].copy_((counts / counts.sum()).log())


def paced(
    features: FrozenFeatures,
    validation: FrozenFeatures,
    spec: HeadSpec,
    training: Training,
    rank: int,
    unigram: bool,
    warmup: float,
) -> dict[str, np.ndarray]:
    """Cross-entropy at the one offset on validation [nats/token] on the way: positions (checks,) and loss (checks,), the first
    before any step. training: at one rate, on data. Raises FloatingPointError at a loss that is not finite."""
    made, given = (Corrected, (rank, unigram)) if rank or unigram else (Heads, ())
    heads = made(features.backbone, spec, *given, training.seed)
    heads.begin(features.tokens)
    order, checks = plan(features, spec, training)
    parameters = list(heads.of(spec.offsets[0]).values())
    optimizer = torch.optim.AdamW(head_groups(heads, spec.offsets[0], 1.0), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    seen = [(0, *validate(heads, validation, "data"))]
    for step in progress(range(len(order)), f"pace of {spec.kind}, {features.backbone.name}"):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_at(step, len(order), training.rate, warmup)
        with torch.autocast(features.device.type, torch.bfloat16, enabled=training.bf16):
            loss = step_losses(heads, features, order[step], "data", torch.Tensor.backward)[0]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if not (np.isfinite(loss) and torch.isfinite(norm)):
            raise FloatingPointError(f"loss {loss}, norm {norm} at step {step} (rate {training.rate})")
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in checks:
            seen.append(((step + 1) * training.blocks * features.tokens.shape[1], *validate(heads, validation, "data")))
    positions, losses = zip(*seen, strict=True)
    return {"positions": np.array(positions), "loss": np.array(losses)}


def rate_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """backbones.checkpoints.rate_at with another share of warm-up."""
    warm = warm_steps(steps, warmup)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def warm_steps(steps: int, warmup: float) -> int:
    """Steps in which the rate rises: one at least."""
    return max(1, int(warmup * steps))
