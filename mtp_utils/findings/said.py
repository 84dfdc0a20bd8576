"""What NTP, the marginal and heads said of each token of a text some tokens before: the tables of the explorer."""

import json

import pandas as pd
import torch

from ..backbones.anatomy import position_limit
from ..backbones.load import Backbone
from ..heads.heads import Heads
from ..heads.training import heads_from
from ..marginal.future import future_log_probs
from ..text.tokens import characters_of, texts_of
from . import stored

TOP = 5  # candidates shown
ASKED = {2: {"top_k": 64}, 3: {"top_k": 16}, 4: {"top_k": 6}}  # enumerated, so that there are bounds
SHOWN = 128  # tokens of a document


def said_table(backbone: Backbone, ids: list[int], heads: tuple[Heads, ...] = ()) -> pd.DataFrame:
    """What was said of each token of a text, one row a candidate: at (the token), offset, predictor (`ntp`, `marginal`, `heads`),
    rank, candidate (id), probability (of the marginal its lower bound); captured_mass and certified (nan, 0 but for the
    marginal).

    ids: of a text, the first of them the end of the one before; token t is spoken of from t - offset.
    """
    model, tokens = backbone.model, torch.tensor([ids])
    found, frames = {("ntp", 1): future_log_probs(model, tokens, 1, exact=True)}, []
    vocab, at, limit = found["ntp", 1].log_probs.shape[-1], torch.arange(len(ids))[None], position_limit(model.config)
    for k, given in ((k, given) for k, given in ASKED.items() if k < len(ids)):
        asked = {"top_k": min(given["top_k"], vocab), "positions": at + k <= limit}  # a text may fill the model's context
        found["marginal", k] = future_log_probs(model, tokens, k, **asked)
    said = {name: (f.log_probs[0], f.captured_mass[0], f.certified[0]) for name, f in found.items()}
    with torch.no_grad():
        out = model(tokens.to(model.device), output_hidden_states=True, use_cache=False).hidden_states if heads else ()
        for one in heads:
            states = torch.stack([out[layer] for layer in one.layers], 2)
            for k, hidden in one(states.to(torch.promote_types(model.dtype, torch.float32))).items():
                nothing = torch.full((len(ids),), torch.nan)
                said["heads", k] = one.log_probs(k, hidden)[0], nothing, torch.zeros(len(ids))
    for (predictor, k), (log_probs, mass, certified) in said.items():
        top = log_probs[:-k].exp().topk(min(TOP, vocab))
        for rank in range(top.values.shape[-1]):
            frames.append(
                pd.DataFrame(
                    {
                        "at": range(k, len(ids)),
                        "offset": k,
                        "predictor": predictor,
                        "rank": rank,
                        "candidate": top.indices[:, rank].cpu().numpy(),
                        "probability": top.values[:, rank].double().cpu().numpy(),
                        "captured_mass": mass[:-k].double().cpu().numpy(),
                        "certified": certified[:-k].double().cpu().numpy(),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def explored_table(backbone: Backbone, blocks, row: int, arms: tuple = ()) -> pd.DataFrame:
    """`said_table` of one evaluation document with its tokens as text, and backbone, corpus, document. arms: of heads."""
    ids = blocks.tokens[row][blocks.mask[row]].tolist()[:SHOWN]
    heads = tuple(heads_from(arm.arrays, backbone, arm.spec) for arm in arms)
    names = {"backbone": backbone.name, "corpus": blocks.corpus, "document": blocks.documents[row]}
    return with_text(said_table(backbone, ids, heads), ids, backbone.tokenizer).assign(**names)


def with_text(table: pd.DataFrame, ids: list[int], tokenizer) -> pd.DataFrame:
    """The table with `token` (id of the one spoken of), the text of both as JSON, whose quotes keep every character, and the
    characters that the one spoken of stands in: `whole_text`, of which it is the part number `part` of `parts`
    (text.tokens.characters_of)."""
    token, where = [ids[at] for at in table["at"]], characters_of(ids, tokenizer)
    known = sorted({*token, *table["candidate"].tolist()})
    text = {i: json.dumps(t) for i, t in zip(known, texts_of(known, tokenizer), strict=True)}
    texts = {"token_text": [text[i] for i in token], "candidate_text": [text[i] for i in table["candidate"]]}
    whole, part, parts = zip(*(where[at] for at in table["at"]), strict=True)
    return table.assign(token=token, **texts, whole_text=[json.dumps(t) for t in whole], part=part, parts=parts)


def arg_max_table(backbone: Backbone, ids: torch.Tensor, positions: range, horizon: int) -> pd.DataFrame:
    """The most likely token of the marginal at every offset up to the horizon, at those positions of one text (1, T) whose
    token at that offset is there: offset, position, after (the token just read), token, prob, right."""
    decode, rows = backbone.tokenizer.decode, []
    for k in range(1, horizon + 1):
        wanted = torch.zeros_like(ids, dtype=torch.bool)
        wanted[0, positions.start : min(positions.stop, ids.shape[1] - k)] = True
        found = future_log_probs(backbone.model, ids, k, positions=wanted, **stored.estimators_of(backbone)[k])
        for t, log_probs in zip(wanted[0].nonzero()[:, 0].tolist(), found.rows, strict=True):
            prob, token = log_probs.max(-1)
            right = int(token) == int(ids[0, t + k])
            rows.append((k, t, decode(int(ids[0, t])), decode(int(token)), float(prob.exp()), right))
    return pd.DataFrame(rows, columns=["offset", "position", "after", "token", "prob", "right"])
