"""Prediction heads: from a frozen backbone's hidden states to the tokens at several offsets, one head an offset.

A head is features -> trunk -> unembedding. Reading several layers ("weighted hidden states" in the paper, arXiv 2502.09419) is
`LayerMix` here; what the paper's are exactly is not known to us.
"""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from ..backbones.anatomy import require_states, rows_of, table_of, unembed
from ..backbones.load import Backbone
from ..base.files import file_digest, sha256, write_atomic, write_json
from ..base.refusals import CannotDo, require
from .parts import Block, Corrected, features_of, trunk_of, unembedding_of
from .spec import HeadSpec, spread


class Heads(nn.Module):
    """Heads of one spec on one backbone. Trains and saves its own tensors only: the backbone's are no part of it.

    Args:
        backbone: a Backbone; nothing of it is changed, and no gradient reaches it.
        spec: which heads.
        seed: of what is initialised at random (`block`).

    Raises:
        CannotDo: a model whose states or logits are not what heads take them for, or that has no part which the spec needs.
    """

    def __init__(self, backbone: Backbone, spec: HeadSpec, seed: int = 0):
        super().__init__()
        model = backbone.model
        self.spec, self.backbone = spec, _identity(backbone)
        n = model.config.get_text_config().num_hidden_layers
        if isinstance(spec.features, int) and not 0 <= spec.features <= n:
            raise ValueError(f"features={spec.features}: {backbone.name} has layers 0 (embeddings) to {n}")
        one = n if spec.features == "last" else spec.features
        self.layers = spread(n) if spec.features in ("mix", "concat") else (one,)
        require_states(model)
        self._model = (model,)  # in a tuple, so that its tensors are not ours
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.ModuleDict({str(k): features_of(model, spec, self.layers) for k in spec.offsets})
            self.trunks = nn.ModuleDict({str(k): trunk_of(model, spec) for k in spec.offsets})
            learns = spec.reads_backbones or table_of(model) is not None
            require(learns, f"{backbone.name}'s unembedding is quantised: heads share it, or have none", CannotDo)
            makes = {"copied": lambda: copy.deepcopy(model.get_output_embeddings()), "own": lambda: unembedding_of(model)}
            makes["corrected"] = lambda: Corrected(model, spec.rank, spec.unigram)
            trained = spec.offsets if spec.unembedding in makes else ()
            self.unembeddings = nn.ModuleDict({str(k): makes[spec.unembedding]() for k in trained})
        self.requires_grad_(True).to(device=model.device, dtype=torch.promote_types(model.dtype, torch.float32))

    @property
    def model(self):
        """The backbone's model."""
        return self._model[0]

    @property
    def vocabulary(self) -> int:
        """Tokens that a head tells apart."""
        return rows_of(self.model.get_output_embeddings())

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

    def log_probs(self, offset: int, hidden: torch.Tensor, head: nn.Module | None = None) -> torch.Tensor:
        """Log-probs of the token `offset` ahead, nats, (..., vocab): the unembedding of what `forward` gave, sums to one.

        head: the backbone's LM head where that is at hand (parts.cast_once).
        """
        if self.spec.kind == "next_token":
            return self.trunks[str(offset)].log_probs(unembed(self.model, hidden, head))
        learned = self.unembeddings[str(offset)] if self.unembeddings else None
        if self.spec.unembedding == "own":
            logits = nn.functional.linear(hidden, learned.weight) + learned.bias  # not in bfloat16, under autocast
        elif self.spec.unembedding == "corrected":
            logits = learned(hidden, lambda h: unembed(self.model, h, head))
        else:
            logits = unembed(self.model, hidden, learned or head)
        return logits.float().log_softmax(-1)

    @torch.no_grad()
    def begin(self, tokens: torch.Tensor) -> None:
        """Start heads that begin so as the unigram of these tokens (one more of each counted); others stay."""
        counts = torch.bincount(tokens.flatten().cpu(), minlength=self.vocabulary) + 1.0
        for one in self.unembeddings.values() if self.spec.begins_as_unigram else ():
            one.bias.copy_((counts / counts.sum()).log())

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
        """softmax(w) of each offset's LayerMix, in the order of `layers`."""
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


def _identity(backbone: Backbone) -> dict:
    weights, *_ = backbone.fingerprint.split()  # whatever the dtype they are held in
    return {"name": backbone.name, "revision": backbone.revision, "sha256": weights}
