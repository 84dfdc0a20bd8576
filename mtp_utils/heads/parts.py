"""What heads are made of: features (one layer, a mix, all side by side), a trunk, an unembedding.

The trunks are the usual ones: a linear map, Medusa's residual block (arXiv 2401.10774), a transformer layer of the backbone's own
kind, and a control that sees the next token's distribution alone.
"""

import copy
import re

import torch
import torch.nn.functional as F
from torch import nn

from ..backbones.anatomy import final_norm, rows_of
from ..backbones.wrapped import decoder, plain
from ..base.refusals import CannotDo, first_line, require
from .spec import HeadSpec

LARGEST_MAP = 8192  # vocabulary up to which a head of kind next_token is built: it holds vocabulary^2 weights an offset
START = 5.0  # of the last layer's weight in LayerMix, before the softmax; the others start at 0


class Layer(nn.Module):
    """One layer's states, normalised. The last is already; the others get the backbone's final norm, copied and trained."""

    def __init__(self, model, layer: int):
        super().__init__()
        last = model.config.get_text_config().num_hidden_layers
        self.norm = nn.Identity() if layer == last else copy.deepcopy(final_norm(model))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, T, 1, d) -> (batch, T, d)."""
        return self.norm(states[:, :, 0])


class LayerMix(nn.Module):
    """gamma * sum_l softmax(w)_l Norm_l(h_l): each layer is normalised before they are mixed; starts near the last layer."""

    def __init__(self, model, layers: tuple[int, ...]):
        super().__init__()
        self.parts = nn.ModuleList(Layer(model, layer) for layer in layers)
        self.w = nn.Parameter(torch.tensor([0.0] * (len(layers) - 1) + [START]))
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, T, layers, d) -> (batch, T, d)."""
        weights = self.gamma * self.w.softmax(0)
        return sum(weights[i] * part(states[:, :, i : i + 1]) for i, part in enumerate(self.parts))


class Concat(nn.Module):
    """A linear map of all layers side by side, each normalised; every single layer is a case of it. Starts as the last one."""

    def __init__(self, model, layers: tuple[int, ...]):
        super().__init__()
        self.parts = nn.ModuleList(Layer(model, layer) for layer in layers)
        width = model.config.get_text_config().hidden_size
        self.map = nn.Linear(len(layers) * width, width, bias=False)
        with torch.no_grad():
            self.map.weight.zero_()[:, -width:].fill_diagonal_(1.0)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, T, layers, d) -> (batch, T, d)."""
        return self.map(torch.cat([part(states[:, :, i : i + 1]) for i, part in enumerate(self.parts)], -1))


class Residual(nn.Module):
    """h + SiLU(W h + b), W = b = 0 at the start (Medusa's block)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + F.silu(self.linear(hidden))


class Block(nn.Module):
    """Transformer layers of the backbone's own kind over the states: its class with fewer layers, fresh weights but for what
    lies outside the layers (final norm, learned positions)."""

    def __init__(self, model, layers: int):
        super().__init__()
        config = copy.deepcopy(model.config.get_text_config())
        n, config.num_hidden_layers = config.num_hidden_layers, layers
        for name, value in list(vars(config).items()):
            if isinstance(value, list) and len(value) == n:  # one for each layer: their types, and the like
                setattr(config, name, value[-layers:])
        try:
            self.decoder = type(decoder(model))._from_config(config, dtype=torch.float32)
        except Exception as error:  # whatever its class asks of a configuration
            raise CannotDo(f"no block of {type(model).__name__}'s kind with {layers} layers: {first_line(error)}") from error
        theirs = {n: x for n, x in decoder(model).state_dict().items() if not re.search(r"\.\d+\.", n)}
        ours = self.decoder.state_dict()
        self.decoder.load_state_dict({n: x for n, x in theirs.items() if n in ours and ours[n].shape == x.shape}, strict=False)
        self.decoder.set_input_embeddings(nn.Identity())  # never asked
        self.train()

    def train(self, mode: bool = True) -> "Block":
        """Always in evaluation mode: without dropout, as every other head."""
        return super().train(False)

    def forward(self, hidden: torch.Tensor, cache: dict | None = None) -> torch.Tensor:
        past = {} if cache is None else {"past_key_values": cache.get("past")}
        out = self.decoder(inputs_embeds=hidden, use_cache=cache is not None, **past)
        if cache is not None:
            cache["past"] = out.past_key_values
        return out.last_hidden_state


class NextTokenMap(nn.Module):
    """q(w) = sum over v of p(v|x) T(w|v), T = softmax of learned rows: what p(.|x) alone says about a later token.

    T starts as what the backbone itself says after the single token v, so that q starts as a marginal that forgets x.
    """

    def __init__(self, model, vocabulary: int):
        super().__init__()
        tokens = torch.arange(vocabulary, device=model.device)[:, None]
        with torch.no_grad():
            rows = [model(part, use_cache=False).logits[:, -1].float().log_softmax(-1) for part in tokens.split(256)]
        self.rows = nn.Parameter(torch.cat(rows))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits.float().softmax(-1) @ self.rows.softmax(-1)).clamp_min(torch.finfo(torch.float32).tiny).log()


class Corrected(nn.Module):
    """What is learned beside an unembedding U: logits U (gamma h) + B A h + b; see HeadSpec."""

    def __init__(self, model, rank: int, unigram: bool):
        super().__init__()
        width, vocabulary = model.config.get_text_config().hidden_size, rows_of(model.get_output_embeddings())
        self.gamma = nn.Parameter(torch.tensor(0.0 if unigram else 1.0))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.A, self.B = nn.Parameter(torch.randn(rank, width) / width**0.5), nn.Parameter(torch.zeros(vocabulary, rank))

    def forward(self, hidden: torch.Tensor, unembed) -> torch.Tensor:
        """(..., d) -> logits (..., V); unembed: states to logits by U."""
        return unembed(self.gamma * hidden) + F.linear(F.linear(hidden, self.A), self.B) + self.bias


def unembedding_of(model) -> nn.Linear:
    """A head's own unembedding (V, d) with a bias, both zero."""
    found = nn.Linear(model.config.get_text_config().hidden_size, model.get_output_embeddings().weight.shape[0])
    nn.init.zeros_(found.weight)
    nn.init.zeros_(found.bias)
    return found


def cast_once(model) -> torch.nn.Module:
    """The model's LM head, for `unembed` to use several times under autocast, which casts weights that rest anew at every use:
    a copy in its type; else the LM head itself (weights that learn are cast once as it is)."""
    head = plain(model).get_output_embeddings()
    bare = isinstance(head, nn.Linear) and "forward" not in vars(head)  # no adapters, no hooks
    weight = head._parameters.get("weight") if bare else None
    rests = weight is not None and weight.dtype == torch.float32 and not weight.requires_grad and not weight.is_meta
    if not rests or not torch.is_autocast_enabled(weight.device.type):
        return head
    found, dtype = copy.copy(head), torch.get_autocast_dtype(weight.device.type)
    found._parameters = {n: p if p is None else p.to(dtype) for n, p in head._parameters.items()}
    return found


def features_of(model, spec: HeadSpec, layers: tuple[int, ...]) -> nn.Module:
    if spec.features == "mix":
        return LayerMix(model, layers)
    return Concat(model, layers) if spec.features == "concat" else Layer(model, layers[0])


def trunk_of(model, spec: HeadSpec) -> nn.Module:
    config = model.config.get_text_config()
    width, vocabulary = config.hidden_size, rows_of(model.get_output_embeddings())
    if spec.kind == "block":
        return Block(model, spec.layers)
    if spec.kind == "next_token":
        too_many = f"kind='next_token' holds vocabulary^2 weights; {vocabulary} is above {LARGEST_MAP}"
        require(vocabulary <= LARGEST_MAP, too_many, CannotDo)
        return NextTokenMap(model, vocabulary)
    if spec.kind == "residual":
        return nn.Sequential(*(Residual(width) for _ in range(spec.layers)))
    maps = [nn.Linear(width, width) for _ in range(spec.layers)]
    for one in maps:
        nn.init.eye_(one.weight)
        nn.init.zeros_(one.bias)
    return nn.Sequential(*maps)
