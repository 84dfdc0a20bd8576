"""The bilingual grammar: English-German sentence pairs and their true distribution.

A pair is a derivation (derivation.py), drawn at random, with its one English sentence and one of its German sentences. At
each of at most MAX_SITES sites of the German sentence, independently, the alternative (a synonym, another place for the
time or comment) is taken with probability `choice`, else the canonical word or order; so at choice 0 the German is a
function of the English. Equal English means equal distribution, so p(German | English) is `german_distribution`.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path

from .derivation import Clause, Sentence, draw_sentence
from .english import english as english_of
from .german import Take
from .german import german as german_of

MAX_SITES = 8
HELD_OUT = 0.04  # of the combinations
SOURCES = ("translation.py", "derivation.py", "lexicon.py", "lexicon.json", "english.py", "german.py")


@dataclass(frozen=True)
class Pair:
    """A sentence pair. `combination`: the English "verb+noun" of each clause, blank between; `tree`: the derivation."""

    english: str
    german: str
    combination: str
    tree: Sentence = field(repr=False)


def sample_pair(rng: random.Random, choice: float) -> Pair:
    """A random pair at the rate `choice` of free choice, in [0, 1]; trees of more than MAX_SITES sites are redrawn.

    The calls of `rng` do not depend on `choice`: the same seed gives the same English at every rate.
    """
    if not 0 <= choice <= 1:
        raise ValueError(f"the rate of free choice is a probability, not {choice}")

    def alternative() -> bool:
        return rng.random() < choice

    while True:
        tree, sites = draw_sentence(rng), []
        german = german_of(tree, _taker(alternative, sites))
        if len(sites) <= MAX_SITES:
            return Pair(english_of(tree), german, " ".join(_combinations(tree)), tree)


def pairs(n: int, seed: int, choice: float) -> list[Pair]:
    """`n` random pairs, the same for the same arguments."""
    rng = random.Random(seed)
    return [sample_pair(rng, choice) for _ in range(n)]


def split_of(pair: Pair) -> str:
    """pretrain, heads, validation or test (80, 8, 4, 8 %) by hash of the English sentence.

    A pair with a combination whose hash lies in the held-out HELD_OUT is in validation or test, whatever its sentence.
    """
    u = _unit("sentence/" + pair.english)
    if any(_unit("combination/" + c) < HELD_OUT for c in pair.combination.split(" ")):
        return "validation" if u < 1 / 3 else "test"
    return "pretrain" if u < 0.80 else "heads" if u < 0.88 else "validation" if u < 0.92 else "test"


def german_distribution(pair: Pair, choice: float) -> list[tuple[str, float]]:
    """p(German | English of the pair): every German sentence of positive probability with it; they sum to 1.

    All combinations of the sites' alternatives, at most 2**MAX_SITES; of the pair, only `pair.tree` is used.
    """
    return list(_distribution(pair.tree, choice))


@lru_cache(maxsize=4096)
def _distribution(tree: Sentence, choice: float) -> tuple[tuple[str, float], ...]:
    sites = []
    german_of(tree, _taker(lambda: False, sites))
    found: dict[str, float] = {}
    for bits in product((False, True) if choice else (False,), repeat=len(sites)):
        weight = choice ** sum(bits) * (1 - choice) ** (len(bits) - sum(bits))
        if weight:
            text = german_of(tree, _taker(iter(bits).__next__, []))
            found[text] = found.get(text, 0.0) + weight
    return tuple(found.items())


def next_distribution(alternatives: list[tuple[str, float]], prefix: str) -> list[tuple[str, float]]:
    """The distribution of what follows `prefix`: (rest of the sentence, probability given the prefix), summing to 1.

    Raises ValueError if no alternative begins with `prefix`.
    """
    rest = [(text[len(prefix):], p) for text, p in alternatives if text.startswith(prefix)]
    total = sum(p for _, p in rest)
    if not total:
        raise ValueError(f"no alternative begins with {prefix!r}")
    return [(text, p / total) for text, p in rest]


def fingerprint() -> str:
    """sha256 of everything that the pairs depend on: the modules and the lexicon."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def _taker(alternative: Callable[[], bool], sites: list) -> Take:
    """A `take` for german.py that asks `alternative` at each site and appends its answer to `sites`."""

    def take(options: tuple):
        if len(options) == 1:
            return options[0]
        sites.append(alternative())
        return options[sites[-1]]
    return take


def _combinations(tree: Sentence) -> list[str]:
    """ "verb+noun" of every clause: its object's noun, else its place's, else its subject's; the main clause first."""
    clauses = [c for c in (tree.main, tree.sub) if c]
    clauses += [c.subject.relative for c in clauses if c.subject.relative]
    return [_combination(c) for c in clauses]


def _combination(clause: Clause) -> str:
    verb = clause.verb.english if clause.verb else clause.quality.english
    phrases = (clause.object, clause.place and clause.place.noun_phrase, clause.subject)
    nouns = [p.noun.english if p.noun else p.word.english for p in phrases if p and (p.noun or p.word)]
    return f"{verb}+{nouns[0] if nouns else 'who'}".replace(" ", "_")


def _unit(text: str) -> float:
    """A number in [0, 1) fixed by the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13
