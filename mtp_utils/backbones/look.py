"""A look at a model before any work: it is loaded once and reads two short rows and a long one, and what would make every number
wrong, or end a run in its third hour, is said in one line."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch

from ..base.refusals import first_line, require
from ..base.runtime import choose_device, choose_dtype
from ..text.tokens import encode, vocabulary_of
from . import gguf, load
from .anatomy import crop_vocabulary, last_only, position_limit
from .quiet import quiet
from .rounding import refuse_company

SHORT = 12  # tokens of the two short rows
SENTENCE = "The old dog sleeps in the garden, and nobody has seen the cat since the end of the week."
ROUNDING = 8  # units in the last place of the largest logit, by which the same row may differ beside another one
NEEDS = {"gptq": "gptqmodel", "awq": "gptqmodel", "bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed_tensors"}
NEEDS |= {"hqq": "hqq", "aqlm": "aqlm", "quanto": "optimum", "torchao": "torchao", "mxfp4": "kernels", "eetq": "eetq"}


def look(name: str, needed: int, seen: Callable = lambda tokenizer, model: None) -> list[str]:
    """What is worth saying of a backbone before it is measured on texts of `needed` tokens, a line each; the first: its size.
    seen: called with the tokenizer and, but for the ladder's, the model, while they are there.

    Raises ValueError, in one line, where it cannot be measured rightly: an adapter, a quantised checkpoint, no tokenizer, weights
    missing or of another shape, a token without a row, logits that are not finite or that know later tokens or the text beside
    theirs, too short a context.
    """
    folder, source = load._find(name, None)
    if source != "ladder":
        _refuse_files(name, folder)
    config, tokenizer, size = load.look_at(name)
    lines, most = [f"{name}: {type(config).__name__}, {size / 1e9:.2f} GB of weights"], position_limit(config)
    require(most >= needed, f"{name} reads {most} tokens; {needed} are needed")
    if source == "ladder":  # its files are held against their card's hashes
        seen(tokenizer, None)
        return lines
    if source == "gguf":
        lines.append(f"{name}: {gguf.told(folder)}")
    try:
        with quiet():
            model, info = load.read_model(folder, choose_dtype(choose_device()[0])[0])
    except Exception as error:  # a dozen classes, of as many libraries
        raise ValueError(f"{name} cannot be loaded: {first_line(error)}") from error
    load.refuse_missing(name, info)
    _refuse_tokens(name, tokenizer, model.get_input_embeddings().num_embeddings)
    _refuse_logits(name, model.eval(), needed)
    lines += _rows_without_text(name, model, tokenizer)
    crop_vocabulary(model, vocabulary_of(tokenizer))
    seen(tokenizer, model)
    return lines + _worth_saying(name, model, sorted(info["unexpected_keys"]))


def _refuse_files(name: str, folder: Path) -> None:
    """What the names of files and the configuration tell."""
    files = {path.name for path in folder.iterdir()}
    merged = "merge it into its base model first (peft: merge_and_unload, then save_pretrained), and give that folder"
    require("adapter_config.json" not in files, f"{name} is an adapter: {merged}")
    if "config.json" not in files:  # load.look_at says what a folder must hold
        return
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"}
    require(files & tokenizer, f"{name} has no tokenizer: save the model's there too (tokenizer.save_pretrained)")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    quantised = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config") or {}
    how = quantised.get("quant_method")
    needs = NEEDS.get(how)
    there = how is None or (needs and importlib.util.find_spec(needs))
    require(there, f"{name} is quantised ({how}): give the unquantised model" + (f", or install {needs}" if needs else ""))


def _refuse_tokens(name: str, tokenizer, rows: int) -> None:
    known = tokenizer.get_vocab()
    last = max(known, key=known.get)
    mend = "give the tokenizer it was trained with, or resize_token_embeddings and train"
    what = f"its tokenizer's token {known[last]}, {last!r}, is beyond the model's {rows} rows"
    require(known[last] < rows, f"{name}: {what}: {mend}")


@torch.no_grad()
def _refuse_logits(name: str, model, needed: int) -> None:
    """Two short rows that differ in the last token alone, then one as long as will be read."""
    rows, rng = model.get_input_embeddings().num_embeddings, torch.Generator().manual_seed(0)
    ids = torch.randint(rows, (1, SHORT), generator=rng).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % rows
    try:
        logits = model(input_ids=ids, use_cache=False).logits.float()
    except Exception as error:
        raise ValueError(f"{name} does not read plain token ids: {first_line(error)}") from error
    require(logits.isfinite().all(), f"{name}: its logits are not finite ({_what_is_not(model)})")
    moved, scale = (logits[0, :-1] - logits[1, :-1]).abs().max(), logits.abs().max()
    kind = f"no causal model ({type(model).__name__}), it sees the labels"
    changed = f"{name}: what it says at a position changes with a later token: {kind}"
    require(moved <= ROUNDING * torch.finfo(model.dtype).eps * scale, changed)
    refuse_company(model, name)
    try:
        model(input_ids=torch.randint(rows, (1, needed), generator=rng), use_cache=False, **last_only(model))
    except Exception as error:
        raise ValueError(f"{name} does not read {needed} tokens, which are needed: {first_line(error)}") from error


@torch.no_grad()
def _rows_without_text(name: str, model, tokenizer) -> list[str]:
    """What the model gives to ids that are no token (see anatomy.crop_vocabulary), on a sentence."""
    (ids,), known = encode(tokenizer, [SENTENCE]), vocabulary_of(tokenizer)
    p = model(input_ids=torch.tensor([ids]), use_cache=False).logits.float().softmax(-1)[0, :, known:]
    what = f"{100 * float(p.sum(-1).mean()):.2g} % of the probability lies on {p.shape[1]} rows without a token"
    return [f"{name}: {what}; they are left out, and the others' sum to 1"] if p.shape[1] else []


def _what_is_not(model) -> str:
    bad = next((n for n, p in model.named_parameters() if not p.isfinite().all()), None)
    return f"weights of {bad} are not" if bad else "the weights are: try another dtype"


def _worth_saying(name: str, model, unexpected: list[str]) -> list[str]:
    """Weights in the files that the model has no place for: layers that predict further tokens, and others."""
    n = model.config.get_text_config().num_hidden_layers
    ahead = [key for key in unexpected if "mtp" in key or any(int(i) >= n for i in re.findall(r"layers\.(\d+)\.", key))]
    lines = []
    if ahead:
        what = f"{name}: its files hold layers that predict further tokens ({ahead[0]}, ...)"
        lines.append(f"{what}; they see the tokens between, so they answer another question, and are not used here")
    if others := [key for key in unexpected if key not in ahead]:
        lines.append(f"{name}: {len(others)} tensors of its files belong to no part of {type(model).__name__} ({others[0]}, ...)")
    return lines
