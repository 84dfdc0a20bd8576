"""Trains the embedded ladder from nothing: corpora list, tokenizer, learning-rate sweeps, rungs, extra seeds and twins.

    python -m mtp_utils.backbones.pretrain all                         # everything, in order; resumes where it stopped
    python -m mtp_utils.backbones.pretrain run w128 --tokens 1000000   # one model

Every model sees the same tokens in the same order (extra seeds: another order and initialisation). The list of texts, the
tokenizer, the sweeps' results and each finished model are kept in `ladder/`, and what is there is not made again:
a run goes on where it stopped, on another machine too. Remove that folder to begin anew.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..base import paths
from ..base.files import file_digest, read_json, write_json
from ..text import corpora, freezing
from ..text.blocks import CONTEXT
from ..text.tokens import END
from .loop import BATCH, train
from .specs import SPECS, VOCABULARY, Spec, build

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


def sweep(width: int, work: Path) -> float:
    """The rate with the lowest mean validation loss after SWEEP_TOKENS; three trials, and more while the best is at an edge."""
    wanted = {2, 3, 4}
    while True:
        for rate in (RATES[i] for i in sorted(wanted)):
            if rate not in trials(width):
                found = train(SPECS[f"w{width}"], rate, SWEEP_TOKENS, work / "sweep" / f"w{width}-{rate:g}")
                record(width, rate, float(np.mean(list(found["validation"].values()))))
        known = trials(width)
        best = RATES.index(min(known, key=known.get))
        edge = {i for i in (best - 1, best + 1) if 0 <= i < len(RATES) and RATES[i] not in known}
        if not edge:
            return RATES[best]
        wanted |= edge


def inputs() -> dict[str, str]:
    """sha256 of what every model is trained on: the tokenizer, and the list of texts with their digests."""
    files = {"tokenizer": paths.LADDER / "tokenizer" / "tokenizer.json", "corpora": paths.FROZEN}
    return {name: file_digest(path) for name, path in files.items()}


def swept(width: int) -> dict:
    """The sweep kept in ladder/w<width>/sweep.json, if it is of these inputs and this budget; else one without trials."""
    path, setting = paths.LADDER / f"w{width}" / "sweep.json", {"tokens": SWEEP_TOKENS, "batch": BATCH, **inputs()}
    found = read_json(path)
    return found if all(found.get(k) == v for k, v in setting.items()) else setting | {"validation": {}}


def trials(width: int) -> dict[float, float]:
    """rate -> mean validation loss [nats/token] of one rung's trials."""
    return {float(rate): loss for rate, loss in swept(width)["validation"].items()}


def record(width: int, rate: float, loss: float) -> None:
    found = swept(width)
    found["validation"][f"{rate:g}"] = round(loss, 4)
    write_json(paths.LADDER / f"w{width}" / "sweep.json", found)


def finished(spec: Spec, rate: float, tokens: int, batch: int = BATCH) -> bool:
    """Whether the ladder already holds this model, trained at this rate on these inputs, in as many steps of as many tokens."""
    path = paths.LADDER / spec.name / "card.json"
    card = read_json(path)
    wanted = {"inputs": inputs(), "rate": rate, "tokens": tokens, "steps": tokens // (batch * CONTEXT)}
    return all(card.get(name) == value for name, value in wanted.items())


def export(spec: Spec, work: Path, arguments: str) -> None:
    """fp16 weights, config and card of a finished run into the package."""
    summary = read_json(work / "runs" / spec.name / "summary.json")
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
        "data": "mtp_utils/text/corpora.json, split pretrain, the three corpora in turn",
        "inputs": inputs(),
        "sweep": trials(spec.width),
        "command": f"python -m mtp_utils.backbones.pretrain {arguments}",
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
    parser.add_argument("--batch", type=int, default=BATCH, help="sequences a step; a GPU is idle with few")
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
    if a.what in ("corpora", "all") and not (a.what == "all" and paths.FROZEN.exists()):
        print(json.dumps({k: v for k, v in freezing.freeze().items() if k in ("remaining_overlap", "packages")}))
    if a.what in ("tokenizer", "all") and not (a.what == "all" and (paths.LADDER / "tokenizer").exists()):
        train_tokenizer()
    tokens = -(-a.tokens // (a.batch * CONTEXT)) * a.batch * CONTEXT
    for spec in chosen:
        if a.what in ("sweep", "run", "all"):
            rate = a.rate or sweep(spec.width, a.work)
        if a.what == "all" and finished(spec, rate, tokens, a.batch):
            print(f"{spec.name} is in {paths.LADDER / spec.name}: not trained again")
            continue
        if a.what in ("run", "all"):
            train(spec, rate, tokens, a.work / "runs" / spec.name, batch=a.batch)
        if a.what in ("export", "all"):
            export(spec, a.work, f"all --tokens {tokens} --batch {a.batch}")


if __name__ == "__main__":
    main()
