"""Where a text begins and ends for a model: what stands before it, chosen by measurement, and the tokens that end decoding."""

import contextlib
import json
import math

import torch

from ..base import paths, ranks
from ..base.files import read_json, sha256, write_json
from ..base.profiles import own_of
from ..text import blocks, corpora
from ..text.tokens import digest_of, encode, fronts_of
from .anatomy import position_limit

PIECES, LENGTH = 12, 64  # of the text that first tokens are measured on: how many, and tokens of each


def front_for(model, fingerprint: str, tokenizer) -> tuple[int, ...]:
    """What is to stand before every document that this model reads: the run's choice, made for all its backbones in the look
    before work, else the one this model says least loss behind, measured once and kept in the cache."""
    digest = digest_of(tokenizer)
    if digest in own_of()["fronts"]:
        return tuple(own_of()["fronts"][digest])
    key = sha256(json.dumps([fingerprint, digest, blocks.text_key(), PIECES, LENGTH]).encode())
    path = paths.cache() / f"front-{key[:16]}.json"
    found = read_json(path).get("front")
    if found is None:
        found = best([front_losses(model, tokenizer)])
        if ranks.first():
            with contextlib.suppress(OSError):  # nowhere to keep it: it is measured again
                write_json(path, {"front": list(found)})
    return tuple(found)


def best(losses: list[dict[tuple[int, ...], float]]) -> tuple[int, ...]:
    """The candidate of least loss, summed over models; of several alike the likelier one."""
    return min(losses[0], key=lambda front: sum(one[front] if one[front] < math.inf else math.inf for one in losses))


@torch.no_grad()
def front_losses(model, tokenizer) -> dict[tuple[int, ...], float]:
    """Each candidate of `fronts_of` -> mean next-token loss [nats] behind it, on the first LENGTH tokens of about PIECES
    validation documents of the run's text. Scored are the same labels behind each, from a document's second token on: the first
    is not predicted where nothing stands before it. Infinite where that is no number, 0 where there is nothing to score."""
    rows, found = model.get_input_embeddings().num_embeddings, {}
    length = int(min(LENGTH, position_limit(model.config) - 2))
    texts = [ids[:length] for ids in _pieces(tokenizer)]
    texts = [ids for ids in texts if max(ids) < rows]
    for front in (front for front in fronts_of(tokenizer) if all(i < rows for i in front)):
        losses = [_loss(model, front, ids) for ids in texts]
        mean = float(torch.cat(losses).mean()) if losses else 0.0
        found[front] = mean if math.isfinite(mean) else math.inf
    return found


def _loss(model, front: tuple[int, ...], ids: list[int]) -> torch.Tensor:
    """Next-token loss of every token of a text but its first, (n - 1,), nats."""
    row = torch.tensor([[*front, *ids]], device=model.device)
    logits = model(input_ids=row, use_cache=False).logits[0, len(front) : -1].float()
    return torch.nn.functional.cross_entropy(logits, row[0, len(front) + 1 :].to(logits.device), reduction="none").cpu()


def _pieces(tokenizer) -> list[list[int]]:
    """Ids of about PIECES validation documents of the run's text, as many of each corpus, from all over it."""
    names, found = corpora.names(), []
    for corpus in names:
        texts = [d.text for d in corpora.documents(corpus, "validation") or corpora.documents(corpus, "heads")]
        some = encode(tokenizer, texts[:: max(1, len(texts) // (2 * PIECES))])
        found += [ids for ids in sorted(some, key=len, reverse=True) if len(ids) > 1][: -(-PIECES // len(names))]
    return found


def named(tokenizer, losses: list[dict[tuple[int, ...], float]]) -> str:
    """The best candidate and the losses of all, in words: `<s> (1.25 nats/token; </s> 1.56, nothing 1.31)`."""
    mean = {front: sum(one[front] for one in losses) / len(losses) for front in losses[0]}
    words = {front: " ".join(map(str, tokenizer.convert_ids_to_tokens(list(front)))) or "nothing" for front in mean}
    first = best(losses)
    others = ", ".join(f"{words[front]} {mean[front]:.2f}" for front in sorted(mean, key=mean.get) if front != first)
    return f"{words[first]} ({mean[first]:.2f} nats/token{'; ' if others else ''}{others})"


def ends_of(backbone) -> tuple[int, ...]:
    """The tokens that end what the model writes: those of its generation settings, else of its configuration, else its
    tokenizer's; none where there are none."""
    model = backbone.model
    settings = (getattr(model, "generation_config", None), model.config.get_text_config(), model.config, backbone.tokenizer)
    ends = next((e for e in (getattr(s, "eos_token_id", None) for s in settings) if e is not None), ())
    return (ends,) if isinstance(ends, int) else tuple(ends)
