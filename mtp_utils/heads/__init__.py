"""Heads: from a backbone's hidden states to the tokens at several offsets; trained on stored states, or with the backbone.

spec.py says which heads there are, parts.py what they are made of; features.py stores a frozen backbone's states.
"""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    features=("FrozenFeatures", "sampled_paths"),
    heads=("Heads", "load_heads"),
    joint=("joint_training",),
    spec=("HeadSpec",),
    together=("Joint", "Together", "joint_losses", "trained_backbone"),
    training=("TRAIN_LABELS", "Training", "heads_from", "trained_heads"),
)
