"""What drafts are worth, measured: which are accepted, and how long decoding takes beside transformers' own ways."""

import functools
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig

from ..backbones import sharded
from ..backbones.anatomy import unembeds
from ..backbones.load import Backbone
from ..backbones.wrapped import decoder
from ..base import ranks
from ..base.runtime import progress, seed_for
from ..decoding.decode import draft_and_verify
from ..decoding.drafters import HeadDrafter, LookupDrafter, MarginalDrafter
from ..decoding.verify import check_attention
from ..heads.training import heads_from
from ..text.tokens import end_of

ROWS, BYTES = 100, 2**32  # prompts decoded side by side where no time is taken, and what their cache may hold
DEPTH = 3  # tokens drafted after the certain one, where a drafter may draft any number
PATH = {k: {"top_k": n, "samples": 64} for k, n in ((2, 64), (3, 8), (4, 4))}  # how the marginal is found where it drafts
REPEATS = 2


@dataclass(frozen=True)
class Drafting:
    """Which drafter: `lookup`, `marginal` or `heads`, whose arrays and specs are given; widths of its tree (None: a chain)."""

    kind: str
    arms: tuple = ()
    widths: tuple[int, ...] | None = None

    @property
    def fingerprint(self) -> str:
        arrays = [(arm.arrays.fingerprint, repr(arm.spec)) for arm in self.arms]
        return repr((self.kind, arrays, self.widths, PATH if self.kind == "marginal" else DEPTH))

    def on(self, backbone: Backbone):
        """The drafter on this backbone."""
        if self.kind == "heads":
            return HeadDrafter(*(heads_from(arm.arrays, backbone, arm.spec) for arm in self.arms))
        return LookupDrafter(DEPTH) if self.kind == "lookup" else MarginalDrafter(backbone.model, PATH)


def prompts_of(blocks, n: int | None = None) -> tuple[list[str], list[torch.Tensor]]:
    """(documents, prompts): each document up to its first scored position, where the marginal is measured too."""
    first = [int(row.nonzero()[0, 0]) for row in blocks.scored[:n]]
    return list(blocks.documents[:n]), [tokens[: t + 1] for tokens, t in zip(blocks.tokens, first, strict=False)]


def acceptance_table(
    backbone: Backbone, blocks, drafting: Drafting, n_prompts: int, new_tokens: int, temperature: float = 0.0
) -> pd.DataFrame:
    """Every pass of draft and verify over the prompts, as `Decoded.passes`, with backbone, corpus and document. Text ends where
    the document would; tokens are drawn by numbers seeded per document."""
    documents, prompts = prompts_of(blocks, n_prompts)
    config = backbone.model.config.get_text_config()
    per_row = 2 * config.num_hidden_layers * config.hidden_size * (max(map(len, prompts)) + new_tokens) * 4
    size, drafter, found = max(1, min(ROWS, BYTES // per_row)), drafting.on(backbone), []
    mine = range(len(prompts))[ranks.share(len(prompts))]
    for start in progress(range(mine.start, mine.stop, size), f"{drafting.kind} {backbone.name} {blocks.corpus}"):
        rows = range(start, min(start + size, mine.stop))
        options = {"eos_token_id": end_of(backbone.tokenizer), "seed": [seed_for(f"decoding/{documents[i]}") for i in rows]}
        given = [prompts[i] for i in rows]
        passes = draft_and_verify(backbone.model, drafter, given, new_tokens, drafting.widths, temperature, **options).passes
        found.append(passes.assign(document=[documents[start + i] for i in passes["row"]], row=passes["row"] + start))
    whole = pd.concat([part for share in ranks.gather(found) for part in share], ignore_index=True)
    return whole.assign(backbone=backbone.name, corpus=blocks.corpus)


def decoding_seconds(
    backbone: Backbone,
    blocks,
    draftings: dict[str, Drafting],
    assistant: Backbone | None,
    n_prompts: int,
    new_tokens: int,
    on: str,
) -> dict[str, np.ndarray]:
    """Seconds of decoding each prompt greedily, alone: `<way>.seconds` (prompts,), the least of REPEATS, all ways in turn at each
    prompt; `.passes` of the base model, the prompt's among them; `.same`, whether the tokens are those of `generate greedy`.

    Ways: `greedy` (draft_and_verify without a drafter, with a KV cache), `draftings`, and transformers' generate, as `generate
    greedy`, `generate lookup` and, where there is a smaller `assistant`, `generate assistant`. Of ours also what the seconds
    went into: `.prompt`, `.draft`, `.verify`. Text goes on behind the end of a document, so that all decode as many tokens. on:
    the machine, in words, whose seconds they are. Of several processes the first one does it while the others wait.
    """
    alone = ranks.first()
    return ranks.first_says(_seconds(backbone, blocks, draftings, assistant, n_prompts, new_tokens) if alone else None)


def _seconds(backbone, blocks, draftings, assistant, n_prompts: int, new_tokens: int) -> dict[str, np.ndarray]:
    _, prompts = prompts_of(blocks, n_prompts)
    ways = {"greedy": _ours(backbone, None, new_tokens)}
    ways |= {name: _ours(backbone, drafting, new_tokens) for name, drafting in draftings.items()}
    ways |= _generates(backbone, assistant, new_tokens)
    found = {}
    unembeds(backbone.model), check_attention(backbone.model, max(map(len, prompts)) + new_tokens)  # looks that are taken once
    with _endless(backbone, assistant):
        for prompt in progress([p.to(backbone.model.device) for p in prompts], f"decoding {backbone.name} {blocks.corpus}"):
            passes, least = {name: _counted(backbone.model, way, prompt) for name, way in ways.items()}, {}
            for _ in range(REPEATS):
                for name, way in ways.items():
                    one = way(prompt)
                    least[name] = min(least.get(name, one), one, key=lambda x: x["seconds"])
            reference = least["generate greedy"]["tokens"]
            for name, one in least.items():
                one |= {"same": float(torch.equal(one["tokens"], reference)), "passes": float(passes[name])}
                for part in one.keys() - {"tokens"}:
                    found.setdefault(f"{name}.{part}", []).append(one[part])
    return {name: np.array(values) for name, values in found.items()}


def _ours(backbone: Backbone, drafting: Drafting | None, new_tokens: int):
    """prompt -> seconds, tokens, and the parts of the seconds."""
    drafter, widths = (drafting.on(backbone), drafting.widths) if drafting else (None, None)

    def way(prompt: torch.Tensor) -> dict:
        started = time.perf_counter()
        done = draft_and_verify(backbone.model, drafter, prompt, new_tokens, widths)
        return {"seconds": time.perf_counter() - started, "tokens": done.tokens[0], **done.seconds}

    return way


def _generates(backbone: Backbone, assistant: Backbone | None, new_tokens: int) -> dict:
    """transformers' own ways of greedy decoding, by name."""
    options = {"greedy": {}, "lookup": {"prompt_lookup_num_tokens": DEPTH}}
    options |= {"assistant": {"assistant_model": assistant.model}} if assistant else {}

    def way(prompt: torch.Tensor, given: dict) -> dict:
        started = time.perf_counter()
        ids = prompt[None]
        out = backbone.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, **given)
        tokens = out[0, len(prompt) :].cpu()
        return {"seconds": time.perf_counter() - started, "tokens": tokens}

    return {f"generate {name}": functools.partial(way, given=given) for name, given in options.items()}


@contextmanager
def _endless(*backbones: Backbone | None):
    """Inside, generate is plain greedy decoding, whatever the model's own settings, and does not stop at the end of text; an
    assistant drafts DEPTH tokens each time, whatever came of it."""
    models = [b.model for b in backbones if b]
    before = [model.generation_config for model in models]
    fixed = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
    try:
        for model in models:
            model.generation_config = GenerationConfig(do_sample=False, num_assistant_tokens=DEPTH, **fixed)
        yield
    finally:
        for model, config in zip(models, before, strict=True):
            model.generation_config = config


def _counted(model, way, prompt: torch.Tensor) -> int:
    """Forward passes of the base model in one decoding, the prompt's among them."""
    calls, module = [], next(iter(sharded.layers_of(model)), decoder(model))
    hook = module.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        way(prompt)
    finally:
        hook.remove()
    return len(calls)
