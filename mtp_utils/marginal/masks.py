"""The training-free rival of the marginal: mask embeddings behind the prefix, whose outputs are read as the tokens after next.

ESP (arXiv 2603.17942) appends k - 1 masks, each the mean of the prompt's token embeddings, and reads what the model says behind
the j-th as the token j + 1 ahead: one pass, and no token between is summed out. Its tree and its pruning are not here.
"""

import inspect

import torch

from ..backbones.wrapped import plain
from ..base.refusals import CannotDo, require
from .rows import Rows, undisturbed


def masked_log_probs(model, input_ids, horizon, *, attention_mask=None, positions=None) -> dict[int, torch.Tensor]:
    """offset 2 ... horizon -> log-probs (wanted positions, vocab), nats, float32 (float64 for a float64 model), each row sums to
    one, in the order of `positions`.

    Arguments, and errors of these, as in future_log_probs; every wanted position costs a pass over its prefix and the masks.
    Raises CannotDo where the model takes no embeddings in place of tokens.
    """
    model = plain(model)
    rows = Rows(model, input_ids, horizon, attention_mask, positions, name="horizon")
    require(horizon >= 2, f"horizon={horizon}: masks stand for tokens between, of which offset 2 has the first")
    taken = inspect.signature(model.forward).parameters
    require("inputs_embeds" in taken, f"{type(model).__name__} takes no embeddings in place of tokens, which masks are", CannotDo)
    embed, n = model.get_input_embeddings(), horizon - 1
    kept = {"logits_to_keep": n} if "logits_to_keep" in taken else {}
    found = {k: [] for k in range(2, horizon + 1)}
    with undisturbed(model):
        for row, t in rows.wanted.nonzero().tolist():
            prefix = input_ids[row, : t + 1][rows.there[row, : t + 1]]
            embedded = embed(prefix.to(embed.weight.device))
            given = torch.cat([embedded, embedded.mean(0, keepdim=True).expand(n, -1)])[None]
            logits = model(inputs_embeds=given, use_cache=False, **kept).logits[0, -n:]
            log_probs = logits.to(torch.promote_types(model.dtype, torch.float32)).log_softmax(-1)
            for k, of in zip(found, log_probs, strict=True):
                found[k].append(of.cpu())
    return {k: torch.stack(of) if of else torch.empty(0, rows.vocab) for k, of in found.items()}
