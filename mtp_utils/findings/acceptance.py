"""What drafts could reach, as notebook 06 asks it before anything is served: drafters heard along the base model's own text, what
any tree of theirs would bring, and what drafts that are drawn would."""

import numpy as np
import pandas as pd
import torch

from ..backbones.load import Backbone
from ..base import ranks
from ..base.records import Arrays
from ..decoding import expected
from ..decoding.decode import draft_and_verify
from ..heads.features import FrozenFeatures
from ..heads.training import heads_from
from ..marginal.rows import undisturbed
from . import head_measures, metrics, scoring, speed, speed_tables, stored
from .scoring import Labels
from .speed import DEPTH, Drafting

WIDTH = 8  # candidates of each offset that are heard
NODES = (1, 2, 3, 6, 12, 24)  # drafted tokens of a tree
ITSELF = "the base model itself"
RANKS = [f"rank{k}" for k in range(2, DEPTH + 2)]


def heard_table(
    backbone: Backbone, blocks, drafting: Drafting | None, n_prompts: int, new_tokens: int, temperature: float = 0.0
) -> pd.DataFrame:
    """At every token of the base model's own text behind the prompts (speed.acceptance_table's), by which number the drafter has
    the tokens two and more further (decoding.offered; WIDTH: not at all): corpus, document, token, rank2, ...

    Of no drafter the base model's own ranks, each token before known: what an oracle that drafts like it would have."""
    found = []
    for rows, prompts, options in speed.batches(backbone, blocks, n_prompts, new_tokens, "hearing"):
        given = {"temperature": temperature, **options}
        if drafting is None:
            done = draft_and_verify(backbone.model, None, prompts, new_tokens, **given)
            texts = zip(prompts, done.tokens, strict=True)
            heard = [_own_ranks(backbone.model, *both, options["eos_token_id"]) for both in texts]
        else:
            _, heard = expected.offered(backbone.model, drafting.on(backbone), prompts, new_tokens, WIDTH, **given)
        for (_, document), of in zip(rows, heard, strict=True):
            of = torch.nn.functional.pad(of, (0, DEPTH - of.shape[1]), value=WIDTH)
            found.append(pd.DataFrame(of.numpy(), columns=RANKS).assign(document=document, token=range(len(of))))
    whole = pd.concat([part for share in ranks.gather(found) for part in share], ignore_index=True)
    return whole.assign(corpus=blocks.corpus)


def _own_ranks(model, prompt: torch.Tensor, new: torch.Tensor, ends) -> torch.Tensor:
    """(passes, DEPTH), as decoding.offered: by the model's own answer before each token."""
    ids = torch.cat([prompt, new.to(prompt.device)])[None].to(model.device)
    with undisturbed(model):
        logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    rank = (logits > logits.gather(1, ids[0, len(prompt) :, None])).sum(1).clamp(max=WIDTH).cpu()
    kept = [rank[i + 1 : i + 1 + DEPTH] for i, _ in expected.whole_passes(new, DEPTH, ends)]
    return torch.stack(kept) if kept else torch.empty(0, DEPTH, dtype=torch.int64)


def heard(
    run, backbone: Backbone, test: dict, name: str, drafting: Drafting | None, most: int | None = None, temperature: float = 0.0
) -> pd.DataFrame:
    """heard_table of all corpora under the drafter's name, on the prompts and tokens of drafts.passes_of."""
    n, frames = run.profile.decoded(most), []
    for corpus, blocks in test.items():
        stem = f"06_heard_{backbone.name.replace('/', '-')}_{corpus}_{name.replace(' ', '-')}_{temperature:g}"
        given = {"n_prompts": n, "new_tokens": run.profile.new_tokens, "temperature": temperature}
        frames.append(run.measure(stem, heard_table, backbone=backbone, blocks=blocks, drafting=drafting, **given))
    return pd.concat(frames, ignore_index=True).assign(drafter=name, temperature=temperature)


def against_decoding(heard: pd.DataFrame, passes: pd.DataFrame) -> pd.DataFrame:
    """A chain's acceptance by corpus, drafter, temperature and offset: `full`, drafts up to and with it all accepted, over all
    tokens heard; `conditional`, of those where the drafts before were; `decoded`, full in the passes that decoding took on the
    same prompts; `difference` of the two with its interval, from drawing documents."""
    rows, by = [], ["corpus", "drafter", "temperature"]
    whole = passes[~passes["cut"]].groupby(by, sort=False)  # what is not drafted is not accepted, on either side
    for keys, part in heard.groupby(by, sort=False):
        if keys not in whole.groups:
            continue
        hits, before = (part[RANKS].to_numpy() == 0).cumprod(1), 1.0
        decoded = whole.get_group(keys)
        for k, full in zip(range(2, DEPTH + 2), hits.T, strict=True):
            here = decoded[decoded.offset == k]
            sides = (full, part["document"]), (here["accepted"].to_numpy(float), here["document"])
            ours, theirs = (pd.Series(x).groupby(d.to_numpy()).agg(["sum", "size"]) for x, d in sides)
            joined = ours.merge(theirs, left_index=True, right_index=True)
            difference = _difference_of_ratios(*joined.to_numpy(float).T)
            value = {"full": full.mean(), "conditional": full.mean() / before if before else np.nan}
            value |= {"decoded": here["accepted"].mean() if len(here) else np.nan, **difference, "tokens": len(full)}
            rows.append(dict(zip(by, keys, strict=True)) | {"offset": k} | value)
            before = full.mean()
    return pd.DataFrame(rows)


def walked_against_decoding(heard: pd.DataFrame, passes: pd.DataFrame, trees: dict[str, tuple[str, tuple]]) -> pd.DataFrame:
    """Tokens a pass of greedy decoding, by corpus and drafter: `walked`, counted of what was heard, pass after pass; `decoded`;
    and their `difference` with its interval. trees: drafter of `passes` -> (drafter that was heard, widths)."""
    rows = []
    for name, (listened, widths) in trees.items():
        for corpus, part in heard[(heard.drafter == listened) & (heard.temperature == 0)].groupby("corpus", sort=False):
            decoded = passes[(passes.drafter == name) & (passes.corpus == corpus) & (passes.temperature == 0) & ~passes["cut"]]
            theirs = decoded.groupby(["document", "number"])["accepted"].sum().groupby("document").agg(["sum", "size"])
            of = {d: torch.tensor(x[RANKS].to_numpy()) for d, x in part.groupby("document") if d in theirs.index}
            ours = expected.simulated(list(of.values()), expected.tree(widths))
            counts = np.array([[x.sum(), len(x), *theirs.loc[d]] for d, x in zip(of, ours, strict=True)], float).reshape(-1, 4)
            x, n, y, m = counts.sum(0)
            value = {"walked": 1 + x / n, "decoded": 1 + y / m} | _difference_of_ratios(*counts.T)
            rows.append({"drafter": name, "corpus": corpus} | value)
    return pd.DataFrame(rows)


def _difference_of_ratios(x: np.ndarray, n: np.ndarray, y: np.ndarray, m: np.ndarray) -> dict[str, float]:
    """sum x / sum n - sum y / sum m of documents, with its 95 % interval from drawing documents."""
    draws = metrics.resamples(len(x)) if len(x) else np.zeros((1, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (draws @ x) / (draws @ n) - (draws @ y) / (draws @ m)
        low, high = np.nanquantile(spread, [0.025, 0.975]) if np.isfinite(spread).any() else (np.nan, np.nan)
        return {"difference": x.sum() / n.sum() - y.sum() / m.sum(), "ci_low": low, "ci_high": high}


def tokens_by_nodes(heard: pd.DataFrame) -> pd.DataFrame:
    """Tokens a pass that the best tree of so many nodes would bring in decoding, by corpus, drafter and temperature, with its
    interval over documents. Each half of the documents chooses the tree on which the other half is scored."""
    rows, by = [], ["corpus", "drafter", "temperature"]
    for keys, part in heard.groupby(by, sort=False):
        rows_of = {name: torch.tensor(of[RANKS].to_numpy()) for name, of in part.groupby("document", sort=True)}
        names = list(rows_of)
        for nodes in NODES:
            taken = {}
            for half in (0, 1):
                seen = torch.cat([rows_of[name] for name in names[half::2]] or [torch.empty(0, DEPTH)])
                tree, scored = expected.best_tree(seen, nodes, WIDTH), names[1 - half :: 2]
                taken |= dict(zip(scored, expected.simulated([rows_of[name] for name in scored], tree), strict=True))
            counts = np.array([[float(x.sum() + len(x)), len(x)] for x in taken.values()]).reshape(-1, 2)
            value, low, high = speed_tables.ratio_interval(*counts.T)
            found = {"nodes": nodes, "metric": "tokens a pass", "value": value, "ci_low": low, "ci_high": high}
            rows.append(dict(zip(by, keys, strict=True)) | found | {"n_documents": len(taken)})
    return pd.DataFrame(rows)


def break_even(by_nodes: pd.DataFrame, batches: tuple[int, ...], ridge: float) -> pd.DataFrame:
    """How many times as fast as one token a pass the best number of nodes is, by corpus, drafter and temperature, for each number
    of rows that are decoded together (decoding.break_even; drafting itself free), and that number of nodes."""
    rows = []
    for keys, part in by_nodes.groupby(["corpus", "drafter", "temperature"], sort=False):
        for batch in batches:
            times = [expected.break_even(row.value, row.nodes, batch, ridge) for row in part.itertuples()]
            best = int(np.argmax(times))
            found = {"batch": batch, "times": times[best], "nodes": int(part["nodes"].iloc[best])}
            rows.append(dict(zip(("corpus", "drafter", "temperature"), keys, strict=True)) | found)
    return pd.DataFrame(rows)


def drawn_table(
    backbone: Backbone, blocks, labels: Labels, marginals: dict, features: FrozenFeatures, heads: tuple[Arrays, ...], specs: tuple
) -> pd.DataFrame:
    """A chain of drafts drawn from the heads, or from the marginal, where the base model draws too: its expected acceptance
    (decoding.expected_acceptance) at every scored position, full: corpus, document, position, drafter, offset, value."""
    drawn = labels.table[labels.table.label_source == "sampled"]
    drawn = torch.tensor(np.stack([drawn[drawn.offset == k]["label"].to_numpy() for k in range(1, DEPTH + 2)], 1))
    log_p, answers = [], {}
    with undisturbed(backbone.model):
        for (row, t), behind in zip(blocks.scored.nonzero().tolist(), drawn, strict=True):
            ids = torch.cat([blocks.tokens[row, : t + 1][blocks.mask[row, : t + 1]], behind[:-1]])[None]
            logits = backbone.model(ids.to(backbone.model.device), use_cache=False).logits[0, -DEPTH:]
            log_p.append(logits.float().log_softmax(-1).cpu())
    for arrays, spec in zip(heads, specs, strict=True):
        answers |= head_measures.head_log_probs(heads_from(arrays, backbone, spec), features, blocks.scored)
    known = {k: torch.from_numpy(x.values["log_probs"]).log_softmax(-1) for k, x in marginals.items()}
    keys, frames = scoring.positions_of(blocks), []
    for drafter, of in (("heads", answers), ("marginal", known)):
        log_q = torch.stack([of[k].float() for k in range(2, DEPTH + 2)], 1)
        value = expected.expected_acceptance(torch.stack(log_p)[..., : log_q.shape[-1]], log_q, drawn[:, 1:]).double().numpy()
        frames += [keys.assign(drafter=drafter, offset=k, value=x) for k, x in enumerate(value.T, 2)]
    return pd.concat(frames, ignore_index=True)


def drawn(run, backbone: Backbone, bench, heads: tuple) -> pd.DataFrame:
    """Summary of drawn_table by corpus, drafter and offset: `full` with its interval, and `conditional`."""
    frames = []
    for blocks, states in bench.test.values():
        marginals = {k: stored.marginal(run, backbone, blocks, k) for k in range(2, DEPTH + 2)}
        given = {"backbone": backbone, "blocks": blocks, "labels": stored.labels(run, backbone, blocks), "marginals": marginals}
        given |= {"features": states, "heads": tuple(a.arrays for a in heads), "specs": tuple(a.spec for a in heads)}
        frames.append(run.measure(f"06_drawn_{stored.stem_of(backbone, blocks)}", drawn_table, **given))
    found = metrics.summarise(pd.concat(frames, ignore_index=True), ["corpus", "drafter", "offset"], ["value"])
    before = found.groupby(["corpus", "drafter"], sort=False)["value"].shift(fill_value=1.0)
    return found.drop(columns="metric").assign(conditional=found["value"] / before).rename(columns={"value": "full"})
