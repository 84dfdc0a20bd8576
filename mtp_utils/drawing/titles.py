"""The title of each figure: what it shows, with its numbers, read from the table that is drawn. One function a figure.

A second line says what was measured. Numbers are those of the largest backbone in the table; corpora come in the table's order.
"""

import pandas as pd

from .numbers import beside, count, each, ends, number, single, span, value

CONTROLS = ("unigram", "skip_bigram", "skip_trigram", "cache_ngram")


def offsets(table: pd.DataFrame, backbone: str) -> str:
    """00: how many of the tokens the arg-max had right, at the first offset and at the last."""
    right = table.groupby("offset")["right"].agg(["sum", "size"])
    parts = [f"{int(hits)} of {n} at offset {k}" for k, (hits, n) in right.iloc[[0, -1]].iterrows()]
    return f"On one German sentence the arg-max is right for {' and '.join(parts)}\n{backbone}, the marginal by offset"


def ladder(summary: pd.DataFrame) -> str:
    """00: next-token loss of the smallest and the largest backbone."""
    rows = summary[summary.seed == summary["seed"].min()]
    found = each(rows, lambda part: ends(part, "n_params"))
    return f"The next token at {_sizes(rows)} parameters costs: {found} nats\nheld-out loss, all tokens"


def against_counting(summary: pd.DataFrame, metric: str, backbone: str) -> str:
    """01: the marginal two tokens ahead beside the best of the counting controls."""
    rows = summary[(summary.offset == 2) & (summary.metric == metric)]
    best, unit = (max, "") if metric == "top1" else (min, " nats")

    def of(part: pd.DataFrame) -> str:
        counting = best(value(part, predictor=name) for name in CONTROLS)
        return f"{number(value(part, predictor='marginal'))}{unit} where counting reaches {number(counting)}"

    return f"Two tokens ahead: {each(rows, of)}\n{backbone}, the documents' own tokens"


def label_sources(summary: pd.DataFrame, backbone: str) -> str:
    """01: accuracy two tokens ahead by whose tokens are asked."""
    rows = summary[(summary.offset == 2) & (summary.metric == "top1")]
    names = list(dict.fromkeys(rows["label_source"]))
    found = beside(rows, "label_source", names)
    return f"Right two tokens ahead on {' / '.join(names)} tokens: {found}\n{backbone}, the marginal"


def truncation(summary: pd.DataFrame, backbone: str, against: str) -> str:
    """01: what 64 candidates (or as many as there are) hold and certify."""
    k = summary["k"][summary["k"] <= 64].max()
    rows = summary[summary.k == k]
    held = beside(rows, "metric", ("captured_mass", "certified"))
    return f"{k} candidates hold of the mass / certify of the arg-maxes: {held}\n{backbone}, offset 2, against {against}"


def estimators(summary: pd.DataFrame, backbone: str, against: str) -> str:
    """01: the largest bias of the cross-entropy over corpora, truncated, sampled and both."""
    rows, found = summary[summary.metric == "cross_entropy_bias"], []
    for name in ("top_k=64, S/M", "samples=64", "top_k=64 samples=64"):
        biases = rows[rows.estimator == name]["value"]
        found += [f"{name} {number(biases.abs().max())}"] if len(biases) else []
    return f"The cross-entropy is off by at most: {'; '.join(found)} nats\n{backbone}, offset 2, against {against}"


def size(summary: pd.DataFrame) -> str:
    """02: cross-entropy at offset 2 of the smallest and the largest backbone."""
    rows = summary[(summary.offset == 2) & (summary.metric == "cross_entropy")]
    rows = rows[rows.seed == rows["seed"].min()]
    found = each(rows, lambda part: ends(part, "n_params"))
    return f"The token after next at {_sizes(rows)} parameters costs: {found} nats\nthe marginal, and the next token beside it"


def offset_two_against_one(summary: pd.DataFrame) -> str:
    """02: accuracy of the largest backbone one and two tokens ahead."""
    rows = summary[(summary.metric == "top1") & (summary.n_params == summary.n_params.max())]
    found = beside(rows, "offset", (1, 2), " and ")
    return f"Right one and two tokens ahead: {found}\nlargest backbone; the others beside it"


def token_class(summary: pd.DataFrame) -> str:
    """02: accuracy two tokens ahead inside a word and at its start, largest backbone."""
    rows = summary[(summary.metric == "top1") & (summary.backbone == summary["backbone"].iloc[-1])]
    found = beside(rows, "class", ("inside a word", "word start"), " and ")
    return f"Right two tokens ahead inside a word and at a word's start: {found}\n{rows['backbone'].iloc[0]}, the marginal"


def context(summary: pd.DataFrame) -> str:
    """02: cross-entropy two tokens ahead with the shortest and the longest contexts, largest backbone."""
    rows = summary[(summary.metric == "cross_entropy") & (summary.backbone == summary["backbone"].iloc[-1])]
    bins = list(dict.fromkeys(rows["context"]))
    found = beside(rows, "context", (bins[0], bins[-1]), " and ")
    said = f"Two tokens ahead with {bins[0]} tokens of context and with {bins[-1]}: {found} nats"
    return f"{said}\n{rows['backbone'].iloc[0]}, the marginal"


def dose_response(summary: pd.DataFrame) -> str:
    """02: what the truth and the largest backbone say, from where the token after next is given to where it is free."""
    rows = summary[summary.metric == "cross_entropy"]
    last = [name for name in dict.fromkeys(rows["backbone"]) if name != "grammar"][-1]
    true, ours = (ends(rows[rows.backbone == name], "dose") for name in ("grammar", last))
    doses = f"{rows['dose'].min():.2f} to {rows['dose'].max():.1f}"
    said = f"From {doses} nats of true entropy the true m2 costs {true}, {last}'s {ours}"
    return f"{said}\ngenerated translations, both sides, offset 2"


def four_bits(table: pd.DataFrame, backbone: str) -> str:
    """02: what rounding to four bits adds to the marginal's cross-entropy."""
    found = single(table[(table.offset == 2) & (table.metric == "cross_entropy")])
    return f"Rounded to four bits the token after next costs more by: {found} nats\n{backbone}, weights as in a Q4_1 file"


def criteria(table: pd.DataFrame, backbone: str) -> str:
    """02: AUROC of a low entropy of the marginal."""
    found = single(table[table.criterion == "low H(m2)"], "effect")
    return f"A low H(m2) tells right from wrong with an AUROC of: {found}\n{backbone}, offset 2, the documents' own tokens"


def layers(summary: pd.DataFrame, backbone: str) -> str:
    """03: the layers with the lowest cross-entropy one and two tokens ahead."""
    rows = summary[(summary.readout == "probe") & (summary.metric == "cross_entropy")]

    def of(part: pd.DataFrame) -> str:
        best = [part[part.offset == k].sort_values("value")["layer"].iloc[0] for k in (1, 2)]
        return f"{best[0]} and {best[1]}"

    found = each(rows, of)
    said = f"Layer with the lowest loss one and two tokens ahead: {found}"
    return f"{said}\n{backbone}: by a probe (solid), by the lens (dotted); across: counting, offset 2"


def lowest(summary: pd.DataFrame, what: str) -> str:
    """03: offset 2 read from each kind of backbone, or in each kind of way, the lowest of its layers."""
    rows = summary[summary.metric == "cross_entropy"]
    kinds = list(dict.fromkeys(rows["kind"]))
    found = each(rows, lambda part: " / ".join(number(part[part.kind == kind]["value"].min()) for kind in kinds))
    return f"Two tokens ahead, lowest of all layers, {' / '.join(kinds)}: {found} nats\n{what}"


def similarity(table: pd.DataFrame) -> str:
    """03: how alike the embeddings and the last layer are."""
    ends_of = table[(table.layer == 0) & (table.other == table.groupby("backbone")["other"].transform("max"))]
    found = single(ends_of, "cka", "backbone")
    return f"Embeddings and last layer are alike by: {found}\nlinear CKA of the layers, {table['corpus'].iloc[0]}"


def mix_weights(table: pd.DataFrame) -> str:
    """03: the weight that the mix leaves on the last layer at offset 2."""
    rows = table[(table.offset == 2) & (table.layer == table.groupby("backbone")["layer"].transform("max"))]
    found = single(rows, "weight", "backbone")
    return f"Two tokens ahead a mix started at the last layer leaves there: {found}\nresidual heads on the frozen backbone"


def frozen_heads(summary: pd.DataFrame, kind: str, backbone: str, tokens: int) -> str:
    """04: how far one kind of heads stays above the marginal at offset 2."""
    rows = summary[(summary.offset == 2) & (summary.metric == "excess_ce") & (summary.arm == kind)]
    said = f"After {tokens:,} positions the best kind of heads is above the marginal by: {single(rows)} nats"
    return f"{said}\n{backbone}, frozen, on data: {kind}, best on validation"


def by_tokens(summary: pd.DataFrame, what: str) -> str:
    """04: the gap at the least and at the most tokens."""
    rows = summary[summary.metric == "excess_ce"]
    tokens = span(rows["train_tokens"].min(), rows["train_tokens"].max(), count)
    return f"The gap to the marginal after {tokens} positions: {each(rows, lambda part: ends(part, 'train_tokens'))} nats\n{what}"


def labels(summary: pd.DataFrame, backbone: str) -> str:
    """04: the gap by what the heads were trained on."""
    rows = summary[summary.metric == "kl_to_marginal"]
    arms = list(dict.fromkeys(rows["arm"]))
    names = " / ".join(arm.removeprefix("trained on ") for arm in arms)
    return f"KL to the marginal of heads trained on {names}: {beside(rows, 'arm', arms)} nats\n{backbone}, offset 2"


def by_size(summary: pd.DataFrame) -> str:
    """04: the gap of the smallest and of the largest backbone's heads."""
    rows = summary[(summary["metric"] == "gap") & (summary["name"] == "frozen")]
    found = each(rows, lambda part: ends(part, "n_params"))
    return f"The heads' gap to the marginal at {_sizes(rows)} parameters: {found} nats\noffset 2: marginal, best frozen head, gap"


def budgets(summary: pd.DataFrame, backbone: str) -> str:
    """05: the gap of joint and frozen heads at joint training's largest budget."""
    rows = summary[summary.metric == "excess_ce"]
    most = rows[rows["name"] == "joint"]["train_tokens"].max()
    at = rows[rows.train_tokens == most]
    found = beside(at, "name", ("joint", "frozen"), " and ")
    return f"On {count(most)} tokens joint and frozen heads lie above the marginal by: {found} nats\n{backbone}, offset 2"


def by_operations(summary: pd.DataFrame, backbone: str) -> str:
    """05: joint heads and the frozen ones that took as many operations."""
    last = summary[summary.operations == summary.groupby("name")["operations"].transform("max")]
    found = beside(last, "name", ("joint", "frozen"), " and ")
    return f"In as many operations joint and frozen heads reach: {found} nats\n{backbone}, offset 2, all eligible positions"


def shares(table: pd.DataFrame, way: str, backbone: str) -> str:
    """05: what one way of joint training closes of the frozen heads' gap."""
    found = single(table[table.arm == way])
    said = f"{way[:1].upper() + way[1:]}, closes of the frozen heads' gap: {found}"
    return f"{said}\n{backbone}, offset 2, where the marginal is known, which is 1"


def cost(table: pd.DataFrame, ways: tuple[str, ...], backbone: str) -> str:
    """05: what each of a few ways of joint training changes in the next token's loss."""
    found = "; ".join(f"{single(table[table.arm == way], 'ntp')} nats ({way})" for way in ways)
    return f"The next token's loss changes by: {found}\n{backbone}: offset 2 against it"


def acceptance(summary: pd.DataFrame, backbone: str) -> str:
    """06: drafts accepted at offset 2 by drafter."""
    rows = summary[(summary.offset == 2) & (summary.metric == "a")]
    names = [name for name in ("marginal", "best frozen heads", "prompt lookup") if name in set(rows["drafter"])]
    found = beside(rows, "drafter", names)
    return f"Accepted two tokens ahead, {' / '.join(names)}: {found}\n{backbone}, greedy; of the passes in which it drafts"


def tokens_by_nodes(table: pd.DataFrame, backbone: str) -> str:
    """06: what the largest tree of each drafter would bring."""
    rows = table[table.nodes == table["nodes"].max()]
    names = [name for name in ("best frozen heads", "prompt lookup") if name in set(rows["drafter"])]
    most = f"{rows['nodes'].iloc[0]} drafted tokens"
    return f"Tokens a pass by the best tree of {most}, {' / '.join(names)}: {beside(rows, 'drafter', names)}\n{backbone}, greedy"


def speeds(summary: pd.DataFrame, backbone: str) -> str:
    """06: speeds of prompt lookup and of heads as ratios to plain greedy decoding."""
    rows = summary[(summary.metric == "greedy_ratio") & (summary.backbone == backbone)]
    ways = [way for way in ("prompt lookup", "heads, chain") if way in set(rows["way"])]
    found = beside(rows, "way", ways)
    return f"Times as fast as plain greedy decoding, {' / '.join(ways)}: {found}\n{backbone}, one prompt at a time"


def link(summary: pd.DataFrame) -> str:
    """06: rank correlations of acceptance with what is known of heads beforehand."""
    known = {row.of: f"{number(row.value)} [{number(row.ci_low)}, {number(row.ci_high)}]" for row in summary.itertuples()}
    first, second = known["KL"], known["greedy accuracy"]
    return f"Rank correlation of acceptance with a small KL {first}, with greedy accuracy {second}\nover kinds of heads"


def scorecard(verdicts: pd.DataFrame) -> str:
    """07: how many verdicts of each kind."""
    found = ", ".join(f"{n} {verdict}" for verdict, n in verdicts["verdict"].value_counts(sort=False).items())
    return f"{len(verdicts)} contrasts: {found}\neach with its 95 % interval, in its own unit; the line is what it has to exceed"


def _sizes(rows: pd.DataFrame) -> str:
    return span(rows["n_params"].min(), rows["n_params"].max(), count)
