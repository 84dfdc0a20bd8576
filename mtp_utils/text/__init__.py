"""Texts: documents in four splits, blocks of tokens, and the positions that count. `grammar/` makes the translations.

offsets.py is the only place where predictions and labels are aligned along time.
"""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    blocks=("Blocks", "evaluation_blocks", "evaluation_text", "training_blocks"),
    corpora=("CORPORA",),
    documents=("SPLITS", "Document"),
    offsets=("labels_at", "labels_of", "predictions_at"),
)
