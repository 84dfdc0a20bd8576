"""GGUF, the file format of llama.cpp: a file is dequantised once, into a cache under its sha256, and loaded from there.

What is kept is float32, several times the file: a dequantised weight is a small integer times a scale of 16 bits (and an offset),
and no type of 16 bits holds that product.
"""

import functools
import json
import math
import os
import shutil
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf import reader

from ..base import paths
from ..base.files import file_digest, write_json
from ..base.locks import in_turn
from ..base.refusals import first_line, require
from .quiet import quiet

MADE = "made.json"  # written last: what was converted by what, and size and sha256 of every file
MADE_BY = {name: version(name) for name in ("transformers", "gguf")}  # another reader may read another model
SOURCE = "model.gguf"
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class Header(NamedTuple):
    """What a GGUF file says of itself: `kept_in` is the type of most of its weights, `elements` how many there are, `starts`
    where each begins."""

    architecture: str
    kept_in: str
    elements: int
    metadata: dict
    starts: dict[str, int]


def folder_of(path: Path) -> Path:
    """The folder with the model of a GGUF file and its tokenizer, as save_pretrained writes them; converted at the first call.

    Raises ValueError, in one line: no GGUF or not all of it, an architecture that transformers does not read, no room for it.
    """
    stat = path.stat()
    return converted(path, _digest(path, stat.st_size, stat.st_mtime_ns))


@functools.cache
def _digest(path: Path, *_) -> str:
    return file_digest(path)


def converted(path: Path, digest: str) -> Path:
    """As `folder_of`, for a file whose sha256 is known."""
    folder = paths.models() / digest[:16] / "model"
    if not _whole(folder, digest):
        header = header_of(path)
        try:
            with in_turn(folder.parent) as held:
                if not _whole(folder, digest):  # another process may have made it meanwhile
                    for left in folder.parent.glob(".model.*.tmp") if held else ():  # of one that was killed
                        shutil.rmtree(left, ignore_errors=True)
                    _convert(path, digest, header, folder)
        except OSError as error:
            where = f"the cache {paths.models()} takes nothing ({error.strerror or first_line(error)})"
            raise ValueError(f"{path.name}: {where}: set MTP_CACHE to a folder with room that can be written") from error
    return folder


def header_of(path: Path) -> Header:
    """What stands before the weights. Raises ValueError where the file is no GGUF or not all of it."""
    try:
        blob = reader._mapped(str(path))
        metadata, count, end = reader._read_metadata(blob, path.name)
        entries, end = reader._read_tensor_table(blob, count, end)
        kinds, last = Counter(), 0
        for _, shape, kind, offset in entries:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            kinds[kind] += math.prod(shape)
            last = max(last, offset + math.prod(shape) // block * size)
    except Exception as error:  # struct, numpy and others, by where it is cut off
        raise ValueError(f"{path} is no GGUF file, or not all of one: {first_line(error)}") from error
    align = metadata.get("general.alignment", 32)
    begin = -(-end // align) * align
    needed = begin + last
    require(path.stat().st_size >= needed, f"{path} is cut off: {needed:,} bytes are in it, and {path.stat().st_size:,} are here")
    require(entries, f"{path} holds no weights: it is one part of several, or a vocabulary alone")
    parts = metadata.get("split.count", 1)
    require(parts < 2, f"{path} is one of {parts} parts: merge them first (llama-gguf-split --merge)")
    kept_in = GGMLQuantizationType(kinds.most_common(1)[0][0]).name
    starts = {name: begin + offset for name, *_, offset in entries}
    return Header(metadata["general.architecture"], kept_in, kinds.total(), metadata, starts)


def made_from(folder: Path) -> dict | None:
    """What a folder was converted from (sha256, architecture, kept_in, bytes), or None where it is none of these folders."""
    try:
        return json.loads((folder / MADE).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def fingerprint(folder: Path) -> str:
    """Of the file that a folder was converted from, with the type of its weights: `sha256:gguf:Q4_1`."""
    made = made_from(folder)
    return f"{made['sha256']}:gguf:{made['kept_in']}"


def told(folder: Path) -> str:
    """One line on where the weights come from."""
    made = made_from(folder)
    how = f"quantised to {made['kept_in']}" if made["kept_in"] not in ("F32", "F16", "BF16") else f"in {made['kept_in']}"
    size = f"{made['bytes'] / 1e9:.2f} GB"
    done = "dequantised" if "quantised" in how else "converted"
    return f"a GGUF file of {size}, architecture {made['architecture']}, {how}; {done} to float32, kept in {folder}"


def _whole(folder: Path, digest: str) -> bool:
    """Whether all of a conversion is there, by this version of the reader."""
    made = made_from(folder)
    if not made or made["sha256"] != digest or made["by"] != MADE_BY:
        return False
    return all((folder / n).is_file() and (folder / n).stat().st_size == f["bytes"] for n, f in made["files"].items())


def _convert(path: Path, digest: str, header: Header, folder: Path) -> None:
    needed, free = 4 * header.elements, shutil.disk_usage(folder.parent).free
    short = f"{path.name} takes {needed / 1e9:.2f} GB in float32, and {folder.parent} has {free / 1e9:.2f}"
    require(free > needed, f"{short}: set MTP_CACHE to a folder with more room")
    print(f"converting {path.name} ({path.stat().st_size / 1e6:.0f} MB), once", flush=True)
    work = folder.parent / f".model.{os.getpid()}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        for part in _read(path, header, work):
            with quiet():
                part.save_pretrained(work)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": _synced(p)} for p in sorted(work.iterdir())}
        about = {"architecture": header.architecture, "kept_in": header.kept_in, "bytes": path.stat().st_size}
        write_json(work / MADE, {"sha256": digest, **about, "by": MADE_BY, "files": files})
        if not _whole(folder, digest):  # where there are no locks, another process may have been faster
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(work, folder)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(first_line(error)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read(path: Path, header: Header, work: Path) -> tuple:
    """(model, tokenizer) by transformers' reader, through a folder of its own: files that lie beside the GGUF are not its."""
    source = work / SOURCE  # a name that the reader takes, whatever the file is called
    source.symlink_to(path.resolve())
    options = {"gguf_file": SOURCE, "local_files_only": True}
    full = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True), "output_loading_info": True}
    try:
        with quiet():
            config = AutoConfig.from_pretrained(work, **options)
            _scale_rotations(config, path, header)
            model, info = AutoModelForCausalLM.from_pretrained(work, config=config, **options, **full)
            tokenizer = AutoTokenizer.from_pretrained(work, **options)
        missing = sorted(info["missing_keys"])
        require(not missing, f"{len(missing)} weights are not in it, {(missing or '.')[0]} among them")
    except Exception as error:  # a dozen classes, by what the reader does not know
        what = f"{path.name} (GGUF, architecture {header.architecture}, {header.kept_in}) cannot be converted"
        raise ValueError(f"{what}: {first_line(error)}; give the model as safetensors") from error
    source.unlink()
    return model, tokenizer


def _scale_rotations(config, path: Path, header: Header) -> None:
    """Put into the configuration how the file scales rotary frequencies, which transformers' reader drops: linearly, or as Llama
    3.1 and its successors do, whose file holds the factors. ValueError where it is another way: every number would be off."""
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)  # layers with a window turn at their own rate, unscaled
    if rope.get("rope_type", "default") != "default":
        return
    told = {key.partition(".rope.scaling.")[2]: value for key, value in header.metadata.items() if ".rope.scaling." in key}
    kind, factors = told.get("type", "none"), [name for name in header.starts if name.startswith("rope_f")]
    if factors == ["rope_freqs.weight"]:
        size = (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) // 2
        with open(path, "rb") as file:
            file.seek(header.starts[factors[0]])
            stored = np.fromfile(file, "<f4", size)
        known = {"factor": float(stored.max()), **LLAMA3}
        wave = 2 * np.pi * rope["rope_theta"] ** (np.arange(size) / size)
        smooth = (LLAMA3["original_max_position_embeddings"] / wave - 1) / (LLAMA3["high_freq_factor"] - 1)
        smooth = smooth.clip(0, 1)
        alike = np.allclose(1 / ((1 - smooth) / known["factor"] + smooth), stored, rtol=1e-4)
        require(alike, "its factors of rotary frequencies (rope_freqs.weight) are in no way that is known here")
        rope |= known
    elif kind == "linear" and not factors:
        rope |= {"rope_type": "linear", "factor": told["factor"]}
    else:
        require(kind == "none" and not factors, f"it scales rotary frequencies ({kind}), which transformers' reader drops")


def _synced(path: Path) -> str:
    """sha256 of a file, once it lies on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return file_digest(path)
