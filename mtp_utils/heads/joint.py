"""Joint training: heads and backbone in one loop, resumable to the bit."""

import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ..backbones import sharded
from ..backbones.anatomy import rows_of
from ..backbones.checkpoints import checkpoint, rate_at, restore
from ..base import paths, ranks, records
from ..base.keys import fingerprint, measurement_key
from ..base.runtime import progress, return_memory
from ..text import blocks
from .features import FrozenFeatures
from .spec import HeadSpec
from .together import Joint, Together, joint_losses, losses_on
from .training import NUMBERS, averaged, combine, head_groups, plan, share_of

SAVE_EVERY, SAVE_SHARE = 60.0, 0.05  # seconds between checkpoints, and the most of the time that saving may take


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
    return_memory()
    together, accelerator = Together(features.backbone, spec, how, shared=sharded.asked()), Accelerator()
    if spec:
        together.heads.begin(features.tokens)
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
        together.keep()
    earlier = seen.setdefault("seconds", 0.0)
    records.resumed(earlier)
    rest, began, pause = round(how.rest * steps), time.monotonic(), SAVE_EVERY
    saved = began
    for step in progress(range(first, steps), f"joint {spec.kind if spec else 'NTP'}, {features.backbone.name}"):
        together.free(step >= rest and peak > 0)
        for group in optimizer.param_groups:
            at = (step - rest, steps - rest) if group.get("backbone") else (step, steps)
            group["lr"] = rate_at(*at, group["peak"], how.warmup) if at[0] >= 0 else 0.0
        mine = share_of(order[step])
        losses = averaged(losses_of_step(together, features, mine, how, accelerator.backward))
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
                seen["kept"] = len(seen["validation"]) - 1
                together.keep()
        if ranks.first_says((now := time.monotonic()) - saved >= pause):
            seen["seconds"] = earlier + now - began
            checkpoint(together, optimizer, path, step + 1, seen, settings)
            saved = time.monotonic()
            pause = max(SAVE_EVERY, (saved - now) / SAVE_SHARE)
    loss, found = np.array(seen["loss"]), np.array(seen["validation"])
    curves = {"loss": loss[:, 1:], "ntp_loss": loss[:, 0], "validation": found[:, 1:], "ntp_validation": found[:, 0]}
    return {n: x.numpy() for n, x in together.best.items()} | curves | {"kept": np.full(max(1, len(offsets)), seen["kept"])}


def losses_of_step(together: Together, features: FrozenFeatures, rows, how: Joint, backward) -> list[float]:
    """joint_losses of a step's blocks, as many at a time as have NUMBERS logits; gradients add up to those of all at once."""
    at_once = max(1, NUMBERS // (features.tokens.shape[1] * rows_of(together.model.get_output_embeddings())))
    parts = [rows[a : a + at_once] for a in range(0, len(rows), at_once)]
    shares = [len(part) / len(rows) for part in parts]
    found = []
    for part, share in zip(parts, shares, strict=True):
        found.append(joint_losses(together, features, part, how, lambda loss, share=share: backward(share * loss)))
    return np.average(found, axis=0, weights=shares).tolist()


def checkpoint_path(features: FrozenFeatures, validation: FrozenFeatures, spec: HeadSpec | None, how: Joint) -> Path:
    """Where an unfinished run lies: named after all that it depends on, this code too."""
    given = {"features": features, "validation": validation, "spec": spec, "how": how}
    return paths.cache() / "joint" / f"{measurement_key(joint_training, given)[:20]}.safetensors"


def documents_of(features: FrozenFeatures, rows) -> str:
    """The documents that some training blocks come from, or the blocks' numbers where that cannot be told."""
    names = [blocks.documents_in(features.tokens[r], features.backbone.tokenizer) for r in rows]
    return "; ".join(f"block {r}: {', '.join(found) or 'unknown text'}" for r, found in zip(rows, names, strict=True))
