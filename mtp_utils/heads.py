"""Prediction heads: from a frozen backbone's hidden states to the tokens at several offsets, one head an offset.

A head is features -> trunk -> unembedding. The trunks are the usual ones: a linear map, Medusa's residual block
(arXiv 2401.10774), or a transformer layer of the backbone's own kind. Reading several layers ("weighted hidden states" in
the paper, arXiv 2502.09419) is `LayerMix` here; what the paper's are exactly is not known to us.
"""

import copy
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn
from transformers import AutoModel

from .backbones import Backbone, file_digest, final_norm, unembed, unembeds
from .records import sha256, write_atomic, write_json

KINDS = ("linear", "residual", "block", "next_token")
FEATURES = ("last", "mix", "concat")
UNEMBEDDINGS = ("shared", "copied")
LARGEST_MAP = 8192  # vocabulary up to which a head of kind next_token is built: it holds vocabulary^2 weights an offset
START = 5.0  # of the last layer's weight in LayerMix, before the softmax; the others start at 0


@dataclass(frozen=True)
class HeadSpec:
    """Which heads: the trunk's `kind` and number of `layers`, the `features` it reads, whose `unembedding`, which `offsets`.

    kind: `linear` (W h + b, W = 1 at the start), `residual` (h + SiLU(W h + b), W = b = 0 at the start, so that the head
    starts as the LM head), `block` (a transformer layer of the backbone's kind), `next_token` (a control that sees nothing
    but p(.|x): q = p T with a row-stochastic T). features: `last`, the number of any one layer (0 = embeddings), `mix` or
    `concat`. unembedding: the backbone's own, frozen (`shared`), or a trained copy of it for each offset (`copied`).

    Raises:
        ValueError: an argument outside these, naming it.
    """

    kind: str = "residual"
    features: str | int = "last"
    layers: int = 1
    unembedding: str = "shared"
    offsets: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self):
        _one_of("kind", self.kind, KINDS)
        if not isinstance(self.features, int):
            _one_of("features", self.features, FEATURES)
        _one_of("layers", self.layers, (1, 2))
        _one_of("unembedding", self.unembedding, UNEMBEDDINGS)
        if not self.offsets or min(self.offsets) < 1 or len(set(self.offsets)) < len(self.offsets):
            raise ValueError(f"offsets={self.offsets} must be different integers >= 1")
        if self.kind == "next_token" and (self.features, self.layers, self.unembedding) != ("last", 1, "shared"):
            raise ValueError("kind='next_token' sees only p(.|x): features='last', layers=1, unembedding='shared'")


class Heads(nn.Module):
    """Heads of one spec on one backbone. Trains and saves its own tensors only: the backbone's are no part of it.

    Args:
        backbone: a Backbone; nothing of it is changed, and no gradient reaches it.
        spec: which heads.
        seed: of what is initialised at random (`block`).
    """

    def __init__(self, backbone: Backbone, spec: HeadSpec, seed: int = 0):
        super().__init__()
        model = backbone.model
        self.spec, self.backbone = spec, _identity(backbone)
        n = model.config.get_text_config().num_hidden_layers
        if isinstance(spec.features, int) and not 0 <= spec.features <= n:
            raise ValueError(f"features={spec.features}: {backbone.name} has layers 0 (embeddings) to {n}")
        one = n if spec.features == "last" else spec.features
        self.layers = tuple(range(n + 1)) if spec.features in ("mix", "concat") else (one,)
        if not unembeds(model):
            raise ValueError(f"{type(model).__name__} does more than its LM head to its last state: heads on it would be wrong")
        self._model = (model,)  # in a tuple, so that its tensors are not ours
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.ModuleDict({str(k): _features(model, spec, self.layers) for k in spec.offsets})
            self.trunks = nn.ModuleDict({str(k): _trunk(model, spec) for k in spec.offsets})
        copied = spec.offsets if spec.unembedding == "copied" else ()
        self.unembeddings = nn.ModuleDict({str(k): copy.deepcopy(model.get_output_embeddings()) for k in copied})
        self.requires_grad_(True).to(device=model.device, dtype=torch.promote_types(model.dtype, torch.float32))

    @property
    def model(self):
        """The backbone's model."""
        return self._model[0]

    @property
    def vocabulary(self) -> int:
        """Tokens that a head tells apart."""
        return self.model.get_output_embeddings().weight.shape[0]

    def forward(self, states: torch.Tensor, caches: dict | None = None) -> dict[int, torch.Tensor]:
        """What each head hands to its unembedding: offset -> (batch, T, d).

        states: (batch, T, len(self.layers), d), the backbone's hidden states at `self.layers`; padding, if any, on the right
        (a causal block never sees it). caches: of a `block` head, filled by earlier calls with the positions before.
        """
        found = {}
        for k in self.spec.offsets:
            trunk, h = self.trunks[str(k)], self.features[str(k)](states)
            found[k] = trunk(h, caches.setdefault(k, {})) if isinstance(trunk, Block) and caches is not None else trunk(h)
        return found

    def log_probs(self, offset: int, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probs of the token `offset` ahead, nats, (..., vocab): the unembedding of what `forward` gave, sums to one."""
        if self.spec.kind == "next_token":
            return self.trunks[str(offset)].log_probs(unembed(self.model, hidden))
        own = self.unembeddings[str(offset)] if self.spec.unembedding == "copied" else None
        return unembed(self.model, hidden, own).float().log_softmax(-1)

    @torch.no_grad()
    def draft(self, states: torch.Tensor, caches: dict | None = None) -> torch.Tensor:
        """The most likely token at each offset after the last position: (batch, offsets) int64.

        states: of the positions not yet seen, (batch, new, len(self.layers), d); `caches`, a dict that starts empty, keeps
        what a `block` head needs of the earlier ones.
        """
        hidden = self(states, caches)
        return torch.stack([self.log_probs(k, h[:, -1]).argmax(-1) for k, h in hidden.items()], 1)

    def of(self, offset: int) -> dict[str, nn.Parameter]:
        """The parameters of one offset's head by name."""
        return {n: p for n, p in self.named_parameters() if n.split(".")[1] == str(offset)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Its tensors as numpy arrays, `heads.<name>`; `training.heads_from` reads them."""
        return {f"heads.{name}": x.detach().cpu().numpy().copy() for name, x in self.state_dict().items()}

    def mix_weights(self) -> dict[int, list[float]]:
        """softmax(w) of each offset's LayerMix, layer 0 (embeddings) first."""
        if self.spec.features != "mix":
            raise ValueError(f"features={self.spec.features!r}: only 'mix' has weights")
        return {k: self.features[str(k)].w.softmax(0).tolist() for k in self.spec.offsets}

    def save(self, folder: str | Path) -> None:
        """heads.safetensors, then heads.json with the spec, the backbone's name, revision and hash, and the file's hash."""
        data = save({name: x.contiguous() for name, x in self.state_dict().items()})
        write_atomic(Path(folder) / "heads.safetensors", data)
        content = {"spec": asdict(self.spec), "backbone": self.backbone, "sha256": sha256(data)}
        write_json(Path(folder) / "heads.json", content)


def load_heads(folder: str | Path, backbone: Backbone) -> Heads:
    """Heads saved by `Heads.save`, on the backbone they were trained on.

    Raises:
        ValueError: heads of another backbone (name, revision or weights), or a file that is not the one its JSON names.
    """
    folder = Path(folder)
    content = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
    if content["backbone"] != _identity(backbone):
        raise ValueError(f"{folder} holds heads of {content['backbone']}, not of {_identity(backbone)}")
    if file_digest(folder / "heads.safetensors") != content["sha256"]:
        raise ValueError(f"{folder}/heads.safetensors is not the file its heads.json names (sha256 differs)")
    heads = Heads(backbone, HeadSpec(**content["spec"] | {"offsets": tuple(content["spec"]["offsets"])}))
    heads.load_state_dict(load_file(folder / "heads.safetensors"))
    return heads


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
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[-layers:]
        self.decoder = AutoModel.from_config(config, dtype=torch.float32)
        theirs = {n: x for n, x in model.base_model.state_dict().items() if not re.search(r"\.\d+\.", n)}
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


def _features(model, spec: HeadSpec, layers: tuple[int, ...]) -> nn.Module:
    if spec.features == "mix":
        return LayerMix(model, layers)
    return Concat(model, layers) if spec.features == "concat" else Layer(model, layers[0])


def _trunk(model, spec: HeadSpec) -> nn.Module:
    config = model.config.get_text_config()
    width, vocabulary = config.hidden_size, model.get_output_embeddings().weight.shape[0]
    if spec.kind == "block":
        return Block(model, spec.layers)
    if spec.kind == "next_token":
        if vocabulary > LARGEST_MAP:
            raise ValueError(f"kind='next_token' holds vocabulary^2 weights; {vocabulary} is above {LARGEST_MAP}")
        return NextTokenMap(model, vocabulary)
    if spec.kind == "residual":
        return nn.Sequential(*(Residual(width) for _ in range(spec.layers)))
    maps = [nn.Linear(width, width) for _ in range(spec.layers)]
    for one in maps:
        nn.init.eye_(one.weight)
        nn.init.zeros_(one.bias)
    return nn.Sequential(*maps)


def _identity(backbone: Backbone) -> dict:
    weights, *_ = backbone.fingerprint.split()  # whatever the dtype they are held in
    return {"name": backbone.name, "revision": backbone.revision, "sha256": weights}


def _one_of(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; there are {', '.join(map(str, allowed))}")
