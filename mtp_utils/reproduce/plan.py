"""What a run would need and about what it takes: the looks that are taken before any long work."""

import os
import shutil
import time
from pathlib import Path

import torch

from ..backbones import edges, index
from ..backbones.load import look_at
from ..backbones.look import look
from ..base import fetch, paths, ranks
from ..base.locks import Stop
from ..base.profiles import Profile, own_of
from ..base.runtime import choose_device, choose_dtype, environment
from ..findings.adjusted import POSITIONS
from ..findings.stored import BEYOND, LARGEST_EXACT
from ..text import blocks, hub, own
from ..text.tokens import controls_in, digest_of, fronts_of
from .words import UNKNOWN_WORD


def look_over(profile: Profile, dry: bool = False) -> dict[str, list[int]]:
    """Find the backbones, load each once and cut the text, before any long work; Stop where one cannot be measured rightly, or
    not together with the others. Dry: what is on the hub is looked for there and not fetched. Returns what is to stand before
    every document, by the tokenizer's digest: one choice for all, of least loss summed over the backbones, each of which says
    it once; END, which it was trained with, where the ladder is among them."""
    kinds, losses, needed = {}, [], blocks.CONTEXT + profile.horizon
    unread = dry and own_of()["hub"]  # the texts are not here yet
    asked = not unread and not any(name.startswith("ladder/") for name in profile.backbones)

    def seen(tokenizer, model) -> None:
        kinds.setdefault(digest_of(tokenizer), (name, tokenizer))
        if asked and ranks.first():
            losses.append(edges.front_losses(model, tokenizer))

    try:
        for corpus in profile.corpora if own_of()["hub"] else ():
            source = hub.SOURCES[corpus]
            print(f"{corpus}: {source.repo}, about {source.megabytes} MB, licence: {source.licence}", flush=True)
            if dry:
                fetch.to_fetch(source.repo, "dataset", list(source.files.values()))
        for name in profile.backbones:
            if dry and _is_elsewhere(name):
                size, missing = _to_fetch(name)
                print(f"{name}: {size / 1e9:.2f} GB, {missing / 1e9:.2f} GB of them to be fetched", flush=True)
            else:
                print("\n".join(look(name, needed, seen)), flush=True)
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(name for name, _ in kinds.values())} have different tokenizers; run each by itself")
        if not kinds or unread:
            return {}
        ((digest, (_, tokenizer)),) = kinds.items()
        tokenizer.mtp_front = ranks.first_says(edges.best(losses) if losses else fronts_of(tokenizer)[0])
        if losses:
            print(f"first token: {edges.named(tokenizer, losses)}", flush=True)
        _say_controls(tokenizer)
        text = blocks.evaluation_text(profile, tokenizer)
        print(", ".join(f"{corpus}: {len(part.documents)} documents" for corpus, part in text.items()), flush=True)
        return {digest: list(tokenizer.mtp_front)}
    except ValueError as error:
        raise Stop(str(error), UNKNOWN_WORD) from error


def _say_controls(tokenizer) -> None:
    """That a text of the user's spells out control tokens, if it does."""
    found = controls_in(tokenizer, own.pieces()[0]) if own_of()["text"] else {}
    if found:
        held = ", ".join(f"{n} times {token}" for token, n in found.most_common())
        print(f"the text holds {held}: read as plain characters", flush=True)


def _is_elsewhere(name: str) -> bool:
    """Whether a backbone is on the hub, or in the package index and not here yet."""
    if name in index.models():
        return not index.is_here(name)
    return not name.startswith("ladder/") and not Path(own_of()["backbones"].get(name, name)).exists()


def _to_fetch(name: str) -> tuple[int, int]:
    """Bytes of a model that is elsewhere, and bytes of them that are not here yet."""
    if name in index.models():
        return (index.models()[name]["bytes"],) * 2
    repo, _, revision = name.partition("@")
    return fetch.to_fetch(repo, "model", fetch.MODEL_FILES, revision or None)


def estimates(profile: Profile) -> dict[str, float]:
    """About what a run takes, from the sizes of the backbones' files: bytes of the largest one's `weights` and of `training`
    (32-bit weights, gradients and two moments), and the `operations` of the backbones, without heads, drafts and trials."""
    parameters, work = {}, 0.0
    for name in profile.backbones:
        if _is_elsewhere(name):  # on the hub taken to be stored in 16 bits
            known = index.models().get(name, {}).get("parameters")
            parameters[name], vocabulary = known or _to_fetch(name)[0] / 2, LARGEST_EXACT + 1
        else:
            config, _, size = look_at(name)
            parameters[name], vocabulary = size / (config.dtype or torch.float32).itemsize, config.get_text_config().vocab_size
        beyond = sum(BEYOND[2].values())  # about as many for offset 2 above LARGEST_EXACT as for each later offset
        last = name in profile.last_rungs
        paths_of_one = (vocabulary if vocabulary <= LARGEST_EXACT else beyond) + last * beyond * (profile.horizon - 2)
        windows = profile.n_documents * len(profile.corpora)
        tokens = windows * (blocks.CONTEXT + profile.positions_per_document * paths_of_one)
        if name == profile.backbones[-1] and vocabulary <= LARGEST_EXACT:
            tokens += windows * POSITIONS * vocabulary
        work += 2 * parameters[name] * (tokens + last * profile.text_tokens)
    joint = parameters[profile.joint or profile.backbones[-1]]
    arms = 2 * sum(n / 2**i for i, n in enumerate(reversed(profile.joint_trials[:-1]))) + len(profile.joint_seeds)
    work += 6 * joint * arms * profile.joint_tokens  # of notebook 05: full fine-tuning, about as much for the others
    item = 2 if profile.needs_hub and torch.cuda.is_available() else 4
    return {"weights": item * max(parameters.values()), "training": 16 * joint, "operations": work}


def _rate() -> float:
    """Operations a second of a matrix product here, in the type that backbones are measured in."""
    device = choose_device()[0]
    n = 1024 if device.type == "cpu" else 8192
    x = torch.ones(n, n, device=device, dtype=choose_dtype(device)[0])
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        (x @ x)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)


def plan(notebooks: list[Path], profile: Profile) -> None:
    """Say what the run would do, what it has to do it with, and about what it takes."""
    here = environment()
    folder = paths.build(profile.folder)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{profile.name}: {', '.join(p.stem for p in notebooks)}")
    print(f"{len(profile.backbones)} backbones, {', '.join(profile.corpora)}: {profile.n_documents} documents each, offsets 1 to "
          f"{profile.horizon}, heads on {profile.head_tokens:,} to {profile.most_tokens:,} tokens")  # fmt: skip
    print(f"on {here['device']} ({here['device_reason']}), {here['threads']} threads, memory {_memory()}; into {folder}, where "
          f"{shutil.disk_usage(folder).free / 1e9:.0f} GB are free")  # fmt: skip
    about, rate = estimates(profile), _rate()
    weights, training, work = (about[name] / 1e9 for name in ("weights", "training", "operations"))
    print(f"weights of the largest: about {weights:.2g} GB; joint training: {training:.2g} GB, and what is computed with them")
    print(f"all of it: {work / 1e3:,.0f} TFLOP in the backbones alone, at least {work * 1e9 / rate / 60:,.0f} minutes at the "
          f"{rate / 1e12:.2g} TFLOP/s of a matrix product here; heads and small passes take several times that")  # fmt: skip


def _memory() -> str:
    """Of the device that the run would use."""
    if torch.cuda.is_available():
        return " of ".join(f"{x / 1e9:.0f}" for x in torch.cuda.mem_get_info()) + " GB free"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
