"""What drafts are worth, measured: how many are accepted, and how long decoding takes beside transformers' own ways."""

import copy
import functools
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from . import ranks
from .backbones import Backbone
from .blocks import end_of
from .decoding import draft_and_verify, speed_up
from .drafters import HeadDrafter, LookupDrafter, MarginalDrafter
from .records import Arrays
from .runtime import progress
from .training import heads_from

ROWS = 100  # prompts decoded side by side where no time is taken
DEPTH = 3  # tokens drafted after the certain one, where a drafter may draft any number
PATH = {2: {"top_k": 64}, 3: {"top_k": 8}, 4: {"top_k": 4}}  # what the marginal's most likely token is sought among
REPEATS = 3


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
    """Every pass of draft and verify over the prompts, as `Decoded.passes`, with backbone, corpus and document; several rows
    decoded side by side, which changes no draft. Text ends where the document would."""
    documents, prompts = prompts_of(blocks, n_prompts)
    drafter, end, found = drafting.on(backbone), end_of(backbone.tokenizer), []
    mine = range(len(prompts))[ranks.share(len(prompts))]
    for start in progress(range(mine.start, mine.stop, ROWS), f"{drafting.kind} {backbone.name} {blocks.corpus}"):
        rows = prompts[start : min(start + ROWS, mine.stop)]
        options = {"eos_token_id": end, "seed": start}
        passes = draft_and_verify(backbone.model, drafter, rows, new_tokens, drafting.widths, temperature, **options).passes
        found.append(passes.assign(document=[documents[start + i] for i in passes["row"]], row=passes["row"] + start))
    whole = pd.concat([part for share in ranks.gather(found) for part in share], ignore_index=True)
    return whole.assign(backbone=backbone.name, corpus=blocks.corpus)


def decoding_seconds(
    backbone: Backbone, blocks, draftings: dict[str, Drafting], assistant: Backbone | None, n_prompts: int, new_tokens: int
) -> dict[str, np.ndarray]:
    """Seconds of decoding each prompt greedily, alone: `<way>.seconds` (prompts,), the least of REPEATS, all ways in turn at each
    prompt; `.passes` of the base model, the prompt's among them; `.same`, whether the tokens are those of `generate greedy`.

    Ways: `greedy` (draft_and_verify without a drafter, with a KV cache), `draftings`, and transformers' generate, as `generate
    greedy`, `generate lookup` and, where there is a smaller `assistant`, `generate assistant`. Of ours also what the seconds
    went into: `.prompt`, `.draft`, `.verify`. Text goes on behind the end of a document, so that all decode as many tokens.
    """
    _, prompts = prompts_of(blocks, n_prompts)
    ways = {"greedy": _ours(backbone, None, new_tokens)}
    ways |= {name: _ours(backbone, drafting, new_tokens) for name, drafting in draftings.items()}
    ways |= _generates(backbone, assistant, new_tokens)
    found = {}
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
        ids, pad = prompt[None], end_of(backbone.tokenizer)
        out = backbone.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad, **given
        )
        tokens = out[0, len(prompt) :].cpu()
        return {"seconds": time.perf_counter() - started, "tokens": tokens}

    return {f"generate {name}": functools.partial(way, given=given) for name, given in options.items()}


@contextmanager
def _endless(*backbones: Backbone | None):
    """Inside, generate does not stop at the end of text, and an assistant drafts DEPTH tokens each time, whatever came of it."""
    models = [b.model for b in backbones if b]
    before = [model.generation_config for model in models]
    try:
        for model in models:
            model.generation_config = copy.deepcopy(model.generation_config)
            fixed = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
            model.generation_config.update(eos_token_id=None, num_assistant_tokens=DEPTH, **fixed)
        yield
    finally:
        for model, config in zip(models, before, strict=True):
            model.generation_config = config


def _counted(model, way, prompt: torch.Tensor) -> int:
    """Forward passes of the base model in one decoding, the prompt's among them."""
    calls, module = [], model.base_model
    hook = module.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        way(prompt)
    finally:
        hook.remove()
    return len(calls)


def speed_table(seconds: Arrays, backbone: str, corpus: str, new_tokens: int) -> pd.DataFrame:
    """One row a way and prompt: tokens a pass, speed as a ratio to `greedy` and to `generate greedy` (with a KV cache, same
    prompt), what `decoding.speed_up` says it should be, same (as `generate greedy`)."""
    values, rows = seconds.values, []
    ways = [name.removesuffix(".seconds") for name in values if name.endswith(".seconds")]
    plain = values["greedy.verify"] / (values["greedy.passes"] - 1)  # seconds of a plain pass
    for way in ways:
        steps = values[f"{way}.passes"] - 1  # the first one is the prompt's
        per_pass = (new_tokens - 1) / steps
        expected = np.full(len(steps), np.nan)
        if f"{way}.verify" in values:
            expected = speed_up(per_pass, values[f"{way}.verify"] / steps, values[f"{way}.draft"] / steps, plain)
        columns = {f"{kind.replace(' ', '_')}_ratio": values[f"{kind}.seconds"] for kind in ("greedy", "generate greedy")}
        rows.append(
            pd.DataFrame({name: base / values[f"{way}.seconds"] for name, base in columns.items()}).assign(
                way=way, prompt=range(len(steps)), tokens_a_pass=per_pass, expected=expected, same=values[f"{way}.same"]
            )
        )
    return pd.concat(rows, ignore_index=True).assign(backbone=backbone, corpus=corpus)
