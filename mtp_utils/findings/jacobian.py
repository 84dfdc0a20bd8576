"""The Jacobian lens: a layer read through the corpus-average Jacobian from its state to the final one, here and further on.

J_(l,k) = E[d h_L(t + k - 1) / d h_l(t)]: what a change of layer l at t does, on the average over text, to the final state that
the token t + k is read from. The read-out of offset k is the LM head of mean(h_L) + J_(l,k) (h_l(t) - mean(h_l)), h_L after the
final norm. Nothing is trained, and unlike the logit lens it points ahead.
"""

import inspect

import numpy as np
import torch

from ..backbones.anatomy import unembed
from ..backbones.load import Backbone
from ..backbones.wrapped import decoder
from ..base.records import Arrays
from ..base.refusals import CannotDo, require
from ..base.runtime import progress
from ..heads.features import FrozenFeatures
from ..marginal.rows import undisturbed
from . import head_measures

WORK = {"cpu": 5e13, "cuda": 5e16}  # multiply-adds that the average may cost: minutes
LEAST, MOST = 1024, 2048  # positions. [measured] on w256 half of MOST moves what is read by up to .2 nats, twice MOST by .03
APART = 8  # tokens: how far from each other the final states are whose derivatives one pass takes


def jacobians(features: FrozenFeatures, at: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """`jacobian.k` (layers + 1, d, d) at each offset k, float16, and `mean` (layers + 1, d), float32, over some of the blocks of
    text of the features.

    One backward pass for each of the d dimensions of h_L: its derivative along random signs at every APART-th position, 0
    elsewhere; the sign of t + k - 1 times what arrives at t is J_(l,k) there, plus what positions far behind it send, with
    signs of mean 0. CannotDo where the decoder takes no embeddings in place of tokens, or where that takes too long.
    """
    backbone, tokens = features.backbone, features.tokens
    model, length = backbone.model, tokens.shape[1]
    taken = inspect.signature(decoder(model).forward).parameters
    require("inputs_embeds" in taken, f"{type(model).__name__} takes no embeddings, by which to differentiate", CannotDo)
    d = model.config.get_text_config().hidden_size
    affordable = WORK.get(model.device.type, WORK["cpu"]) / (2 * d * backbone.n_params)
    too_long = f"{d} backward passes over {LEAST:,} tokens of {backbone.n_params:,} parameters take too long here"
    require(affordable >= LEAST, too_long, CannotDo)
    positions = int(min(affordable, MOST))
    ids = tokens[: max(1, positions // length)].to(model.device)
    draws = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (d, *ids.shape), generator=draws) * 2 - 1
    signs *= (torch.arange(length) - torch.randint(APART, (d, len(ids), 1), generator=draws)) % APART == 0
    signs = signs.to(ids.device, torch.float32)
    with undisturbed(model), torch.enable_grad():
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        states = decoder(model)(inputs_embeds=embedded, output_hidden_states=True, use_cache=False).hidden_states
        final, found = states[-1], {k: torch.zeros(len(states), d, d) for k in at}
        for i in progress(range(d), f"Jacobians {backbone.name}"):
            arrived = torch.autograd.grad((final[..., i] * signs[i]).sum(), states, retain_graph=True, allow_unused=True)
            for layer, g in enumerate(arrived):
                for k in at if g is not None else ():
                    along = signs[i, :, k - 1 :]
                    total = torch.einsum("bt,btd->d", along, g[:, : length - k + 1].float())
                    found[k][layer, i] = (total / along.abs().sum().clamp_min(1)).cpu()
        mean = torch.stack([h.detach().float().flatten(0, 1).mean(0).cpu() for h in states])
    return {f"jacobian.{k}": x.half().numpy() for k, x in found.items()} | {"mean": mean.numpy()}


@torch.no_grad()
def jacobian_arrays(backbone: Backbone, blocks, read: Arrays, at: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The Jacobian lens of every layer on the data's own tokens, as head_measures.lens_arrays; read: `jacobians`."""
    model, mean = backbone.model, torch.from_numpy(read.values["mean"])

    def log_probs(hidden: tuple, layer: int, here: torch.Tensor) -> list[torch.Tensor]:
        moved = hidden[layer][here].float() - mean[layer].to(here.device)
        each = [torch.from_numpy(read.values[f"jacobian.{k}"][layer]).float().to(here.device) for k in at]
        ahead = [mean[-1].to(here.device) + moved @ jacobian.T for jacobian in each]
        return [unembed(model, h.to(model.dtype)).float().log_softmax(-1) for h in ahead]

    return head_measures.by_layer(backbone, blocks, at, log_probs)
