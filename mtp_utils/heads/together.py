"""A backbone and heads that learn together, and their losses: full fine-tuning or LoRA, the next-token loss kept in.

The backbone is copied; the base model's own tensors never change. Sampled and soft labels are the base model's.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model

from ..backbones import sharded
from ..backbones.anatomy import require_states, rows_of, unembed
from ..backbones.load import Backbone
from ..backbones.wrapped import beside_text, decoder, text_parameters
from ..base import ranks
from ..base.refusals import CannotDo, first_line, require
from ..text.offsets import labels_at, predictions_at
from .features import FrozenFeatures
from .heads import Heads
from .parts import cast_once
from .spec import HeadSpec
from .training import NUMBERS, Training, over_blocks, step_losses


@dataclass(frozen=True)
class Joint(Training):
    """How heads and backbone are trained together; `rate` is the heads', and `tokens` include the rest.

    backbone_rate: peak rate of the backbone as a multiple of the heads' largest; 0 leaves it as it is. lora: rank of the
    adapters on every linear layer (arXiv 2106.09685, by peft), 0 for full fine-tuning. rest: share of the steps, the first
    ones, in which the backbone does not learn. ntp_weight: of the next-token loss. decay: weight of offset k is decay ** (k - 2),
    1 for uniform weights. bf16: gradients in bfloat16 autocast; losses that are compared are float32 all the same.
    """

    backbone_rate: float = 0.1
    lora: int = 0
    rest: float = 0.1
    ntp_weight: float = 1.0
    decay: float = 1.0
    bf16: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name, low, high in (("rest", 0, 1), ("backbone_rate", 0, math.inf), ("lora", 0, math.inf)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [{low}, {high}]")
        if self.ntp_weight < 0 or self.decay <= 0:
            raise ValueError(f"ntp_weight={self.ntp_weight} must be >= 0 and decay={self.decay} > 0")


class Together:
    """A copy of a backbone, with adapters if asked for, and heads on it (or none); what is trained, and the best of it. shared:
    each process holds a share of every layer (sharded.py)."""

    def __init__(self, backbone: Backbone, spec: HeadSpec | None, how: Joint, shared: bool = False):
        require_one_device(backbone)
        adapted = any("lora_" in n for n, _ in backbone.model.named_parameters())
        require(not adapted, f"{backbone.name} has adapters: merge them first (peft: merge_and_unload) and give that model")
        model = copy.deepcopy(backbone.model).requires_grad_(False)
        require_states(model)  # looked up before its layers are shared out
        self.backbone, self.best = dataclasses.replace(backbone, model=model), {}
        self.heads = Heads(self.backbone, spec, how.seed).float() if spec else None
        self.adapters = with_lora(model, how.lora, how.seed) if how.lora else None
        self.states = States(decoder(model))
        if shared:
            sharded.shard(self.states, model)
        model.float()
        named = text_parameters(model)
        self.trained = {n: p for n, p in named.items() if ".lora_" in n} if how.lora else named

    @property
    def model(self):
        """The model under training."""
        return self.backbone.model

    def free(self, backbone_learns: bool) -> None:
        """Whether gradients reach the backbone."""
        for p in self.trained.values():
            p.requires_grad_(backbone_learns)

    def keep(self) -> None:
        """What is trained, as it is now, becomes the best of it."""
        self.best = {}  # let go before it is copied: it is as large as the model
        self.best = self.arrays()

    def arrays(self, copy: bool = True) -> dict[str, torch.Tensor]:
        """All that is trained: `heads.<name>`, `model.<name>`, as copies or as it lies there. All processes have to ask at once,
        the first one gets them."""
        named = {f"model.{n}": p.detach() for n, p in self.trained.items()}
        named |= {f"heads.{n}": x for n, x in (self.heads.state_dict() if self.heads else {}).items()}
        return sharded.gathered(named, copy)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that is trained, and `best.<name>`."""
        return self.arrays(copy=False) | {f"best.{n}": x for n, x in self.best.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """What `state_dict` gave."""
        self.best = {n.removeprefix("best."): x for n, x in state.items() if n.startswith("best.") and ranks.first()}
        with torch.no_grad():
            for n, p in self.trained.items():
                p.copy_(sharded.as_held(state[f"model.{n}"], p))
        if self.heads:
            self.heads.load_state_dict({n.removeprefix("heads."): x for n, x in state.items() if n.startswith("heads.")})


def require_one_device(backbone: Backbone) -> None:
    """CannotDo where the parts of a backbone lie in different places."""
    several = len(set(getattr(backbone.model, "hf_device_map", {}).values())) > 1
    require(not several, f"{backbone.name} lies on several devices: it can be measured, but not trained", CannotDo)


class States(torch.nn.Module):
    """All hidden states of a decoder, embeddings first: layers + 1 of (batch, T, d)."""

    def __init__(self, decoder: torch.nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """tokens: (batch, T) int64."""
        return self.decoder(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states


def with_lora(model, rank: int, seed: int):
    """peft's model around `model`, which gets trainable adapters of that rank on every linear layer that a text goes through, but
    the LM head."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=beside_text(model) or None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:  # peft refuses some architectures
            raise CannotDo(f"no adapters for {type(model).__name__} ({first_line(error)})") from error


def joint_losses(together: Together, features: FrozenFeatures, rows, how: Joint, backward=None) -> list[float]:
    """[NTP, each offset]: mean cross-entropies [nats/token] on some blocks; with `backward`, gradients of their weighted sum.

    One backbone pass; the logits of one head at a time, whose gradient stops at the hidden states; then the backbone once.
    """
    model, heads = together.model, together.heads
    tokens, device = features.tokens[rows].to(model.device), model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=how.bf16 and backward is not None):
        hidden = together.states(tokens)
        tops = [hidden[-1]] + ([torch.stack([hidden[i] for i in heads.layers], 2)] if heads else [])
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in tops]
        head = cast_once(model)
        found = [ntp_loss(model, leaves[0], tokens, how.ntp_weight, backward, head)]
        if heads:
            weights = tuple(how.decay ** (k - 2) for k in heads.spec.offsets)
            found += step_losses(heads, features, rows, how.labels, backward, states=leaves[1], weights=weights, head=head)
    reached = [(x, leaf.grad) for x, leaf in zip(tops, leaves, strict=True) if leaf.grad is not None]
    if backward and reached:
        torch.autograd.backward(*zip(*reached, strict=True))
    return found


def ntp_loss(model, last: torch.Tensor, tokens: torch.Tensor, weight: float, backward=None, head=None) -> float:
    """Mean next-token cross-entropy [nats/token] from the last states (batch, T, d); logits NUMBERS at a time. head: the
    LM head as cast_once gave it."""
    h, target = predictions_at(last, 1).flatten(0, 1), labels_at(tokens, 1).flatten()
    leaf, total = h.detach().requires_grad_(h.requires_grad), 0.0
    size = max(1, NUMBERS // rows_of(model.get_output_embeddings()))
    for part, wanted in zip(leaf.split(size), target.split(size), strict=True):
        loss = torch.nn.functional.cross_entropy(unembed(model, part, head).float(), wanted, reduction="sum") / len(leaf)
        total += loss.item()
        if backward and weight and loss.requires_grad:
            backward(weight * loss)
    if leaf.grad is not None:
        h.backward(leaf.grad)
    return total


def losses_on(together: Together, features: FrozenFeatures, how: Joint) -> list[float]:
    """[NTP, each offset] over all blocks of `features`, nats a token."""
    return over_blocks(lambda part: joint_losses(together, features, part, how), len(features.tokens))


def trained_backbone(base: Backbone, arrays, how: Joint, name: str) -> Backbone:
    """The backbone that `joint_training` left in stored arrays, adapters merged into its weights."""
    model = copy.deepcopy(base.model).cpu().float()
    adapters = with_lora(model, how.lora, how.seed) if how.lora else None
    state = {n.removeprefix("model."): torch.from_numpy(x) for n, x in arrays.values.items() if n.startswith("model.")}
    _, unexpected = model.load_state_dict(state, strict=False)
    if unexpected:
        raise ValueError(f"{name}: {base.name} has no {', '.join(sorted(unexpected)[:3])}")
    model = adapters.merge_and_unload() if adapters else model
    model = model.to(base.model.device, base.model.dtype).eval().requires_grad_(False)  # as the base is, to be compared with it
    return dataclasses.replace(base, name=name, model=model, revision=None, fingerprint=arrays.fingerprint)
