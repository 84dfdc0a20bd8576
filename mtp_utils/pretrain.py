"""Trains the embedded ladder from nothing: corpora list, tokenizer, learning-rate sweeps, rungs, extra seeds and twins.

    python -m mtp_utils.pretrain all                         # everything, in order; resumes where it stopped
    python -m mtp_utils.pretrain run w128 --tokens 1000000   # one model
Every model sees the same tokens in the same order (extra seeds: another order and initialisation). Checkpoints are
safetensors with the step and the loss curve in their metadata; a run stopped anywhere goes on from the last one.
"""

import argparse
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from . import blocks, corpora, paths
from .backbones import file_digest
from .blocks import CONTEXT, END
from .records import write_json
from .runtime import choose_device, choose_dtype
from .specs import BLOCKED, SPECS, VOCABULARY, Spec, build, loss_of

BATCH = 16  # sequences of CONTEXT tokens: 2,930 steps in 12M tokens
MICRO = {"cpu": 16}  # sequences a pass: on a CPU what fits its caches; elsewhere the whole batch
WARMUP, FLOOR = 0.05, 0.1  # share of the steps; share of the peak rate at the end
SWEEP_TOKENS = 500_000
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)


def train_tokenizer() -> None:
    """Byte-level BPE on equal shares of the three pretrain splits, saved for AutoTokenizer."""
    texts = []
    for corpus in corpora.CORPORA:
        size, chosen = 0, []
        for d in corpora.documents(corpus, "pretrain")[::3]:
            if size < 2_500_000:
                chosen.append(d.text)
                size += len(d.text)
        texts += chosen
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, model_max_length=2048, clean_up_tokenization_spaces=False
    ).save_pretrained(paths.LADDER / "tokenizer")


def load_tokenizer():
    return AutoTokenizer.from_pretrained(paths.LADDER / "tokenizer", local_files_only=True)


def sequences(n: int, seed: int, tokenizer) -> np.ndarray:
    """(n, CONTEXT) uint16: the corpora in turn, each one's blocks in a new random order every epoch."""
    found = np.empty((n, CONTEXT), dtype=np.uint16)
    for c, corpus in enumerate(corpora.CORPORA):
        stream = blocks.stream(corpus, "pretrain", tokenizer)
        rows = stream[: len(stream) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
        wanted = len(range(c, n, 3))
        order = np.concatenate(
            [np.random.default_rng([seed, c, epoch]).permutation(len(rows)) for epoch in range(wanted // len(rows) + 1)]
        )
        found[c::3] = rows[order[:wanted]]
    return found


def rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then cosine down to FLOOR x peak."""
    warm = max(1, int(WARMUP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def train(spec: Spec, rate: float, tokens: int, work: Path, every: int = 100) -> dict:
    """Trains one model to `tokens`; returns its summary. The checkpoint and the summary lie in `work`."""
    device = choose_device()[0]
    summary = work / "summary.json"
    if summary.exists():
        return json.loads(summary.read_text(encoding="utf-8"))
    work.mkdir(parents=True, exist_ok=True)
    steps = tokens // (BATCH * CONTEXT)
    data = sequences(steps * BATCH, spec.seed, load_tokenizer())
    parts = build(spec).to(device)
    bf16, micro = choose_dtype(device, training=True)[0] == torch.bfloat16, MICRO.get(device.type, BATCH)
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
    first, curve = restore(parts, optimizer, work / "checkpoint.safetensors")
    started = time.monotonic()
    for step in range(first, steps):
        ids = torch.from_numpy(data[step * BATCH : (step + 1) * BATCH].astype(np.int64)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, rate)
        value = 0.0
        for part in ids.split(micro):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = loss_of(parts, part, spec.objective) * len(part) / len(ids)
            loss.backward()
            value += loss.item()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(value):
            raise FloatingPointError(f"{spec.name}: loss is {value} at step {step} (rate {rate:g}); the last checkpoint is kept")
        curve.append(round(value, 4))
        if (step + 1) % every == 0 or step + 1 == steps:
            checkpoint(parts, optimizer, work / "checkpoint.safetensors", step + 1, curve)
            pace = (step + 1 - first) * BATCH * CONTEXT / (time.monotonic() - started)
            print(
                f"{spec.name} rate {rate:g} step {step + 1}/{steps} loss {np.mean(curve[-50:]):.3f} {pace:,.0f} tokens/s "
                f"{(steps - step - 1) * BATCH * CONTEXT / pace / 60:.0f} min left",
                flush=True,
            )
    result = {
        **asdict(spec),
        "tokens": steps * BATCH * CONTEXT,
        "steps": steps,
        "rate": rate,
        "bf16": bf16,
        "loss_curve": thin(curve),
        "final_slope_nats_per_1M_tokens": slope(curve),
        "validation": validation(parts, spec),
    }
    write_json(summary, result)
    return result


def checkpoint(parts, optimizer, path: Path, step: int, curve: list[float]) -> None:
    tensors = {f"parts.{k}": v.contiguous() for k, v in parts.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v.contiguous() for k, v in state.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "curve": json.dumps(curve)})
    os.replace(temporary, path)


def restore(parts, optimizer, path: Path) -> tuple[int, list[float]]:
    if not path.exists():
        return 0, []
    state = optimizer.state_dict()
    with safe_open(path, "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}
        metadata = file.metadata()
    parts.load_state_dict({k.removeprefix("parts."): v for k, v in tensors.items() if k.startswith("parts.")})
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            state["state"].setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(state)
    return int(metadata["step"]), json.loads(metadata["curve"])


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


def slope(curve: list[float]) -> float:
    """Least-squares slope of the last fifth of the training loss, nats per million tokens."""
    tail = np.array(curve[-max(2, len(curve) // 5) :])
    return round(float(np.polyfit(np.arange(len(tail)) * BATCH * CONTEXT / 1e6, tail, 1)[0]), 4)


def sweep(width: int, work: Path) -> dict:
    """The rate with the lowest mean validation loss after SWEEP_TOKENS; three trials, and more while the best is at an edge."""
    tried = {2, 3, 4}
    while True:
        for i in tried:
            train(SPECS[f"w{width}"], RATES[i], SWEEP_TOKENS, work / "sweep" / f"w{width}-{RATES[i]:g}")
        found = trials(width, work)
        best = RATES.index(min(found, key=found.get))
        edge = {i for i in (best - 1, best + 1) if 0 <= i < len(RATES)} - tried
        if not edge:
            return {"rate": RATES[best], "validation": found}
        tried |= edge


def trials(width: int, work: Path) -> dict[float, float]:
    """rate -> mean validation loss of the sweep's finished trials of one rung."""
    found = {}
    for rate in RATES:
        summary = work / "sweep" / f"w{width}-{rate:g}" / "summary.json"
        if summary.exists():
            found[rate] = round(float(np.mean(list(json.loads(summary.read_text(encoding="utf-8"))["validation"].values()))), 4)
    return found


def export(spec: Spec, work: Path) -> None:
    """fp16 weights, config and card of a finished run into the package."""
    summary = json.loads((work / "runs" / spec.name / "summary.json").read_text(encoding="utf-8"))
    parts = build(spec)
    with safe_open(work / "runs" / spec.name / "checkpoint.safetensors", "pt") as file:
        parts.load_state_dict({k.removeprefix("parts."): file.get_tensor(k) for k in file.keys() if k.startswith("parts.")})
    folder = paths.LADDER / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    parts["model"].half().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if "heads" in parts:
        save_file({k: v.half() for k, v in parts["heads"].state_dict().items()}, folder / "mtp_heads.safetensors")
    n_params = sum(p.numel() for p in parts["model"].base_model.parameters()) - VOCABULARY * spec.width
    card = {
        **summary,
        "n_params": n_params,
        "tokens_per_parameter": round(summary["tokens"] / n_params, 1),
        "context": CONTEXT,
        "data": "mtp_utils/ladder/corpora.json, split pretrain, the three corpora in turn",
        "sweep": trials(spec.width, work),
        "command": "python -m mtp_utils.pretrain all",
        "versions": {"torch": torch.__version__.split("+")[0]},
        "sha256": {
            p.name: file_digest(p) for p in sorted(folder.glob("*")) if p.suffix == ".safetensors" or p.name == "config.json"
        },
    }
    write_json(folder / "card.json", card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["corpora", "tokenizer", "sweep", "run", "export", "all"])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SPECS)}; none: all")
    parser.add_argument("--tokens", type=int, default=12_000_000)
    parser.add_argument("--work", type=Path, default=paths.cache().parent / "ladder")
    parser.add_argument("--rate", type=float, help="peak learning rate instead of the sweep's (drafts)")
    parser.add_argument("--threads", type=int, help="two processes of one thread each get more done than one of two")
    a = parser.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    unknown = set(a.names) - set(SPECS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(SPECS)}")
    chosen = [SPECS[n] for n in a.names] or list(SPECS.values())
    paths.LADDER.mkdir(exist_ok=True)
    if a.what in ("corpora", "all") and not (a.what == "all" and (paths.LADDER / "corpora.json").exists()):
        print(json.dumps({k: v for k, v in corpora.freeze().items() if k in ("remaining_overlap", "packages")}))
    if a.what in ("tokenizer", "all") and not (a.what == "all" and (paths.LADDER / "tokenizer").exists()):
        train_tokenizer()
    for spec in chosen:
        if a.what in ("sweep", "run", "all"):
            rate = a.rate or sweep(spec.width, a.work)["rate"]
        if a.what in ("run", "all"):
            train(spec, rate, -(-a.tokens // (BATCH * CONTEXT)) * BATCH * CONTEXT, a.work / "runs" / spec.name)
        if a.what in ("export", "all"):
            export(spec, a.work)


if __name__ == "__main__":
    main()
