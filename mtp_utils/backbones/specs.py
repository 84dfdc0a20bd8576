"""The models of the ladder: their shapes, their objectives, and the attention they are trained with on a CPU."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, GPTNeoXConfig, GPTNeoXForCausalLM

from ..text.offsets import labels_at, predictions_at

VOCABULARY = 1024
LAYERS, HEADS = 6, 4
MTP_HORIZON = 4


@dataclass(frozen=True)
class Spec:
    """One model to train. objective: `ntp`; `mtp` (offsets 1..4, one residual head each beyond the first, mean loss);
    `offset2` (the LM head itself trained on the token after next)."""

    name: str
    width: int
    seed: int = 0
    objective: str = "ntp"


WIDTHS = (16, 32, 64, 128, 256)
SPECS = {
    s.name: s
    for s in (
        *(Spec(f"w{w}", w) for w in WIDTHS),
        *(Spec(f"w{w}-seed{i}", w, i) for w in WIDTHS[:3] for i in (1, 2)),
        Spec("w128-mtp", 128, objective="mtp"),
        Spec("w128-offset2", 128, objective="offset2"),
        Spec("w128-seed1", 128, 1),  # a second pre-training run of w128 and of both twins
        Spec("w128-mtp-seed1", 128, 1, "mtp"),
        Spec("w128-offset2-seed1", 128, 1, "offset2"),
    )
}


def blocked_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, block=64, **unused):
    """Causal attention for training on a CPU: each block of queries meets the keys up to its own end, in plain products.

    [measured] 1.3 to 1.9 times the tokens per second of transformers' eager attention at this context and these widths,
    whose backward pass in turn beats the CPU's flash kernel. (batch, heads, T, D) -> (batch, T, heads, D). The training
    stream has no padding, so `attention_mask` holds nothing but causality.
    """
    batch, heads, length, _ = query.shape
    dtype = torch.bfloat16 if torch.is_autocast_enabled(query.device.type) else query.dtype
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (x.to(dtype).flatten(0, 1) for x in (query * scaling, key, value))
        outputs = []
        for a in range(0, length, block):
            b = min(a + block, length)
            hidden = torch.full((b, b), -torch.inf, dtype=dtype).triu(1)[a:]
            scores = torch.baddbmm(hidden.expand(len(q), -1, -1), q[:, a:b], k[:, :b].mT)
            outputs.append(scores.softmax(-1) @ v[:, :b])
        return torch.cat(outputs, 1).unflatten(0, (batch, heads)).transpose(1, 2).contiguous(), None


BLOCKED = "mtp_blocked"
AttentionInterface.register(BLOCKED, blocked_attention)


class MTPHeads(torch.nn.Module):
    """Residual heads of the twin: h + SiLU(W h), W zero at the start (Medusa's block), unembedded by the LM head."""

    def __init__(self, width: int):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(MTP_HORIZON - 1))
        for block in self.blocks:
            torch.nn.init.zeros_(block.weight)

    def forward(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        return [hidden + F.silu(block(hidden)) for block in self.blocks]


def build(spec: Spec) -> torch.nn.ModuleDict:
    """The model with its heads (only the `mtp` twin has any), initialised from the seed."""
    torch.manual_seed(spec.seed)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=spec.width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * spec.width,
        max_position_embeddings=2048,
        rotary_pct=1.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    parts = {"model": GPTNeoXForCausalLM(config)}
    if spec.objective == "mtp":
        parts["heads"] = MTPHeads(spec.width)
    return torch.nn.ModuleDict(parts)


def loss_of(parts: torch.nn.ModuleDict, ids: torch.Tensor, objective: str) -> torch.Tensor:
    """Mean cross-entropy in nats of (batch, CONTEXT) ids under the objective."""
    hidden = parts["model"].base_model(input_ids=ids, use_cache=False).last_hidden_state
    states = (
        {1: hidden}
        if objective == "ntp"
        else {2: hidden}
        if objective == "offset2"
        else {k: h for k, h in enumerate([hidden, *parts["heads"](hidden)], start=1)}
    )
    unembed = parts["model"].get_output_embeddings()
    losses = [
        F.cross_entropy(unembed(predictions_at(h, k)).flatten(0, 1).float(), labels_at(ids, k).flatten())
        for k, h in states.items()
    ]
    return torch.stack(losses).mean()
