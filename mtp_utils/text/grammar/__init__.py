"""The bilingual grammar: English-German sentence pairs whose true distribution is known."""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__, translation=("Pair", "german_distribution", "next_distribution", "pairs", "sample_pair")
)
