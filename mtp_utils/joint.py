"""Heads and backbone trained together: full fine-tuning or LoRA, the next-token loss kept in, resumable to the bit.

The backbone is copied; the base model's own tensors never change. Sampled and soft labels are the base model's.
"""

import copy
import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

from . import blocks, paths, ranks, sharded
from .backbones import Backbone, unembed
from .features import FrozenFeatures
from .heads import Heads, HeadSpec
from .loop import checkpoint, rate_at, restore
from .offsets import labels_at, predictions_at
from .records import fingerprint, measurement_key
from .runtime import progress
from .training import NUMBERS, Training, averaged, combine, head_groups, over_blocks, plan, share_of, step_losses

SAVE_EVERY, SAVE_SHARE = 60.0, 0.05  # seconds between checkpoints, and the most of the time that saving may take


@dataclass(frozen=True)
class Joint(Training):
    """How heads and backbone are trained together; `rate` is the heads', and `tokens` include the warm-up.

    backbone_rate: peak rate of the backbone as a multiple of the heads' largest; 0 leaves it as it is. lora: rank of the
    adapters on every linear layer (arXiv 2106.09685, by peft), 0 for full fine-tuning. warmup: share of the steps, the first
    ones, in which the backbone rests. ntp_weight: of the next-token loss. decay: weight of offset k is decay ** (k - 2),
    1 for uniform weights. bf16: gradients in bfloat16 autocast; losses that are compared are float32 all the same.
    """

    backbone_rate: float = 0.1
    lora: int = 0
    warmup: float = 0.1
    ntp_weight: float = 1.0
    decay: float = 1.0
    bf16: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name, low, high in (("warmup", 0, 1), ("backbone_rate", 0, math.inf), ("lora", 0, math.inf)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [{low}, {high}]")
        if self.ntp_weight < 0 or self.decay <= 0:
            raise ValueError(f"ntp_weight={self.ntp_weight} must be >= 0 and decay={self.decay} > 0")


class Together:
    """A copy of a backbone, with adapters if asked for, and heads on it (or none); what is trained, and the best of it. shared:
    each process holds a share of every layer (sharded.py)."""

    def __init__(self, backbone: Backbone, spec: HeadSpec | None, how: Joint, shared: bool = False):
        if len(set(getattr(backbone.model, "hf_device_map", {}).values())) > 1:
            raise ValueError(f"{backbone.name} lies on several devices: it can be measured, but not trained")
        model = copy.deepcopy(backbone.model).requires_grad_(False)
        self.backbone, self.best = dataclasses.replace(backbone, model=model), {}
        self.heads = Heads(self.backbone, spec, how.seed).float() if spec else None
        self.adapters = with_lora(model, how.lora, how.seed) if how.lora else None
        self.states = States(model.base_model)
        if shared:
            sharded.shard(self.states, model)
        model.float()
        named = dict(model.named_parameters())
        self.trained = {n: p for n, p in named.items() if ".lora_" in n} if how.lora else named

    @property
    def model(self):
        """The model under training."""
        return self.backbone.model

    def free(self, backbone_learns: bool) -> None:
        """Whether gradients reach the backbone."""
        for p in self.trained.values():
            p.requires_grad_(backbone_learns)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Copies of all that is trained: `heads.<name>`, `model.<name>`. All processes have to ask at once, the first one gets
        them."""
        named = {f"model.{n}": p.detach() for n, p in self.trained.items()}
        named |= {f"heads.{n}": x for n, x in (self.heads.state_dict() if self.heads else {}).items()}
        return sharded.gathered(named)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that is trained, and `best.<name>`."""
        return self.arrays() | {f"best.{n}": x for n, x in self.best.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """What `state_dict` gave."""
        self.best = {n.removeprefix("best."): x for n, x in state.items() if n.startswith("best.") and ranks.first()}
        with torch.no_grad():
            for n, p in self.trained.items():
                p.copy_(sharded.as_held(state[f"model.{n}"], p))
        if self.heads:
            self.heads.load_state_dict({n.removeprefix("heads."): x for n, x in state.items() if n.startswith("heads.")})


class States(torch.nn.Module):
    """All hidden states of a decoder, embeddings first: layers + 1 of (batch, T, d)."""

    def __init__(self, decoder: torch.nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """tokens: (batch, T) int64."""
        return self.decoder(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states


def with_lora(model, rank: int, seed: int):
    """peft's model around `model`, which gets trainable adapters of that rank on every linear layer but the LM head."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def joint_training(
    features: FrozenFeatures, validation: FrozenFeatures, spec: HeadSpec | None, how: Joint
) -> dict[str, np.ndarray]:
    """Heads and backbone trained together on the features' text, as arrays; without a spec the backbone alone, on NTP.

    features: of the base model (its text, and its labels unless they are the data's). Returns `heads.<name>` and
    `model.<name>` (the trained tensors: all, or the adapters) at the best check, `loss` and `ntp_loss` by step, `validation`
    (checks, offsets) and `ntp_validation` (checks,) [nats/token], check 0 before the first step, `kept` (offsets,) the best
    check: the lowest mean over the offsets (without heads: the last one). Deterministic on one machine and thread count,
    stopped and resumed or not. No dropout.

    Raises:
        ValueError: as training.trained_heads; FloatingPointError: a loss that is not finite, with the step, the rates and the
            documents; the last good checkpoint stays.
    """
    together, accelerator = Together(features.backbone, spec, how, shared=sharded.asked()), Accelerator()
    order, checks = plan(features, spec or HeadSpec(offsets=(2,)), how)
    offsets, steps = spec.offsets if spec else (), len(order)
    peaks = how.rates(offsets) if spec else (how.rate,)
    groups = [g for k, peak in zip(offsets, peaks, strict=False) for g in head_groups(together.heads, k, peak)]
    peak = max(peaks) * how.backbone_rate
    of_layers = {id(p) for p in sharded.layers_of(together.model).parameters()}  # whether shared out or not, one order
    for part in ([p for p in together.trained.values() if (id(p) in of_layers) == inside] for inside in (False, True)):
        groups += [{"params": part, "lr": peak, "peak": peak, "backbone": True}] if part else []
    together.free(True)
    optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True))
    path, settings = checkpoint_path(features, validation, spec, how), fingerprint(how)
    ranks.gather(None)  # what the first process wrote is there for all
    first, seen = restore(together, optimizer, path, settings)
    if len(set(ranks.gather(first))) > 1:
        raise RuntimeError(f"the processes do not find the same {path}: the folder has to be one that they share")
    if not seen:
        seen = {"loss": [], "validation": [ranks.first_says(losses_on(together, validation, how))], "kept": 0}
        together.best = together.arrays()
    warm, saved, pause = round(how.warmup * steps), time.monotonic(), SAVE_EVERY
    for step in progress(range(first, steps), f"joint {spec.kind if spec else 'NTP'}, {features.backbone.name}"):
        together.free(step >= warm and peak > 0)
        for group in optimizer.param_groups:
            at = (step - warm, steps - warm) if group.get("backbone") else (step, steps)
            group["lr"] = rate_at(*at, group["peak"]) if at[0] >= 0 else 0.0
        mine = share_of(order[step])
        losses = averaged(joint_losses(together, features, mine, how, accelerator.backward))
        norms = [combine(accelerator, list(together.heads.of(k).values())) for k in offsets]
        norms.append(combine(accelerator, list(together.trained.values())))
        if not np.isfinite([*losses, *norms]).all():
            rates, where = [g["lr"] for g in optimizer.param_groups], documents_of(features, mine)
            raise FloatingPointError(
                f"losses {losses} (NTP, offsets {offsets}), gradient norms {norms} at step {step}, rates {rates}, on {where}; "
                + (f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was due yet")
            )
        seen["loss"].append(losses)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in checks:
            seen["validation"].append(ranks.first_says(losses_on(together, validation, how)))
            if not spec or np.mean(seen["validation"][-1][1:]) < np.mean(seen["validation"][seen["kept"]][1:]):
                seen["kept"], together.best = len(seen["validation"]) - 1, together.arrays()
        if ranks.first_says((now := time.monotonic()) - saved >= pause):
            checkpoint(together, optimizer, path, step + 1, seen, settings)
            saved = time.monotonic()
            pause = max(SAVE_EVERY, (saved - now) / SAVE_SHARE)
    loss, found = np.array(seen["loss"]), np.array(seen["validation"])
    curves = {"loss": loss[:, 1:], "ntp_loss": loss[:, 0], "validation": found[:, 1:], "ntp_validation": found[:, 0]}
    return {n: x.numpy() for n, x in together.best.items()} | curves | {"kept": np.full(max(1, len(offsets)), seen["kept"])}


def joint_losses(together: Together, features: FrozenFeatures, rows, how: Joint, backward=None) -> list[float]:
    """[NTP, each offset]: mean cross-entropies [nats/token] on some blocks; with `backward`, gradients of their weighted sum.

    One backbone pass; the logits of one head at a time, whose gradient stops at the hidden states; then the backbone once.
    """
    model, heads = together.model, together.heads
    tokens, device = features.tokens[rows].to(model.device), model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=how.bf16 and backward is not None):
        hidden = together.states(tokens)
        tops = [hidden[-1]] + ([torch.stack([hidden[i] for i in heads.layers], 2)] if heads else [])
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in tops]
        found = [ntp_loss(model, leaves[0], tokens, how.ntp_weight, backward)]
        if heads:
            weights = tuple(how.decay ** (k - 2) for k in heads.spec.offsets)
            found += step_losses(heads, features, rows, how.labels, backward, states=leaves[1], weights=weights)
    reached = [(x, leaf.grad) for x, leaf in zip(tops, leaves, strict=True) if leaf.grad is not None]
    if backward and reached:
        torch.autograd.backward(*zip(*reached, strict=True))
    return found


def ntp_loss(model, last: torch.Tensor, tokens: torch.Tensor, weight: float, backward=None) -> float:
    """Mean next-token cross-entropy [nats/token] from the last states (batch, T, d); logits NUMBERS at a time."""
    h, target = predictions_at(last, 1).flatten(0, 1), labels_at(tokens, 1).flatten()
    leaf, total = h.detach().requires_grad_(h.requires_grad), 0.0
    size = max(1, NUMBERS // model.get_output_embeddings().weight.shape[0])
    for part, wanted in zip(leaf.split(size), target.split(size), strict=True):
        loss = torch.nn.functional.cross_entropy(unembed(model, part).float(), wanted, reduction="sum") / len(leaf)
        total += loss.item()
        if backward and weight and loss.requires_grad:
            backward(weight * loss)
    if leaf.grad is not None:
        h.backward(leaf.grad)
    return total


def losses_on(together: Together, features: FrozenFeatures, how: Joint) -> list[float]:
    """[NTP, each offset] over all blocks of `features`, nats a token."""
    return over_blocks(lambda part: joint_losses(together, features, part, how), len(features.tokens))


def trained_backbone(base: Backbone, arrays, how: Joint, name: str) -> Backbone:
    """The backbone that `joint_training` left in stored arrays, adapters merged into its weights."""
    model = copy.deepcopy(base.model).cpu().float()
    adapters = with_lora(model, how.lora, how.seed) if how.lora else None
    state = {n.removeprefix("model."): torch.from_numpy(x) for n, x in arrays.values.items() if n.startswith("model.")}
    _, unexpected = model.load_state_dict(state, strict=False)
    if unexpected:
        raise ValueError(f"{name}: {base.name} has no {', '.join(sorted(unexpected)[:3])}")
    model = adapters.merge_and_unload() if adapters else model
    model = model.to(base.model.device, base.model.dtype).eval().requires_grad_(False)  # as the base is, to be compared with it
    return dataclasses.replace(base, name=name, model=model, revision=None, fingerprint=arrays.fingerprint)


def checkpoint_path(features: FrozenFeatures, validation: FrozenFeatures, spec: HeadSpec | None, how: Joint) -> Path:
    """Where an unfinished run lies: named after all that it depends on, this code too."""
    given = {"features": features, "validation": validation, "spec": spec, "how": how}
    return paths.cache() / "joint" / f"{measurement_key(joint_training, [sys.modules[__name__]], given)[:20]}.safetensors"


def documents_of(features: FrozenFeatures, rows) -> str:
    """The documents that some training blocks come from, or the blocks' numbers where that cannot be told."""
    names = [blocks.documents_in(features.tokens[r], features.backbone.tokenizer) for r in rows]
    return "; ".join(f"block {r}: {', '.join(found) or 'unknown text'}" for r, found in zip(rows, names, strict=True))
