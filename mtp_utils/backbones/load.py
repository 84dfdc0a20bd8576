"""Backbones: pretrained decoders from the embedded ladder, a local directory, or the hub at a pinned revision."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..base import fetch, paths, ranks
from ..base.files import file_digest
from ..base.profiles import own_of
from ..base.runtime import choose_device, choose_dtype
from .wrapped import plain, text_parameters

LOCAL = {"local_files_only": True, "trust_remote_code": False}
PREFIX = "ladder/"
ROOM = 0.7  # of a device's free memory that weights may take
OWN = "own/"  # and the directory's name: one of those that reproduce.sh --backbone was given


@dataclass(frozen=True)
class Backbone:
    """A pretrained decoder and where it comes from. `model` is taken out of what it is wrapped in (peft's, a compiler's).
    `n_params` leaves out embedding and unembedding; `n_params_total` has them; what only images go through is in neither.
    `fingerprint` is of the weights' and the configuration's files, or the hub's commit, and ends in the dtype where that is not
    float32; `revision` is None for local ones."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    n_params: int
    n_params_total: int
    revision: str | None
    fingerprint: str
    card: dict

    def __post_init__(self):
        object.__setattr__(self, "model", plain(self.model))


def available_backbones() -> list[str]:
    """Names of the embedded ladder: the rungs by size, then extra seeds and twins."""
    cards = [json.loads(p.read_text(encoding="utf-8")) for p in paths.LADDER.glob("*/card.json")]
    return [PREFIX + c["name"] for c in sorted(cards, key=lambda c: (c["objective"] != "ntp", c["seed"], c["width"], c["name"]))]


def load_backbone(
    name: str, revision: str | None = None, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Backbone:
    """Loads a causal LM for evaluation: `ladder/<rung>`, a local directory, or a hub name (revision: here or as `name@revision`).

    On the accelerator if there is one, unless `device` says otherwise; over all accelerators and the main memory (`auto`) if its
    weights leave too little of one accelerator free: then it can be measured, not trained. Safetensors only, no remote code,
    always an explicit dtype, by default that of `runtime.choose_dtype`, and float32 for the ladder. Raises ValueError that names
    what was asked, what is available and what to do: an unknown rung, a changed file, a directory without a model, no network.
    """
    folder, source = _find(name, revision)
    spread = device == "auto"
    device = torch.device(device) if device and not spread else choose_device()[0]
    dtype = dtype or (torch.float32 if source == "ladder" else choose_dtype(device)[0])
    spread = spread or too_large(folder, device, dtype)
    if spread and ranks.count() > 1:
        raise ValueError(f"{name} does not fit into one device beside what is computed with it: start one process, not several")
    try:
        where = {"device_map": "auto"} if spread else {}
        loader = loader_of(AutoConfig.from_pretrained(folder, **LOCAL))
        model = loader.from_pretrained(folder, dtype=dtype, use_safetensors=True, **where, **LOCAL)
        tokenizer = _tokenizer(folder, source)
    except (OSError, ValueError) as error:
        raise ValueError(_explain(name, source, error)) from error
    model = (model if spread else model.to(device)).eval().requires_grad_(False)
    total = sum(p.numel() for p in text_parameters(model).values())
    embeddings = {
        id(p): p.numel()
        for e in (model.get_input_embeddings(), model.get_output_embeddings())
        if e is not None
        for p in e.parameters()
    }
    resolved = folder.name if source == "hub" else None
    fingerprint = f"{name}@{resolved}" if resolved else _digest(folder)
    fingerprint += "" if dtype == torch.float32 else f" {dtype}"
    card = json.loads((folder / "card.json").read_text(encoding="utf-8")) if source == "ladder" else {}
    return Backbone(name, model, tokenizer, total - sum(embeddings.values()), total, resolved, fingerprint, card)


def loader_of(config):
    """The class of transformers that loads a model of this configuration, to be given a text alone."""
    known = (AutoModelForCausalLM, AutoModelForImageTextToText)
    return next((loader for loader in known if type(config) in loader._model_mapping), AutoModelForCausalLM)


def too_large(folder: Path, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the weights in a folder, held in that dtype, would fill more than ROOM of what is free on a CUDA device."""
    if device.type != "cuda":
        return False
    stored = AutoConfig.from_pretrained(folder, **LOCAL).dtype or torch.float32
    size = _weight_bytes(folder) * dtype.itemsize / stored.itemsize
    return size > ROOM * torch.cuda.mem_get_info(device)[0]


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def look_at(name: str, revision: str | None = None):
    """(configuration, tokenizer, bytes of weights) of a backbone, without loading it. Raises ValueError as load_backbone."""
    folder, source = _find(name, revision)
    try:
        config = AutoConfig.from_pretrained(folder, **LOCAL)
        tokenizer = _tokenizer(folder, source)
        size = _weight_bytes(folder)
        if not size:
            raise ValueError("it has no *.safetensors")
    except (OSError, ValueError) as error:
        raise ValueError(_explain(name, source, error)) from error
    return config, tokenizer, size


def _find(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder with a backbone's files, and what kind of name it has."""
    if name.startswith(PREFIX):
        return _ladder_folder(name), "ladder"
    if name.startswith(OWN) and name in own_of()["backbones"]:
        return Path(own_of()["backbones"][name]), "directory"
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser().resolve(), "directory"
    repo, _, pinned = name.partition("@")
    try:
        return fetch.fetch(repo, "model", fetch.MODEL_FILES, revision or pinned or None), "hub"
    except ValueError as error:
        raise ValueError(_explain(name, "hub", error)) from error


def _tokenizer(folder: Path, source: str) -> PreTrainedTokenizerBase:
    found = AutoTokenizer.from_pretrained(paths.LADDER / "tokenizer" if source == "ladder" else folder, **LOCAL)
    if not found.is_fast:
        raise ValueError(f"its tokenizer {type(found).__name__} has no fast version, which tells where a token stands")
    found.backend_tokenizer.no_truncation()  # as the first call would set it, and with that what names the tokenizer
    found.backend_tokenizer.no_padding()
    return found


def _digest(folder: Path) -> str:
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()


def _ladder_folder(name: str) -> Path:
    if name not in available_backbones():
        raise ValueError(
            f"no backbone {name!r} in the embedded ladder; there are: {', '.join(available_backbones()) or 'none'}. "
            "`python -m mtp_utils.backbones.pretrain` trains it again from nothing"
        )
    folder = paths.LADDER / name.removeprefix(PREFIX)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    for part, digest in card["sha256"].items():
        if not (folder / part).is_file() or file_digest(folder / part) != digest:
            raise ValueError(
                f"{name}: {part} is missing or not the file its card names (sha256 differs), so it is not loaded; "
                "restore it with `git checkout mtp_utils/backbones/ladder`"
            )
    return folder


def _explain(name: str, source: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    what = {
        "directory": "the directory must hold config.json, a tokenizer and *.safetensors, as save_pretrained writes them",
        "hub": "it is no local directory, and of the hub's only models with safetensors are loaded",
        "ladder": "restore the ladder with `git checkout mtp_utils/backbones/ladder`",
    }[source]
    here = ", ".join(available_backbones()) or "none"
    return f"cannot load the backbone {name!r}: {reason} ({what}). Embedded and always available: {here}"
