"""A page to look at: a text, and for each token what NTP, the marginal and heads said of it some tokens before.

One self-contained HTML file that asks the network for nothing; the page itself is explorer.html. Made of tables it needs no
model; it may hold one that answers in the page (explorer_typed.js), in JavaScript, in a worker of its own.
"""

import base64
import html
import json
import re
from pathlib import Path

import pandas as pd

from ..base import paths
from ..base.refusals import require
from ..text.tokens import END

LONGEST = 256  # tokens of a text of the user's
RUNG = "w64"  # of the ladder, that the published page runs: the next one's weights alone are 3.9 MB in base64
WORKER = ("tokens", "model", "marginal")  # explorer_*.js, in this order


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


def page(texts: list[dict], note: str = "", model: dict | None = None) -> str:
    """The whole page, with a note under its title. What texts say is data, and cannot end the element it lies in.

    model: of `model_of`, to be run on what the reader types.
    """
    offsets = sorted({offset for text in texts for _, offset, predictor, *_ in text["said"] if predictor != "ntp"})
    data = _as_data({"texts": texts, "offsets": offsets, "note": note})
    before, between, after = re.split(r"\bDATA\b|<!--MODEL-->\n", _source("explorer.html"))
    return before + data + between + (_running(model) if model else "") + after


def model_of(rung: str = RUNG) -> dict:
    """A rung of the ladder as explorer_marginal.js takes it: its configuration and tokenizer, what it was trained behind, and the
    file of its weights (fp16 safetensors) in base64; `about`: what the page says of it."""
    folder, tokenizer = paths.LADDER / rung, json.loads((paths.LADDER / "tokenizer" / "tokenizer.json").read_text("utf-8"))
    vocabulary, special = tokenizer["model"]["vocab"], [token["id"] for token in tokenizer["added_tokens"]]
    merges = [m.split(" ") if isinstance(m, str) else m for m in tokenizer["model"]["merges"]]
    card = json.loads((folder / "card.json").read_text("utf-8"))
    return {
        "about": {"name": f"ladder/{rung}", "n_params": card["n_params"], "tokens": card["tokens"]},
        "config": json.loads((folder / "config.json").read_text("utf-8")),
        "tokenizer": {"vocabulary": vocabulary, "merges": merges, "special": special},
        "front": [vocabulary[END]],
        "weights": base64.b64encode((folder / "model.safetensors").read_bytes()).decode("ascii"),
    }


def _running(model: dict) -> str:
    """The elements that hold the model, the worker that runs it, and the script that asks the worker."""
    worker = "\n".join(_source(f"explorer_{part}.js") for part in WORKER)
    blocks = [("about", "application/json", _as_data(model["about"])), ("model", "application/json", _as_data(model))]
    blocks.append(("worker", "text/plain", worker))
    inert = [f'<script type="{kind}" id="{name}">{content}</script>\n' for name, kind, content in blocks]
    return "".join([*inert, f"<script>\n{_source('explorer_typed.js')}</script>\n"])


def _as_data(value: dict) -> str:
    """JSON in which nothing is markup."""
    data = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


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
