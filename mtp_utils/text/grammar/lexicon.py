"""The words of the bilingual grammar, read from lexicon.json: English with its German counterparts, inflected.

Every English word has one canonical German counterpart and at most one alternative; verbs name the groups of nouns that
may be their object. Regular English forms are derived, irregular ones are written out; so are the German ones.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class Word(NamedTuple):
    """English word or phrase with its German counterparts, the canonical one first; `group` where it has one."""

    english: str
    forms: tuple
    group: str = ""


class NounForm(NamedTuple):
    """German noun: gender m, f or n; oblique = accusative and dative singular; plural "" for mass nouns."""

    gender: str
    singular: str
    oblique: str
    plural: str


class Noun(NamedTuple):
    english: str
    english_plural: str
    group: str
    forms: tuple[NounForm, ...]


class VerbForm(NamedTuple):
    """German verb: separable prefix or "", infinitive and third persons without it, whole participle, hat or ist."""

    prefix: str
    infinitive: str
    third: str
    past: str
    participle: str
    auxiliary: str


class Verb(NamedTuple):
    """frame: acc, dat, give (dative and accusative), to (a direction), that (a clause), none, or preposition+case."""

    english: str
    past: str
    participle: str
    frame: str
    objects: str
    forms: tuple[VerbForm, ...]


def _english_plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh", "ato")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def _english_past(verb: str) -> str:
    first, *rest = verb.split(" ")
    if first.endswith("y") and first[-2] not in "aeiou":
        first = first[:-1] + "i"
    return " ".join([first + ("d" if first.endswith("e") else "ed"), *rest])


def _noun(entry: str, group: str) -> Noun:
    english, german = entry.split(": ")
    single, _, plural = english.partition(", ")
    forms = []
    for form in german.split(" / "):
        nominative, *others = form.split(", ")
        article, word = nominative.split(" ")
        oblique = others[1].removeprefix("den ") if len(others) > 1 else word
        forms.append(NounForm({"der": "m", "die": "f", "das": "n"}[article], word, oblique,
                              others[0].removeprefix("die ") if others else ""))
    return Noun(single, plural or (_english_plural(single) if forms[0].plural else ""), group, tuple(forms))


def _verb(entry: str, frame: str, objects: str) -> Verb:
    english, german = entry.split(": ")
    base, *irregular = english.split(", ")
    past, participle = irregular or (_english_past(base),) * 2
    forms = []
    for form in german.split(" / "):
        infinitive, third, german_past, german_participle = form.split(", ")
        prefix, _, stem = infinitive.rpartition("|")
        auxiliary = "ist" if german_participle.startswith("ist ") else "hat"
        forms.append(VerbForm(prefix, stem, third, german_past, german_participle.removeprefix("ist "), auxiliary))
    return Verb(base, past, participle, frame, objects, tuple(forms))


def _word(entry: str, group: str = "") -> Word:
    english, german = entry.split(": ")
    return Word(english, tuple(german.split(" / ")), group)


def _adjective(entry: str) -> Word:
    """Its forms are (predicative form, stem that the endings join)."""
    english, german = entry.split(": ")
    forms = [form.split(", ") for form in german.split(" / ")]
    return Word(english, tuple((form[0], form[-1]) for form in forms))


@lru_cache(maxsize=1)
def lexicon() -> dict:
    """The words: lists of Noun, Verb, Word by name (nouns, verbs and adjectives by group as well)."""
    raw = json.loads(Path(__file__).with_name("lexicon.json").read_text(encoding="utf-8"))
    words = {name: [_word(e) for e in raw[name]] for name in
             ("around", "cities", "degrees", "comments", "numerals", "quantifiers", "possessives", "conjunctions")}
    words |= {name: raw[name] for name in ("states", "unwilled", "worn")}
    words["names"] = [Word(name, (name,)) for name in raw["names"]]
    words["pronouns"] = [_word(*p) for p in (("I: ich", "first"), ("he: er", "third"), ("she: sie", "third"),
                                             ("we: wir", "plural"), ("they: sie", "plural"))]
    words["times"] = [_word(e, group) for group, entries in raw["times"].items() for e in entries]
    words["adverbs"] = {group: [_word(e) for e in entries] for group, entries in raw["adverbs"].items()}
    words["nouns"] = {group: [_noun(e, group) for e in entries] for group, entries in raw["nouns"].items()}
    words["places"] = [(_noun(e, "place"), *key.split(" ")) for key, entries in raw["places"].items() for e in entries]
    words["verbs"] = []
    for key, entries in raw["verbs"].items():
        frame, _, objects = key.partition(" ")
        words["verbs"] += [_verb(e, frame, objects) for e in entries]
    words["adjectives"] = {}
    for key, entries in raw["adjectives"].items():
        for group in key.split(" "):
            words["adjectives"].setdefault(group, []).extend(_adjective(e) for e in entries)
    return words
