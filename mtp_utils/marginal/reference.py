"""The obvious engine (full re-runs), and the self-check that decides whether a faster one may replace it."""

import math
import re
import weakref

import torch

from ..backbones.anatomy import last_only, padding_counted, position_limit
from ..backbones.rounding import coarsest, computed_in, in_float32, state_of
from ..base.refusals import first_line, lacks_memory
from .expanded import Expanded, OneByOne
from .expansion import Level
from .packed import Packed

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}  # nats
SLACK = 8  # of tolerances in half precision, where packing is right in float32
LENGTHS = re.compile("window|chunk|position|context|local|length")  # settings that may act beyond some length

_trusted: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()
_wide: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


class Reference:
    """p(. | prefix, path) by running the model on the whole sequence, for each row, position and path."""

    capacity = 2**16
    step = 16

    def __init__(self, model, ids, rows, t):
        self.model, self.ids, self.rows, self.t = model, ids, rows, t

    def logits_of(self, level, keep=False):
        """Yield (start, stop, logits (stop - start, V)) over the level."""
        for first, last in level.by_root():
            for start in range(first, last, self.step):
                stop = min(start + self.step, last)
                root = level.root[start]
                prefix = self.ids[self.rows[root], : self.t[root] + 1]
                ids = torch.cat([prefix.expand(stop - start, -1), level.path(start, stop)], 1)
                yield start, stop, self.model(input_ids=ids, use_cache=False, **last_only(self.model)).logits[:, -1]


def active_lengths(config, longest):
    """Settings of the configuration, at any depth, that name a length below `longest`: window, chunk, rope switch."""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= active_lengths(value, longest)
        elif LENGTHS.search(str(name)) and type(value) is int and 0 < value < longest:
            found[name] = value
    return found


def engine_for(model, longest):
    """(engine, why none before it): Packed, Expanded, OneByOne or Reference, the first that this very model's check allows."""
    config = model.config.get_text_config()
    lengths = active_lengths(config.to_dict(), longest)
    other = set(active_lengths(config.to_dict(), torch.inf).values()) - set(lengths.values())
    longest = min(2 ** max(6, math.ceil(math.log2(longest))), *other, position_limit(config))  # checked once for many lengths
    key = (*computed_in(model), config.to_json_string(use_diff=False), tuple(sorted(lengths.items())))
    known = _trusted.setdefault(model, {})
    for (name, upto), answer in known.items():  # a longer check that was passed vouches for less
        if name == key and (upto == longest or upto > longest and answer[1] is None):
            return answer
    total = min([max([0, *lengths.values()]) + 16, *other])  # beyond what acts in this call, not beyond more

    def wide(for_good):  # kept for itself, as the short check may have to be made again; for good with these weights alone
        seen, state = _wide.setdefault(model, {}), state_of(model)
        if (key, longest) not in seen or for_good and seen[key, longest][0] != state:
            seen[key, longest] = state, beyond_rounding(model, compare_wide, max(1, longest - 1))[0]
        return seen[key, longest][1]

    answer, reasons, conclusive = Reference, [], True
    for engine, said in ((Packed, ""), (Expanded, "; nor is its cache of use: "), (OneByOne, "; nor one by one: ")):
        reason, sure = checked(model, engine, max(1, total - 2), lengths, wide if engine is Packed else None)
        conclusive &= sure
        if reason is None:
            answer = engine
            break
        reasons.append("" if any(reason in x for x in reasons[1:]) else said + reason)
    answer = answer, "".join(reasons) or None
    if conclusive:
        known[key, longest] = answer
    return answer


def checked(model, engine, length, lengths, further=None):
    """`compare`, and if it finds nothing the `further` check, told whether the first proves anything; what the model does not
    support is a reason, not a failure."""
    try:
        reason, conclusive = beyond_rounding(model, compare, engine, length, lengths)
        return (further(conclusive) if reason is None and further else reason), conclusive
    except Exception as error:
        if lacks_memory(error):
            raise
        return first_line(error), True


def beyond_rounding(model, check, *given):
    """What the check finds; in half precision it may find more than its tolerance where float32, by its own, shows it right."""
    reason, conclusive = check(model, *given)
    if reason is not None and coarsest(model).itemsize < 4:
        with in_float32(model):
            wrong, sure = check(model, *given, TOLERANCE[torch.float32])
        if wrong is None:
            return check(model, *given, SLACK * tolerance_of(model))[0], sure
    return reason, conclusive


def compare(model, engine, length, lengths, tolerance=None):
    """That engine against reference on random ids: two rows, some positions (also around each of `lengths`), paths of 0 to 2.

    Returns (reason not to trust or None, whether the model's attention matters enough for the check to prove anything).
    """
    generator = torch.Generator().manual_seed(0)
    vocab = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocab, (2, length), generator=generator).to(model.device)
    near = {value - back for value in lengths.values() for back in (2, value // 2) if back <= value < length}
    inner = sorted({0, length // 2, length - 1, *near}) if length > 1 else [0]  # paths that stay below it, or reach beyond
    t = torch.tensor([length - 1, *inner] if length > 1 else inner, device=model.device)
    rows = torch.tensor([0] * (length > 1) + [1] * len(inner), device=model.device)
    roots = torch.arange(len(t), device=model.device)
    a, b, c = (torch.randperm(vocab, generator=generator).repeat(3)[:3]).tolist()
    if (padding := padding_counted(model)) is not None and padding < vocab:
        ids[1, length // 2], a = padding, padding

    def below(level, tokens):
        index = torch.arange(len(level.root), device=t.device).repeat_interleave(len(tokens))
        token = torch.tensor(tokens, device=t.device).repeat(len(level.root))
        return Level(level.root[index], level.prob[index], token, level, index, level.depth + 1)

    top = Level(roots, torch.ones_like(roots))
    first = below(top, [a, b])
    second = below(first, [c])
    ours_of, reference = engine(model, ids, rows, t), Reference(model, ids, rows, t)
    ours, theirs = (
        torch.cat([log_probs(x) for level in (top, first, second) for _, _, x in way.logits_of(level, True)])
        for way in (ours_of, reference)
    )
    if theirs.isnan().any():  # the caller will be told where
        return "its logits are not finite", False
    packed = engine is Packed
    if packed and any("attention_chunk" in name for name in lengths):
        return "attention in chunks", True
    windows = {value for name, value in lengths.items() if name.endswith(("window", "window_size"))}
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    if kinds and not any("sliding" in kind or "local" in kind for kind in kinds):
        windows = set()  # no layer has it
    if packed and windows - ours_of.windows:
        return f"a window of {windows} that its attention does not announce", True
    error, tolerance = gap(ours, theirs), tolerance or tolerance_of(model)
    if not error <= tolerance:  # what rounding alone does to the reference; that company does no more, refuse_company has seen
        tolerance = max(tolerance, 8 * gap(theirs[-len(second.root) :], said_by(reference, second, step=1)))
    if not error <= tolerance:
        return f"log-probabilities off by {error:.1e}, tolerance {tolerance:.1e}", True
    last = theirs[-len(second.root) :]  # same last token, another ancestor: what attention is worth here
    return None, gap(last[0::2], last[1::2]) > 20 * tolerance


def tolerance_of(model):
    """Nats that rounding explains, by what is computed."""
    return TOLERANCE.get(coarsest(model), TOLERANCE[torch.bfloat16])


def said_by(reference, level, step=Reference.step):
    """The reference's log-probabilities of a level (n, V), so many paths at once."""
    reference.step = step
    return torch.cat([log_probs(x) for _, _, x in reference.logits_of(level)])


def compare_wide(model, length, tolerance=None):
    """The reason not to trust a pass as wide as real ones over a text as long as real ones, or None; and True.

    All of its candidates run, half of them below an early position and half below the last one; four are compared, so that
    the reference reads two long texts. It shows what depends on a candidate's place in the pass, not on its position.
    """
    generator = torch.Generator().manual_seed(1)
    vocab = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocab, (1, length), generator=generator).to(model.device)
    t = torch.tensor([min(8, length - 1), length - 1], device=model.device)
    packed = Packed(model, ids, torch.zeros_like(t), t)
    half = max(2, packed.step[0] // 2)
    index = torch.arange(2, device=t.device).repeat_interleave(half)
    token = torch.randint(vocab, (2 * half,), generator=generator).to(t.device)
    wide = Level(index, torch.ones_like(index), token, Level(torch.arange(2, device=t.device), torch.ones_like(t)), index, 1)
    some = torch.tensor([0, half - 1, half, 2 * half - 1], device=t.device)
    ours = torch.cat([x[some[(some >= a) & (some < b)] - a] for a, b, x in packed.logits_of(wide)])
    reference = Reference(model, ids, torch.zeros_like(t), t)
    theirs = said_by(reference, wide.take(some))
    error, tolerance = gap(log_probs(ours), theirs), tolerance or tolerance_of(model)
    if not error <= tolerance:
        tolerance = max(tolerance, 8 * gap(theirs, said_by(reference, wide.take(some), step=1)))
    return None if error <= tolerance else f"log-probabilities of a wide pass off by {error:.1e} > {tolerance:.1e}", True


def log_probs(logits):
    """In float32 at least: half precision has a spacing of a quarter where a token is unlikely."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def gap(a, b):
    """Largest difference; equal infinities differ by nothing, whatever is not a number by infinity."""
    return torch.where(a == b, 0, a - b).abs().nan_to_num(torch.inf, posinf=torch.inf).max().item()
