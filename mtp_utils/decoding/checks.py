"""Whether drafts can be verified on a model: tried on a few random tokens, whatever the model is called."""

import weakref

import torch

from ..backbones.anatomy import last_only
from ..backbones.rounding import computed_in
from ..base.refusals import CannotDo, first_line, lacks_memory, require
from ..marginal.reference import TOLERANCE, active_lengths, gap
from ..marginal.rows import undisturbed
from .verify import Prefix, tree_of

_refused: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()  # model -> configuration and lengths -> why, or nothing


def check_attention(model, longest: int) -> None:
    """CannotDo where passes over trees in rows of different lengths are not what full re-runs say, on this very model: its
    attention does not hear masks and positions, or its cache cannot be rolled back. Looked at once for each set of lengths
    (windows, chunks) below `longest` that its configuration names, on texts beyond them; the model is as before afterwards."""
    config = model.config.get_text_config()
    lengths, every = (set(active_lengths(config.to_dict(), most).items()) for most in (longest, torch.inf))
    name = *computed_in(model), config.to_json_string(use_diff=False), tuple(sorted(lengths))
    known = _refused.setdefault(model, {})
    if name not in known:
        acting, others = ({value for _, value in of} for of in (lengths, every - lengths))
        with undisturbed(model):  # beyond what acts on texts of `longest` tokens, not beyond more
            known[name] = _reason(model, min([max([0, *acting]) + 16, *others]))
    require(not known[name], f"{type(model).__name__}: {known[name]}: decode with generate", CannotDo)


def _reason(model, length: int) -> str:
    """Why drafts cannot be verified on texts of so many tokens, or nothing."""
    wrong = _tried(_heard_wrong, model, length)
    stuck = wrong and _tried(_stuck, model)
    if stuck:
        return f"its cache cannot be rolled back, which drafts need ({stuck.split('. ')[0]})"  # without the library's advice
    return f"its attention does not serve drafts ({wrong})" if wrong else ""


def _tried(look, *given) -> str:
    """What a look finds, or the error that it ends in; but for memory."""
    try:
        return look(*given)
    except Exception as error:  # whatever a model does not support is a reason
        if lacks_memory(error):
            raise
        return first_line(error)


def _heard_wrong(model, length: int) -> str:
    """What is wrong, or nothing: two rows, a tree behind each, what is kept of it, and a further token behind that."""
    rng = torch.Generator().manual_seed(0)
    vocab, n = model.get_input_embeddings().num_embeddings, max(1, length - 4)
    rows = [torch.randint(vocab, (k,), generator=rng).to(model.device) for k in (n, max(1, n - 6))]
    drafts, tree = torch.randint(vocab, (2, 3), generator=rng).tolist(), tree_of((2,) if length > 2 else ())
    drafts, prefix, texts = [row[: len(tree.depth)] for row in drafts], Prefix(model, rows, ()), []
    found = [prefix.logits, *prefix.verify(drafts, tree).unbind(1)]
    paths = [[0, 2], [0]] if len(tree.depth) > 1 else [[0], [0]]
    prefix.keep(paths)
    found.append(prefix.verify([[1], [1]], tree_of(()))[:, 0])
    for row, own, path in zip(rows, drafts, paths, strict=True):
        row = row.tolist()
        tails = [[], *([own[0]] if d == 0 else [own[0], own[i]] for i, d in enumerate(tree.depth)), [own[i] for i in path] + [1]]
        texts.append([torch.tensor([row + tail], device=model.device) for tail in tails])
    ours = torch.stack(found, 1).float().log_softmax(-1)  # (rows, texts, vocab)
    theirs, again = (
        torch.stack([torch.stack([_last_logits(model, text, twice) for text in own]) for own in texts]).float().log_softmax(-1)
        for twice in (False, True)
    )
    if theirs.isnan().any():
        return "its logits are not finite"
    return _off(gap(ours, theirs), max(_tolerance(model), 8 * gap(theirs, again)))


def _stuck(model) -> str:
    """What is wrong, or nothing, with the cache that the model makes for itself: a token is read behind two and taken back, and
    another is read instead. So few, that a window does not slide: ours keeps what left it, and its own does not."""
    text = torch.randint(model.get_input_embeddings().num_embeddings, (1, 4), generator=torch.Generator().manual_seed(0))
    read, taken, other = text.to(model.device).split([2, 1, 1], 1)
    out = model(read, use_cache=True)
    kept = {name: cache for name, cache in out.items() if hasattr(cache, "crop")}  # by the name that the model calls it
    if not kept:
        return "it keeps nothing that could be cut off"
    model(taken, **kept, use_cache=True)
    for cache in kept.values():
        cache.crop(-1)
    found, fresh = model(other, **kept, use_cache=True).logits[0, -1], _last_logits(model, torch.cat([read, other], 1), False)
    return _off(gap(found.float().log_softmax(-1), fresh.float().log_softmax(-1)), _tolerance(model))


def _off(error: float, tolerance: float) -> str:
    return "" if error <= tolerance else f"log-probabilities off by {error:.1e}, tolerance {tolerance:.1e}"


def _tolerance(model) -> float:
    return max(TOLERANCE.get(model.dtype, 0.15), 2e-4)


def _last_logits(model, ids: torch.Tensor, twice: bool) -> torch.Tensor:
    """After the last token, without a cache; beside a copy of itself, which shows what rounding does."""
    return model(ids.expand(2, -1) if twice else ids, use_cache=False, **last_only(model)).logits[0, -1]
