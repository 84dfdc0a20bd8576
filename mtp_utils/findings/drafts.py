"""What drafting is worth, as notebook 06 asks it: passes and seconds by drafter, and what tells acceptance beforehand."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..backbones.anatomy import position_limit
from ..backbones.load import Backbone
from ..decoding.decode import draft_and_verify
from ..decoding.drafters import LookupDrafter
from . import arms, frozen_heads, gaps, metrics, speed, speed_tables
from .speed import Drafting

TREE = (3, 2, 1)  # candidates for offset 2, 3, 4
SPEEDS = ["greedy_ratio", "generate_greedy_ratio", "passes_a_token", "same"]
DRAFTS_OF = {  # a way of decoding -> the drafter whose acceptance predicts its speed
    "heads, chain": "frozen heads",
    "heads, tree 3-2-1": "frozen heads, tree",
    "best heads, chain": "best frozen heads",
    "C3's heads, chain": "heads that decide C3",
    "C3's heads, tree 3-2-1": "heads that decide C3, tree",
    "prompt lookup": "prompt lookup",
}


@dataclass(frozen=True)
class DraftingHeads:
    """Trained heads of one backbone that draft: all kinds of the grid, the residual ones on the last layer, and the kind that
    is best at offset 2 on validation; the latter two with a head for every offset up to the horizon."""

    bench: arms.Bench
    grid: list[arms.Arm]
    residual: tuple[arms.Arm, ...]

    @classmethod
    def of(cls, run, backbone: Backbone, test: dict) -> "DraftingHeads":
        bench = arms.bench_of(run, backbone, test)
        grid = frozen_heads.grid_arms(run, bench)
        (one,) = (arm for arm in grid if arm.kind == "residual, last layer")
        return cls(bench, grid, (one, *frozen_heads.for_offsets(run, bench, one, run.profile.horizon)))

    def best(self, run) -> tuple[arms.Arm, ...]:
        """The kind that is best at offset 2 on validation (frozen_heads.from_best), with a head for every offset up to the
        horizon."""
        best = frozen_heads.from_best(run, self.bench, self.grid)[0]
        return (best, *frozen_heads.for_offsets(run, self.bench, best, run.profile.horizon))

    def deciding(self, run) -> tuple[arms.Arm, ...]:
        """The heads that decide C3, at offset 2, and heads trained in the same way for the other offsets up to the horizon."""
        of = frozen_heads.decided(run, self.bench.backbone, self.bench.blocks, self.grid)
        return (of.last, *frozen_heads.for_offsets(run, of.bench, of.last, run.profile.horizon, alike=True))


def passes_by_labels(run, backbone: Backbone, test: dict, kind: arms.Arm) -> pd.DataFrame:
    """Passes as `passes_of`, greedy and at temperature 1, drafted by heads of that kind at offset 2 alone that learnt from
    different labels (frozen_heads.taught_by): `drafter` names the labels."""
    bench, frames = frozen_heads.bench_for_labels(run, backbone, test, kind), []
    for labels, arm in frozen_heads.taught_by(run, bench, kind).items():
        for temperature in (0.0, 1.0):
            drafting = Drafting("heads", (arm,))
            found = passes_of(run, backbone, test, f"taught by {labels}", drafting, temperature=temperature)
            frames.append(found.assign(drafter=labels))
    return pd.concat(frames, ignore_index=True)


def try_drafts(backbone: Backbone, test: dict, new_tokens: int) -> None:
    """CannotDo where a backbone cannot verify drafts behind the longest of the prompts that it has positions for: it is tried."""
    room = position_limit(backbone.model.config) - new_tokens
    longest = max((prompt for blocks in test.values() for prompt in speed.prompts_of(blocks)[1]), key=len)
    draft_and_verify(backbone.model, LookupDrafter(speed.DEPTH), longest[: int(min(room, len(longest)))], new_tokens)


def ways_to_draft(heads: DraftingHeads | None, deciding: tuple[arms.Arm, ...] = ()) -> dict[str, Drafting]:
    """Drafter -> how it drafts, of those that every backbone is asked for; without heads prompt lookup alone. deciding: heads
    that draft too (DraftingHeads.deciding)."""
    each = {"frozen heads": heads.residual} if heads else {}
    each |= {"heads that decide C3": deciding} if deciding else {}
    chains = {name: Drafting("heads", of) for name, of in each.items()}
    trees = {f"{name}, tree": Drafting("heads", of, TREE) for name, of in each.items()}
    return {**chains, "prompt lookup": Drafting("lookup"), **trees}


def passes_of(
    run, backbone: Backbone, test: dict, name: str, drafting: Drafting, most: int | None = None, temperature: float = 0.0
) -> pd.DataFrame:
    """Every pass of draft and verify on the prompts of all corpora (as many as the profile decodes, or the first `most` of each),
    as speed.acceptance_table, under the drafter's name."""
    n, frames = run.profile.decoded(most), []
    for corpus, blocks in test.items():
        stem = f"06_passes_{backbone.name.replace('/', '-')}_{corpus}_{name.replace(' ', '-')}_{temperature:g}"
        given = {"n_prompts": n, "new_tokens": run.profile.new_tokens, "temperature": temperature}
        found = run.measure(stem, speed.acceptance_table, backbone=backbone, blocks=blocks, drafting=drafting, **given)
        frames.append(found.assign(drafter=name, temperature=temperature))
    return pd.concat(frames, ignore_index=True)


def assistant_for(run, backbone: Backbone, smallest: Backbone) -> Backbone | None:
    """The smallest rung as an assistant for transformers' assisted generation, or None, which is said, where it cannot be one."""
    reason = "no backbone is smaller, which would have to assist" if backbone.name == smallest.name else None
    if len({b.model.config.get_text_config().vocab_size for b in (backbone, smallest)}) > 1:
        reason = f"{smallest.name} has rows for another number of tokens, which generate refuses"
    if reason:
        run.skip(f"assisted generation of {backbone.name}", reason)
    return None if reason else smallest


def seconds_of(run, backbone: Backbone, test: dict, draftings: dict[str, Drafting], assistant: Backbone | None) -> dict:
    """corpus -> the seconds of every way of decoding, one prompt at a time (speed.decoding_seconds), on the profile's timed
    prompts; twice as many tokens after each as where passes are counted."""
    on, found = f"{run.provenance['device']}, {run.provenance['threads']} threads", {}
    given = {"n_prompts": run.profile.timed_prompts, "new_tokens": run.profile.timed_tokens, "on": on, "assistant": assistant}
    for corpus, blocks in test.items():
        stem, given["blocks"] = f"06_seconds_{backbone.name.replace('/', '-')}_{corpus}", blocks
        found[corpus] = run.measure_arrays(stem, speed.decoding_seconds, backbone=backbone, draftings=draftings, **given)
    for way, reason in speed.refused(backbone, assistant).items():
        run.skip(f"{way} of {backbone.name}", reason)
    return found


def speeds_by_prompt(seconds: dict[str, dict], new_tokens: int) -> pd.DataFrame:
    """speed_tables.speed_table of every backbone and corpus, a prompt being a document; our own ways first."""
    found = [speed_tables.speed_table(x, name, corpus, new_tokens) for name, of in seconds.items() for corpus, x in of.items()]
    found = pd.concat(found, ignore_index=True).rename(columns={"prompt": "document"})
    return found.sort_values("way", key=lambda way: way.str.startswith("generate"), kind="stable")


def speeds_by_way(by_prompt: pd.DataFrame, seconds: dict[str, dict], lengths: pd.DataFrame) -> pd.DataFrame:
    """Speeds of each way with intervals over prompts, and of the drafting ones what their passes cost and what that and their
    mean acceptance length predict (speed_tables.costs). lengths: of greedy decoding, backbone, corpus, drafter, value."""
    keys = ["backbone", "corpus", "way"]
    measured, predicted = metrics.summarise(by_prompt[by_prompt.way != "greedy"], keys, SPEEDS), []
    known = lengths.set_index(["backbone", "corpus", "drafter"])["value"]
    for name, of in seconds.items():
        for corpus, arrays in of.items():
            for way in (way for way in DRAFTS_OF if way in speed_tables.ways_of(arrays)):
                found = speed_tables.costs(arrays, way, known[name, corpus, DRAFTS_OF[way]])
                predicted += [(name, corpus, way, metric, value) for metric, value in found.items()]
    return pd.concat([measured, pd.DataFrame(predicted, columns=[*keys, "metric", "value"])], ignore_index=True)


def against_transformers(by_prompt: pd.DataFrame, by_way: pd.DataFrame, backbone: str) -> pd.DataFrame:
    """How many times as fast as each of transformers' ways ours is that was predicted to be fastest, by corpus, with intervals
    over prompts: chosen by what was mostly found on other passes."""
    mine = by_prompt[(by_prompt.backbone == backbone) & (by_prompt.way != "greedy")]
    ratio = mine.pivot_table(index=["corpus", "document"], columns="way", values="greedy_ratio")
    predicted = by_way[(by_way.backbone == backbone) & (by_way.metric == "predicted")].set_index(["corpus", "way"])["value"]
    rows = []
    for corpus, part in ratio.groupby("corpus", sort=False):
        ours = predicted[corpus].idxmax()
        for other in (way for way in ratio if way.startswith("generate")):
            value, low, high = speed_tables.against(part, ours, other)
            rows.append({"corpus": corpus, "ours": ours, "theirs": other, "times": value, "ci_low": low, "ci_high": high})
    return pd.DataFrame(rows)


def link_cells(run, heads: dict[str, DraftingHeads], most: int = 50) -> dict[tuple[str, str], dict]:
    """(backbone, corpus) -> of every kind of heads of the grid, by document: `accepted` and `passes` at offset 2 under greedy
    verification, `kl` to the marginal and `greedy_top1` on the base model's greedy labels, (kinds, documents); and `kind`."""
    cells, most = {}, run.profile.decoded(most)
    for name, of in heads.items():
        known = gaps.scored(run, of.bench, of.grid)
        known = known[known.offset == 2]
        for corpus, blocks in of.bench.blocks.items():
            documents, found = list(blocks.documents[:most]), {}
            for arm in of.grid:
                kind = arm.kind
                drafting = Drafting("heads", (arm,), (1,))
                passes = passes_of(run, of.bench.backbone, {corpus: blocks}, kind, drafting, most)
                drafted = passes[~passes["cut"]].groupby("document")["accepted"].agg(["sum", "count"]).reindex(documents)
                mine = known[(known["arm"] == kind) & (known["corpus"] == corpus)]
                values = {"accepted": drafted["sum"].fillna(0), "passes": drafted["count"].fillna(0)}
                for column, source, score in (("kl", "data", "kl_to_marginal"), ("greedy_top1", "greedy", "top1")):
                    values[column] = mine[mine.label_source == source].groupby("document")[score].mean().reindex(documents)
                for column, x in values.items():
                    found.setdefault(column, []).append(x)
                found.setdefault("kind", []).append(kind)
            kinds = found.pop("kind")
            cells[name, corpus] = {column: np.array(x, float) for column, x in found.items()} | {"kind": kinds}
    return cells


def link_table(cells: dict[tuple[str, str], dict]) -> pd.DataFrame:
    """Each kind of heads: its acceptance at offset 2 beside its mean KL to the marginal and accuracy on greedy labels."""
    rows = []
    for (name, corpus), of in cells.items():
        for i, kind in enumerate(of["kind"]):
            found = {"acceptance": of["accepted"][i].sum() / of["passes"][i].sum()}
            found |= {column: of[column][i].mean() for column in ("kl", "greedy_top1")}
            rows.append({"backbone": name, "corpus": corpus, "arm": kind} | found)
    return pd.DataFrame(rows)


def link_summary(draws: np.ndarray) -> pd.DataFrame:
    """Mean over rungs and corpora of the rank correlation with acceptance, and its 95 % interval from documents drawn again.
    draws: of speed_tables.link, for `kl` (whose sign is turned: less is better) and `greedy_top1`."""
    rows = {"KL": -draws[:, 0], "greedy accuracy": draws[:, 1], "size of KL's minus that of accuracy's": -draws.sum(1)}
    low, high = (np.nanquantile(list(rows.values()), q, axis=1) for q in (0.025, 0.975))
    return pd.DataFrame({"of": list(rows), "value": [np.nanmean(x) for x in rows.values()], "ci_low": low, "ci_high": high})
