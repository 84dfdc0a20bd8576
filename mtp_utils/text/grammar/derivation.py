"""The derivations of the bilingual grammar: its trees, and how a random one is drawn.

A tree fixes the English sentence (english.py) and, up to free choice, the German one (german.py).
"""

import random
from typing import NamedTuple

from .lexicon import Noun, Verb, Word, lexicon

TENSES = ("present", "present", "present", "past", "past", "past", "perfect", "will", "can", "must", "want", "should")
NOT_PAST = ("present", "present", "present", "perfect", "will", "can", "must", "want", "should")
ABOUT_FUTURE = ("will", "will", "will", "can", "must", "want", "should")
ABOUT_NOW = ("present", "present", "present", "can", "must", "want", "should")
DETERMINERS = ("the",) * 8 + ("a",) * 4 + ("possessive",) * 3 + ("this", "numeral", "quantifier", "bare", "every")
COMPANY = (("with", "mit", "dat"), ("without", "ohne", "acc"), ("for", "für", "acc"))
IN_PLACES = ("the",) * 4 + ("a", "this")
PREDICABLE = ("person", "animal", "vehicle", "text", "furniture", "fabric", "dish", "building", "machine")


class NounPhrase(NamedTuple):
    """determiner: one of DETERMINERS, or name, pronoun, who (a relative pronoun). `word` is the determiner's, name's or
    pronoun's own word; `wearing` a noun phrase after "with", `relative` a clause whose subject is the pronoun."""

    determiner: str
    word: Word | None = None
    adjectives: tuple[Word, ...] = ()
    noun: Noun | None = None
    plural: bool = False
    wearing: "NounPhrase | None" = None
    relative: "Clause | None" = None


class Phrase(NamedTuple):
    """Prepositional phrase; German `case` acc or dat."""

    english: str
    german: str
    case: str
    noun_phrase: NounPhrase


class Clause(NamedTuple):
    """`verb` None is the copula with `degree` and `quality`; `time_first`: the English begins with the time."""

    subject: NounPhrase
    verb: Verb | None
    tense: str
    comment: Word | None = None
    time: Word | None = None
    time_first: bool = False
    adverb: Word | None = None
    indirect: NounPhrase | None = None
    object: NounPhrase | None = None
    company: Phrase | None = None
    place: Phrase | None = None
    degree: Word | None = None
    quality: Word | None = None


class Sentence(NamedTuple):
    """`conjunction` None: the main clause alone. `sub_first`: the subordinate clause stands before the main clause."""

    main: Clause
    conjunction: Word | None = None
    sub: Clause | None = None
    sub_first: bool = False


def draw_sentence(rng: random.Random) -> Sentence:
    """A random derivation: a main clause, in two of five with a subordinate clause before or after it."""
    u = rng.random()
    if u < 0.6:
        return Sentence(_clause(rng, TENSES))
    if u < 0.72:
        main = _that_clause(rng)
        return Sentence(main, Word("that", ("dass",)), _clause(rng, TENSES, commented=False))
    conjunction = _pick(rng, lexicon()["conjunctions"])
    open_tense = conjunction.english in ("because", "although", "while")
    past = open_tense and rng.random() < 0.5
    tenses = ("past",) if past else NOT_PAST if open_tense else ABOUT_NOW
    sub_tenses = ("past",) if past else NOT_PAST if open_tense else ("present",)
    sub_first = rng.random() < 0.4
    main = _clause(rng, tenses, commented=False)
    sub = _clause(rng, sub_tenses, commented=False)
    return Sentence(main, conjunction, sub if open_tense else sub._replace(adverb=None), sub_first)


def _pick(rng: random.Random, options):
    return options[int(rng.random() * len(options))]


def _that_clause(rng: random.Random) -> Clause:
    verb = _pick(rng, [v for v in lexicon()["verbs"] if v.frame == "that"])
    return Clause(_subject(rng, modified=False), verb, _pick(rng, ("present", "past")))


def _clause(rng: random.Random, tenses: tuple[str, ...], commented: bool = True) -> Clause:
    """A clause in one of the tenses; `commented`: a comment ("unfortunately") or a time may come first."""
    time = _pick(rng, lexicon()["times"]) if rng.random() < 0.45 else None
    tense = _tense(rng, tenses, time)
    if tense is None:  # this time does not go with the tenses asked for
        time, tense = None, _pick(rng, tenses)
    comment = _pick(rng, lexicon()["comments"]) if commented and rng.random() < 0.15 else None
    first = bool(time and commented and not comment and rng.random() < 0.5)
    if rng.random() < 0.1 and tense in ("present", "past") and tenses != ("present",):
        return _description(rng, tense)._replace(comment=comment)
    return _event(rng, tense)._replace(comment=comment, time=time, time_first=first)


def _tense(rng: random.Random, tenses: tuple[str, ...], time: Word | None) -> str | None:
    allowed = {"past": ("past",), "future": ABOUT_FUTURE, "present": ABOUT_NOW}.get(time.group if time else "")
    fitting = [t for t in tenses if (allowed is None or t in allowed) and not (time and t == "perfect")]
    return _pick(rng, fitting) if fitting else None


def _description(rng: random.Random, tense: str) -> Clause:
    """Subject, copula, degree, adjective."""
    subject = _noun_phrase(rng, (_pick(rng, PREDICABLE),), ("the", "the", "this", "possessive"))
    quality = _pick(rng, lexicon()["adjectives"][subject.noun.group])
    return Clause(subject, None, tense, degree=_pick(rng, lexicon()["degrees"]), quality=quality)


def _event(rng: random.Random, tense: str, subject: NounPhrase | None = None) -> Clause:
    """Subject, verb and what its frame asks for, with adverbials."""
    verb = _pick(rng, lexicon()["verbs"])
    while verb.frame == "that" or (tense == "past" and verb.past == verb.english):  # "they read" would be two tenses
        verb = _pick(rng, lexicon()["verbs"])
    frame, slots = verb.frame, {}
    if frame == "give":
        slots["indirect"] = _person(rng)
    if verb.objects:
        slots["object"] = _person(rng) if verb.objects == "person" else _noun_phrase(rng, verb.objects.split(" "))
    if frame == "to":
        slots["place"] = _direction(rng)
    elif rng.random() < {"none": 0.75, "alone": 0}.get(frame, 0.3) and verb.english not in lexicon()["states"]:
        slots["place"] = _place(rng)
    if rng.random() < 0.12 and frame != "alone" and verb.english not in lexicon()["states"]:
        slots["company"] = Phrase(*_pick(rng, COMPANY if frame == "acc" else COMPANY[:2]), _person(rng))
    if rng.random() < 0.35:
        willed = verb.english not in lexicon()["states"] + lexicon()["unwilled"]
        manner = willed and frame in ("acc", "give", "to")
        slots["adverb"] = _pick(rng, lexicon()["adverbs"]["manner" if manner and rng.random() < 0.5 else "all"])
    return Clause(subject or _subject(rng), verb, tense, **slots)


def _subject(rng: random.Random, modified: bool = True) -> NounPhrase:
    """A pronoun, a name, or persons, who may wear something or do something in a relative clause."""
    u = rng.random()
    if u < 0.16:
        return NounPhrase("pronoun", _pick(rng, lexicon()["pronouns"]))
    subject = _person(rng)
    if modified and subject.noun and u < 0.27 and not subject.plural:
        return subject._replace(wearing=_worn(rng))
    if modified and subject.noun and u < 0.37:
        tense = _pick(rng, ("present", "past"))
        relative = _event(rng, tense, NounPhrase("who", plural=subject.plural))
        return subject._replace(relative=relative._replace(adverb=None, company=None))
    return subject


def _worn(rng: random.Random) -> NounPhrase:
    nouns = lexicon()["nouns"]
    worn = [n for n in nouns["clothing"] + nouns["fabric"] if n.english in lexicon()["worn"]]
    return _determined(rng, _pick(rng, worn), ("the", "a"), 0.5, 0)


def _person(rng: random.Random) -> NounPhrase:
    if rng.random() < 0.15:
        return NounPhrase("name", _pick(rng, lexicon()["names"]))
    return _noun_phrase(rng, ("person",))


def _noun_phrase(rng: random.Random, groups, determiners=DETERMINERS, plural: float = 0.25) -> NounPhrase:
    return _determined(rng, _pick(rng, lexicon()["nouns"][_pick(rng, groups)]), determiners, 0.5, plural)


def _determined(rng: random.Random, noun: Noun, determiners, modified: float, plural: float) -> NounPhrase:
    """A noun phrase with one of the determiners; `modified`, `plural`: the rates of an adjective and of the plural where
    the determiner leaves it open."""
    words = lexicon()
    determiner = _pick(rng, determiners)
    if not noun.english_plural:
        determiner = determiner if determiner in ("the", "possessive") else "bare"
    word = {"possessive": "possessives", "numeral": "numerals", "quantifier": "quantifiers"}.get(determiner)
    many = bool(noun.english_plural) and (determiner in ("numeral", "quantifier", "bare") or (
        determiner in ("the", "possessive", "this") and rng.random() < plural))
    adjectives = (_pick(rng, words["adjectives"][noun.group]),) if rng.random() < modified else ()
    return NounPhrase(determiner, _pick(rng, words[word]) if word else None, adjectives, noun, many)


def _place(rng: random.Random) -> Phrase:
    """Where: "in Berlin", "behind the old house"."""
    if rng.random() < 0.15:
        return Phrase("in", "in", "dat", NounPhrase("name", _pick(rng, lexicon()["cities"])))
    noun, english, german = _pick(rng, lexicon()["places"])
    if rng.random() < 0.15:
        around = _pick(rng, lexicon()["around"])
        english, german = around.english, around.forms[0]
    return Phrase(english, german, "dat", _determined(rng, noun, IN_PLACES, 0.3, 0.08))


def _direction(rng: random.Random) -> Phrase:
    """Whither: "to Berlin", "to the station", "into the garden"."""
    if rng.random() < 0.25:
        return Phrase("to", "nach", "dat", NounPhrase("name", _pick(rng, lexicon()["cities"])))
    noun, english, _ = _pick(rng, lexicon()["places"])
    into = english == "in" and rng.random() < 0.5
    noun_phrase = _determined(rng, noun, IN_PLACES, 0.3, 0.08)
    return Phrase("into", "in", "acc", noun_phrase) if into else Phrase("to", "zu", "dat", noun_phrase)
