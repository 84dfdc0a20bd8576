"""A page to look at: a text, and for each token what NTP, the marginal and heads said of it some tokens before.

One self-contained HTML file that asks the network for nothing; the page itself is explorer.html. Made of tables it needs no
model.
"""

import html
import json
from pathlib import Path

import pandas as pd

from ..base.refusals import require

LONGEST = 256  # tokens of a text of the user's


def text_of(table: pd.DataFrame, corpus: str, backbone: str) -> dict:
    """One text as the page wants it: ids of its tokens (from the first that anything was said of), `cut` (token -> the
    characters it is a part of, which part, of how many) and what was said of them: at, offset, predictor, candidates, their
    probabilities, captured mass and certified (null but for the marginal)."""
    spoken, said = table.drop_duplicates("at").sort_values("at"), []
    first = int(spoken["at"].iloc[0])
    for (at, offset, predictor), part in table.sort_values("rank").groupby(["at", "offset", "predictor"], sort=False):
        bounds = [round(float(part["captured_mass"].iloc[0]), 5), bool(part["certified"].iloc[0])]
        bounds = bounds if predictor == "marginal" else [None, None]
        p = part["probability"].round(5).tolist()
        said.append([int(at) - first, int(offset), predictor, part["candidate"].tolist(), p, *bounds])
    names = {str(i): json.loads(t) for i, t in zip(table["candidate"], table["candidate_text"], strict=True)}
    names |= {str(i): json.loads(t) for i, t in zip(spoken["token"], spoken["token_text"], strict=True)}
    pieces = spoken[spoken["parts"] > 1]
    cut = {int(row.at) - first: [json.loads(row.whole_text), int(row.part), int(row.parts)] for row in pieces.itertuples()}
    return {"corpus": corpus, "backbone": backbone, "ids": spoken["token"].tolist(), "names": names, "cut": cut, "said": said}


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


def explore(backbone, text: str, heads: tuple = ()):
    """The page for any text, shown in a notebook; of its first LONGEST tokens. `explore_page` gives it as HTML to be kept.

    heads: on this backbone, of different offsets. Raises ValueError for a text of fewer than two tokens, or other heads.
    """
    return frame(explore_page(backbone, text, heads))


def explore_page(backbone, text: str, heads: tuple = ()) -> str:
    """As `explore`: the page itself, a whole HTML file."""
    from ..backbones.anatomy import position_limit
    from ..findings import said  # with it torch, which a page made of tables does without
    from ..heads.heads import Heads
    from ..text.tokens import encode, front_of

    heads = (heads,) if isinstance(heads, Heads) else tuple(heads)
    offsets = [k for one in heads for k in one.spec.offsets]
    require(len(offsets) == len(set(offsets)), f"heads of offsets {offsets}: an offset has one head")
    require(all(one.model is backbone.model for one in heads), f"heads not on {backbone.name}: load_heads(folder, backbone)")
    front = front_of(backbone.tokenizer)
    whole = [*front, *encode(backbone.tokenizer, [text])[0]]
    ids = whole[: min(LONGEST, position_limit(backbone.model.config))]
    n, least = len(front), "two" if front else "three"
    require(len(ids) > 2, f"text: {len(ids) - n} tokens; at least {least} are needed for the token after next to be there")
    table = said.with_text(said.said_table(backbone, ids, heads), ids, backbone.tokenizer)
    cut = f"The first {len(ids) - n} of {len(whole) - n} tokens." if len(whole) > len(ids) else ""
    return page([text_of(table, "text", backbone.name)], cut)
