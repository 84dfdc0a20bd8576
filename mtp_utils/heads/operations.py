"""What training heads costs, counted from specs: multiply-adds of matrix products, the same on every machine."""

import torch

from ..backbones.anatomy import rows_of
from ..backbones.load import Backbone
from ..backbones.wrapped import decoder
from .heads import Heads
from .spec import HeadSpec
from .together import Joint
from .training import Training


def operations(backbone: Backbone, spec: HeadSpec | None, how: Training, context: int, text: int = 0) -> float:
    """Multiply-adds of one training: forward and backward passes through heads, unembeddings and, if trained together (a Joint),
    the backbone; else the forward pass that makes the states of `text` positions, once for all epochs.

    A backward pass costs a forward one for the gradient of what was read, and one more for that of weights that are learned.
    context: positions of a block (attention reads all of them). Trials, validation and element-wise work are not counted.
    """
    n, head = how.tokens, _head(backbone, spec, context) if spec else 0
    body, table = _layers(decoder(backbone.model), backbone.model.config, context), _table(backbone)
    if not isinstance(how, Joint):
        return float(min(text, n) * body + n * head)
    if how.lora:  # adapters (rank x (in + out) of every map) are learned, what they stand beside is not
        adapters = sum(how.lora * sum(p.shape) for p in _matrices(decoder(backbone.model)))
        moving = 2 * (body + bool(how.ntp_weight) * table) + 3 * adapters + (not how.ntp_weight) * table
    else:
        moving = 3 * body + (3 if how.ntp_weight else 1) * table
        moving += table * len(spec.offsets) if spec and spec.reads_backbones else 0  # by each head's loss it learns too
    resting = how.rest if how.backbone_rate else 1.0
    return float(n * (head + resting * (body + table) + (1 - resting) * moving))


def pass_operations(backbone: Backbone, context: int) -> int:
    """Multiply-adds of one token's pass through the backbone, its unembedding included, behind `context` tokens."""
    return _layers(decoder(backbone.model), backbone.model.config, context) + _table(backbone)


def draft_operations(backbone: Backbone, spec: HeadSpec, context: int) -> int:
    """Multiply-adds of what the heads of that spec add to one position's pass, unembeddings included, behind `context` tokens."""
    return sum(_parts(backbone, spec, context)) + _table(backbone) * len(spec.offsets)


def as_many_tokens(backbone: Backbone, spec: HeadSpec, how: Training, context: int, text: int, cost: float) -> int:
    """Positions on which heads on the frozen backbone can be trained for that many operations, in whole steps."""
    per_step = how.blocks * context
    body = _layers(decoder(backbone.model), backbone.model.config, context)
    n = (cost - text * body) / _head(backbone, spec, context)
    n = n if n > text else cost / (body + _head(backbone, spec, context))
    return max(1, round(n / per_step)) * per_step


def _head(backbone: Backbone, spec: HeadSpec, context: int) -> int:
    """Multiply-adds a position of heads of that spec: three times their maps, and their unembeddings' (two where those rest)."""
    unembedding = (2 if spec.reads_backbones else 3) * _table(backbone) * len(spec.offsets)
    return 3 * sum(_parts(backbone, spec, context)) + unembedding


def _parts(backbone: Backbone, spec: HeadSpec, context: int) -> tuple[int, int]:
    """Multiply-adds a position of heads' trunks, and of what they read by and correct the unembedding by."""
    heads, config = Heads(backbone, spec), backbone.model.config
    trunks = sum(_layers(x, config, context, spec.layers) if spec.kind == "block" else _weights(x) for x in heads.trunks.values())
    beside = _weights(heads.unembeddings) if spec.unembedding == "corrected" else 0
    return trunks, _weights(heads.features) + beside


def _layers(module, config, context: int, layers: int | None = None) -> int:
    """Multiply-adds a position of transformer layers: their maps, and what attention reads."""
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    n = layers or text.num_hidden_layers
    return _weights(module) + 2 * n * context * text.num_attention_heads * width


def _matrices(module) -> list[torch.Tensor]:
    """The weights that a state is multiplied by: no tables of embeddings, which are looked up."""
    tables = {id(p) for m in module.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    return [p for p in module.parameters() if p.ndim > 1 and id(p) not in tables]


def _weights(module) -> int:
    return sum(p.numel() for p in _matrices(module))


def _table(backbone: Backbone) -> int:
    """Of the unembedding, a position."""
    return rows_of(backbone.model.get_output_embeddings()) * backbone.model.config.get_text_config().hidden_size
