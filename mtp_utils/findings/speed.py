"""What drafts are worth, measured: which are accepted, and how long decoding takes beside transformers' own ways."""

import functools
import math
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig

from ..backbones import sharded
from ..backbones.anatomy import position_limit, rows_of, unembeds
from ..backbones.edges import ends_of
from ..backbones.load import Backbone
from ..backbones.wrapped import decoder
from ..base import ranks
from ..base.refusals import first_line, lacks_memory
from ..base.runtime import progress, seed_for
from ..decoding.checks import check_attention
from ..decoding.decode import draft_and_verify
from ..decoding.drafters import HeadDrafter, LookupDrafter, MarginalDrafter, MaskDrafter
from ..heads.training import heads_from

ROWS, BYTES = 100, 2**32  # prompts decoded side by side where no time is taken, and what their cache may hold
DEPTH = 3  # tokens drafted after the certain one, where a drafter may draft any number
PATH = {k: {"top_k": n, "samples": 64} for k, n in ((2, 64), (3, 8), (4, 4))}  # how the marginal is found where it drafts
REPEATS = 3


@dataclass(frozen=True)
class Drafting:
    """Which drafter: `lookup`, `marginal`, `masks` or `heads`, whose arrays and specs are given; widths of its tree (None: a
    chain)."""

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
        if self.kind == "lookup":
            return LookupDrafter(DEPTH)
        if self.kind == "masks":
            return MaskDrafter(backbone.model, DEPTH)
        vocab = rows_of(backbone.model.get_output_embeddings())
        return MarginalDrafter(backbone.model, {k: given | {"top_k": min(given["top_k"], vocab)} for k, given in PATH.items()})


def prompts_of(blocks, n: int | None = None, room: float = math.inf) -> tuple[list[str], list[torch.Tensor]]:
    """(documents, prompts): each document up to its first scored position, where the marginal is measured too; of longer ones
    than `room` the last tokens."""
    first = [int(row.nonzero()[0, 0]) for row in blocks.scored[:n]]
    ends = zip(blocks.tokens, first, strict=False)
    return list(blocks.documents[:n]), [tokens[t + 1 - int(min(room, t + 1)) : t + 1] for tokens, t in ends]


def _fitting(backbone: Backbone, blocks, n_prompts: int, new_tokens: int) -> tuple[list[str], list[torch.Tensor]]:
    """`prompts_of`, behind which the model has positions for the new tokens. CannotDo where it does not serve drafts there: in
    every process, also in those that have nothing to do."""
    room = position_limit(backbone.model.config) - new_tokens
    documents, prompts = prompts_of(blocks, n_prompts, room)
    if any(len(prompt) == room for prompt in prompts):
        warnings.warn(f"{backbone.name} reads {room + new_tokens} tokens: prompts have at most {room}", stacklevel=3)
    check_attention(backbone.model, max(map(len, prompts)) + new_tokens)
    return documents, prompts


def acceptance_table(
    backbone: Backbone, blocks, drafting: Drafting, n_prompts: int, new_tokens: int, temperature: float = 0.0
) -> pd.DataFrame:
    """Every pass of draft and verify over the prompts, as `Decoded.passes`, with backbone, corpus and document. Text ends where
    the model ends it (edges.ends_of); tokens are drawn by numbers seeded per document."""
    drafter, found = drafting.on(backbone), []
    for rows, prompts, options in batches(backbone, blocks, n_prompts, new_tokens, drafting.kind):
        passes = draft_and_verify(backbone.model, drafter, prompts, new_tokens, drafting.widths, temperature, **options).passes
        found.append(passes.assign(document=[rows[i][1] for i in passes["row"]], row=passes["row"] + rows[0][0]))
    whole = pd.concat([part for share in ranks.gather(found) for part in share], ignore_index=True)
    return whole.assign(backbone=backbone.name, corpus=blocks.corpus)


def batches(backbone: Backbone, blocks, n_prompts: int, new_tokens: int, what: str):
    """This process's prompts, as many at a time as their cache may be large: [(number, document)], prompts, and what decoding is
    told of them: where text ends, and a seed of each document."""
    documents, prompts = _fitting(backbone, blocks, n_prompts, new_tokens)
    config = backbone.model.config.get_text_config()
    per_row = 2 * config.num_hidden_layers * config.hidden_size * (max(map(len, prompts)) + new_tokens) * 4
    size = max(1, min(ROWS, BYTES // per_row))
    mine = range(len(prompts))[ranks.share(len(prompts))]
    for start in progress(range(mine.start, mine.stop, size), f"{what} {backbone.name} {blocks.corpus}"):
        rows = range(start, min(start + size, mine.stop))
        options = {"eos_token_id": ends_of(backbone), "seed": [seed_for(f"decoding/{documents[i]}") for i in rows]}
        yield [(i, documents[i]) for i in rows], [prompts[i] for i in rows], options


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
    greedy`, `generate lookup` and, where there is a smaller `assistant`, `generate assistant`, those that it does not refuse
    (`refused`). Of ours also what the seconds went into: `.prompt`, `.draft`, `.verify`. Text goes on behind the end of a
    document, so that all decode as many tokens. on: the machine, in words, whose seconds they are. Of several processes the
    first one does it while the others wait.
    """
    _, prompts = _fitting(backbone, blocks, n_prompts, new_tokens)
    alone = ranks.first()
    return ranks.first_says(_seconds(backbone, blocks.corpus, draftings, assistant, prompts, new_tokens) if alone else None)


def _seconds(backbone, corpus: str, draftings, assistant, prompts: list, new_tokens: int) -> dict[str, np.ndarray]:
    ways = {"greedy": _ours(backbone, None, new_tokens)}
    ways |= {name: _ours(backbone, drafting, new_tokens) for name, drafting in draftings.items()}
    left_out, found = refused(backbone, assistant), {}
    ways |= {name: way for name, way in _generates(backbone, assistant, new_tokens).items() if name not in left_out}
    unembeds(backbone.model)  # a look that is taken once
    with _endless(backbone, assistant):
        for prompt in progress([p.to(backbone.model.device) for p in prompts], f"decoding {backbone.name} {corpus}"):
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


def refused(backbone: Backbone, assistant: Backbone | None) -> dict[str, str]:
    """transformers' own ways of greedy decoding that it refuses here, as it does where a cache cannot be rolled back, with its
    reason: each is tried on a few tokens."""
    found, prompt = {}, torch.zeros(4, dtype=torch.int64, device=backbone.model.device)
    with _endless(backbone, assistant):
        for name, way in _generates(backbone, assistant, DEPTH + 2).items():
            try:
                way(prompt)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                if not lacks_memory(error):
                    found[name] = first_line(error)
    return found


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
