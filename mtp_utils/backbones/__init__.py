"""Backbones: pretrained decoders of the embedded ladder, of a directory or of the hub, and how the ladder was pre-trained.

`ladder/` holds the embedded models with their cards; `python -m mtp_utils.backbones.pretrain` makes them again from nothing.
"""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    anatomy=("final_norm", "unembed"),
    load=("Backbone", "available_backbones", "load_backbone"),
)
