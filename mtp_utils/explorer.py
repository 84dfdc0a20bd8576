"""A page to look at: a text, and for each token what NTP, the marginal and heads said of it some tokens before.

One self-contained HTML file that asks the network for nothing; the page itself is explorer.html.
"""

import html
import json
from pathlib import Path

import pandas as pd
import torch

from .backbones import Backbone
from .blocks import end_of, texts_of
from .heads import Heads
from .marginal import future_log_probs
from .rows import require
from .training import heads_from

TOP = 5  # candidates shown
ASKED = {2: {"top_k": 64}, 3: {"top_k": 16}, 4: {"top_k": 6}}  # enumerated, so that there are bounds
LONGEST = 256  # tokens of a text of the user's
SHOWN = 128  # of a document of ours


def said_table(backbone: Backbone, ids: list[int], heads: tuple[Heads, ...] = ()) -> pd.DataFrame:
    """What was said of each token of a text, one row a candidate: at (the token), offset, predictor (`ntp`, `marginal`, `heads`),
    rank, candidate (id), probability (of the marginal its lower bound); captured_mass and certified (nan, 0 but for the
    marginal).

    ids: of a text, the first of them the end of the one before; token t is spoken of from t - offset.
    """
    model, tokens = backbone.model, torch.tensor([ids])
    found, frames = {("ntp", 1): future_log_probs(model, tokens, 1, exact=True)}, []
    found |= {("marginal", k): future_log_probs(model, tokens, k, **given) for k, given in ASKED.items() if k < len(ids)}
    said = {name: (f.log_probs[0], f.captured_mass[0], f.certified[0]) for name, f in found.items()}
    with torch.no_grad():
        out = model(tokens.to(model.device), output_hidden_states=True, use_cache=False).hidden_states if heads else ()
        for one in heads:
            states = torch.stack([out[layer] for layer in one.layers], 2)
            for k, hidden in one(states.to(torch.promote_types(model.dtype, torch.float32))).items():
                nothing = torch.full((len(ids),), torch.nan)
                said["heads", k] = one.log_probs(k, hidden)[0], nothing, torch.zeros(len(ids))
    for (predictor, k), (log_probs, mass, certified) in said.items():
        top = log_probs[:-k].exp().topk(TOP)
        for rank in range(TOP):
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
    """The table with `token` (id of the one spoken of), and the text of both as JSON, whose quotes keep every character."""
    token = [ids[at] for at in table["at"]]
    known = sorted({*token, *table["candidate"].tolist()})
    text = {i: json.dumps(t) for i, t in zip(known, texts_of(known, tokenizer), strict=True)}
    texts = {"token_text": [text[i] for i in token], "candidate_text": [text[i] for i in table["candidate"]]}
    return table.assign(token=token, **texts)


def text_of(table: pd.DataFrame, corpus: str, backbone: str) -> dict:
    """One text as the page wants it: ids of its tokens (from the first that anything was said of), and what was said of them:
    at, offset, predictor, candidates, their probabilities, captured mass and certified (null but for the marginal)."""
    spoken, said = table.drop_duplicates("at").sort_values("at"), []
    first = int(spoken["at"].iloc[0])
    for (at, offset, predictor), part in table.sort_values("rank").groupby(["at", "offset", "predictor"], sort=False):
        bounds = [round(float(part["captured_mass"].iloc[0]), 5), bool(part["certified"].iloc[0])]
        bounds = bounds if predictor == "marginal" else [None, None]
        p = part["probability"].round(5).tolist()
        said.append([int(at) - first, int(offset), predictor, part["candidate"].tolist(), p, *bounds])
    names = {str(i): json.loads(t) for i, t in zip(table["candidate"], table["candidate_text"], strict=True)}
    names |= {str(i): json.loads(t) for i, t in zip(spoken["token"], spoken["token_text"], strict=True)}
    return {"corpus": corpus, "backbone": backbone, "ids": spoken["token"].tolist(), "names": names, "said": said}


def page(texts: list[dict], note: str = "") -> str:
    """The whole page, with a note under its title. What texts say is data, and cannot end the element it lies in."""
    offsets = sorted({offset for text in texts for _, offset, predictor, *_ in text["said"] if predictor != "ntp"})
    data = json.dumps({"texts": texts, "offsets": offsets, "note": note}, ensure_ascii=True, separators=(",", ":"))
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Path(__file__).with_name("explorer.html").read_text("utf-8").replace("DATA", data, 1)


def frame(content: str, height: int = 560):
    """The page inside a notebook's output, where it can touch nothing else."""
    from IPython.display import HTML

    escaped = html.escape(content, quote=True)
    options = f'sandbox="allow-scripts" width="100%" height="{height}" title="explorer"'
    return HTML(f'<div><iframe {options} srcdoc="{escaped}"></iframe></div>')


def explore(backbone: Backbone, text: str, heads: tuple[Heads, ...] = ()):
    """The page for any text, shown in a notebook; of its first LONGEST tokens. `explore_page` gives it as HTML to be kept.

    heads: on this backbone, of different offsets. Raises ValueError for a text of fewer than two tokens, or other heads.
    """
    return frame(explore_page(backbone, text, heads))


def explore_page(backbone: Backbone, text: str, heads: tuple[Heads, ...] = ()) -> str:
    """As `explore`: the page itself, a whole HTML file."""
    heads = (heads,) if isinstance(heads, Heads) else tuple(heads)
    offsets = [k for one in heads for k in one.spec.offsets]
    require(len(offsets) == len(set(offsets)), f"heads of offsets {offsets}: an offset has one head")
    require(all(one.model is backbone.model for one in heads), f"heads not on {backbone.name}: load_heads(folder, backbone)")
    whole = [end_of(backbone.tokenizer), *backbone.tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids = whole[:LONGEST]
    require(len(ids) > 2, f"text: {len(ids) - 1} tokens; at least two are needed for the token after next to be there")
    table = with_text(said_table(backbone, ids, heads), ids, backbone.tokenizer)
    cut = f"The first {len(ids) - 1} of {len(whole) - 1} tokens." if len(whole) > len(ids) else ""
    return page([text_of(table, "text", backbone.name)], cut)
