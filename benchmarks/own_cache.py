"""Whether a model's own cache is of use: its own steps, a token at a time, against its own pass over the whole text."""

import inspect

import torch

from mtp_utils.base.refusals import first_line
from mtp_utils.marginal.expanded import NAMES
from mtp_utils.marginal.reference import TOLERANCE, gap
from mtp_utils.marginal.rows import undisturbed

RIGHT = "is right"


def own_cache(model):
    """Why the model's own cache is of no use: it has none, or its own steps with it, a token at a time as in generation, say
    something else than its own pass over the whole text does; "right" where they do not."""
    parameters = inspect.signature(model.forward).parameters
    name = next((name for name in NAMES if name in parameters), None)
    if name is None:
        return "has no cache"
    ids = torch.randint(3, model.get_input_embeddings().num_embeddings, (1, 14), generator=torch.Generator().manual_seed(1))
    with undisturbed(model):
        whole = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        shorter = gap(model(input_ids=ids[:, :9], use_cache=False).logits.log_softmax(-1), whole[:, :9])
        if shorter > TOLERANCE[torch.float32]:
            return f"is not causal: a shorter text is off by {shorter:.1e}"
        found = [stepped(model, name, ids, whole, placed) for placed in {False, "position_ids" in parameters}]
    errors = [x for x in found if isinstance(x, float)]
    if not errors:
        return f"its own step fails: {found[0]}"
    return RIGHT if min(errors) <= TOLERANCE[torch.float32] else f"its own step is off by {min(errors):.1e}"


def stepped(model, name, ids, whole, placed, start=3):
    """The largest difference of the model's own steps from its own pass over the whole text, in nats; or their error."""
    cache, error = {}, 0.0
    try:
        for t, token in enumerate(ids.tensor_split(list(range(start, ids.shape[1])), 1), start - 1):
            places = {"position_ids": torch.tensor([[t]])} if placed and cache else {}
            out = model(input_ids=token, use_cache=True, **cache, **places)
            if out.get(name) is None:
                return "no cache comes back"
            cache, error = {name: out[name]}, max(error, gap(out.logits[:, -1].log_softmax(-1), whole[:, t]))
    except Exception as problem:
        return first_line(problem)
    return error
