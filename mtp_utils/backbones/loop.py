"""One training run of a ladder model: its sequences, the loop, its validation loss.

A run stopped anywhere goes on from its last checkpoint, and a folder that holds a run of other settings is refused.
"""

import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from ..base import paths
from ..base.files import read_json, write_json
from ..base.locks import exclusive
from ..base.runtime import choose_device, choose_dtype
from ..text import blocks, corpora
from ..text.blocks import CONTEXT
from .checkpoints import checkpoint, rate_at, require_same, restore
from .specs import BLOCKED, Spec, build, loss_of

BATCH = 16  # sequences of CONTEXT tokens a step: 2,930 steps in 12M tokens


def load_tokenizer():
    return AutoTokenizer.from_pretrained(paths.LADDER / "tokenizer", local_files_only=True)


def train(spec: Spec, rate: float, tokens: int, work: Path, every: int = 100, batch: int = BATCH) -> dict:
    """Trains one model to `tokens`; returns its summary. The checkpoint and the summary lie in `work`.

    Raises ValueError where `work` holds a run of other settings, Stop where another process trains in it,
    FloatingPointError where the loss is not finite.
    """
    with exclusive(work):
        return _train(spec, rate, tokens, work, every, batch)


def _train(spec: Spec, rate: float, tokens: int, work: Path, every: int, batch: int) -> dict:
    device = choose_device()[0]
    a_step = batch * CONTEXT
    steps = tokens // a_step
    settings = {**asdict(spec), "tokens": steps * a_step, "steps": steps, "rate": rate}
    summary = work / "summary.json"
    if found := read_json(summary):
        require_same(settings, found, work)
        return found
    data = blocks.training_blocks("pretrain", load_tokenizer(), steps * batch, spec.seed)
    parts = build(spec).to(device)
    bf16 = choose_dtype(device, training=True)[0] == torch.bfloat16
    if device.type == "cpu":
        parts["model"].set_attn_implementation(BLOCKED)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parts.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in parts.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    first, curve = restore(parts, optimizer, work / "checkpoint.safetensors", settings)
    started = time.monotonic()
    for step in range(first, steps):
        ids = torch.from_numpy(data[step * batch : (step + 1) * batch].astype(np.int64)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, rate)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(parts, ids, spec.objective)
        loss.backward()
        value = loss.item()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(value):
            raise FloatingPointError(f"{spec.name}: loss is {value} at step {step} (rate {rate:g}); the last checkpoint is kept")
        curve.append(round(value, 4))
        if (step + 1) % every == 0 or step + 1 == steps:
            checkpoint(parts, optimizer, work / "checkpoint.safetensors", step + 1, curve, settings)
            pace = (step + 1 - first) * a_step / (time.monotonic() - started)
            print(
                f"{spec.name} rate {rate:g} step {step + 1}/{steps} loss {np.mean(curve[-50:]):.3f} {pace:,.0f} tokens/s "
                f"{(steps - step - 1) * a_step / pace / 60:.0f} min left",
                flush=True,
            )
    result = {
        **settings,
        "bf16": bf16,
        "loss_curve": thin(curve),
        "final_slope_nats_per_1M_tokens": slope(curve, a_step),
        "validation": validation(parts, spec),
    }
    write_json(summary, result)
    return result


@torch.no_grad()
def validation(parts, spec: Spec, n: int = 96) -> dict[str, float]:
    """Mean cross-entropy per corpus of the model's first objective on the first `n` validation blocks."""
    parts.eval()
    device = next(parts.parameters()).device
    found = {}
    for corpus in corpora.CORPORA:
        stream = blocks.stream(corpus, "validation", load_tokenizer())
        rows = torch.from_numpy(stream[: n * CONTEXT].reshape(-1, CONTEXT).astype(np.int64)).to(device)
        objective = "ntp" if spec.objective == "mtp" else spec.objective
        found[corpus] = round(float(np.mean([loss_of(parts, part, objective).item() for part in rows.split(16)])), 4)
    parts.train()
    return found


def thin(curve: list[float], n: int = 60) -> list[float]:
    """Means over `n` equal stretches of the curve."""
    return [round(float(np.mean(part)), 4) for part in np.array_split(np.array(curve), min(n, len(curve)))]


def slope(curve: list[float], a_step: int = BATCH * CONTEXT) -> float:
    """Least-squares slope of the last fifth of the training loss, nats per million tokens."""
    tail = np.array(curve[-max(2, len(curve) // 5) :])
    return round(float(np.polyfit(np.arange(len(tail)) * a_step / 1e6, tail, 1)[0]), 4)
