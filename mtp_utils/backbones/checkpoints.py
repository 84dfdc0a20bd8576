"""What every training loop shares: the rate at a step, and checkpoints that a stopped run goes on from.

Checkpoints are safetensors with the step and the curve in their metadata; one that is cut short or altered is not trusted.
"""

import hashlib
import json
import math
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..base import ranks
from ..base.files import whole
from . import sharded

WARMUP, FLOOR = 0.05, 0.1  # shares: of the steps; of the peak rate, at the end


def rate_at(step: int, steps: int, peak: float, warmup: float = WARMUP) -> float:
    """Linear warm-up over that share of the steps, then cosine down to FLOOR x peak."""
    warm = warm_steps(steps, warmup)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def warm_steps(steps: int, warmup: float) -> int:
    """Steps in which the rate rises: one at least."""
    return max(1, int(warmup * steps))


def checkpoint(parts, optimizer, path: Path, step: int, curve, settings: dict) -> None:
    """What `restore` needs to go on after `step` steps, in one file, written by the first process; curve: anything JSON can
    hold."""
    tensors = {f"parts.{k}": v.contiguous() for k, v in parts.state_dict().items()}
    states = optimizer.state_dict()["state"]
    tensors |= sharded.gathered({f"optimizer.{i}.{k}": v for i, state in states.items() for k, v in state.items()}, copy=False)
    if not ranks.first():
        return
    metadata = {"step": str(step), "curve": json.dumps(curve), "settings": json.dumps(settings)}
    with whole(path) as temporary:  # from where the tensors lie: a copy of them all is as large as the run
        save_file(tensors, temporary, metadata=metadata | {"sha256": _digest(tensors, metadata)})


def _digest(tensors: dict, metadata: dict) -> str:
    """sha256 of all that a checkpoint holds."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def restore(parts, optimizer, path: Path, settings: dict) -> tuple[int, list | dict]:
    """Put `parts` and `optimizer` where `checkpoint` left them; returns its step and curve, (0, []) where there is none, or a
    damaged one, which is not trusted."""
    if not path.exists():
        return 0, []
    state = optimizer.state_dict()
    try:
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}
            metadata = file.metadata() or {}
        sound = metadata.pop("sha256", None) == _digest(tensors, metadata)
    except (SafetensorError, ValueError):
        sound = False
    if not sound:
        warnings.warn(f"{path} is cut short or altered: training begins anew", stacklevel=2)
        return 0, []
    require_same(settings, json.loads(metadata["settings"]), path)
    parts.load_state_dict({k.removeprefix("parts."): v for k, v in tensors.items() if k.startswith("parts.")})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            state["state"].setdefault(int(i), {})[name] = sharded.as_held(value, parameters[int(i)])
    optimizer.load_state_dict(state)
    return int(metadata["step"]), json.loads(metadata["curve"])


def require_same(settings: dict, found: dict, where: Path) -> None:
    other = {name: found.get(name) for name in settings if found.get(name) != settings[name]}
    if other:
        raise ValueError(
            f"{where} holds a run with {other}, not with {dict(settings.items() - (settings | other).items())}; "
            "name another --work, or remove it"
        )
