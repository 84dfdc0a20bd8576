"""The English side: one sentence per derivation, in an order from which the derivation can be read back."""

from .derivation import Clause, NounPhrase, Sentence
from .lexicon import Word

BE = {"present": {"first": "am", "third": "is", "plural": "are"},
      "past": {"first": "was", "third": "was", "plural": "were"}}
AN_BEFORE, A_BEFORE = ("honest",), ("useful",)  # spelling and sound disagree


def english(sentence: Sentence) -> str:
    """The English sentence, capitalised, with its full stop."""
    main = _clause(sentence.main)
    if sentence.sub:
        sub = f"{sentence.conjunction.english} {_clause(sentence.sub)}"
        main = f"{sub}, {main}" if sentence.sub_first else f"{main} {sub}"
    return main[0].upper() + main[1:] + "."


def person(noun_phrase: NounPhrase) -> str:
    """Grammatical person that the verb agrees with: first (singular), third (singular) or plural."""
    if noun_phrase.determiner == "pronoun":
        return noun_phrase.word.group
    return "plural" if noun_phrase.plural else "third"


def _clause(clause: Clause) -> str:
    words = [clause.comment.english] if clause.comment else []
    if clause.time_first:
        words.append(clause.time.english)
    words += [_noun_phrase(clause.subject), *_predicate(clause)]
    for noun_phrase in (clause.indirect, clause.object):
        if noun_phrase:
            words.append(_noun_phrase(noun_phrase))
    for phrase in (clause.company, clause.place):
        if phrase:
            words.append(f"{phrase.english} {_noun_phrase(phrase.noun_phrase)}")
    if clause.time and not clause.time_first:
        words.append(clause.time.english)
    return " ".join(words)


def _predicate(clause: Clause) -> list[str]:
    """Auxiliary, adverb and verb, or the copula with its adjective."""
    agreement, adverb = person(clause.subject), [clause.adverb.english] if clause.adverb else []
    if clause.verb is None:
        return [BE[clause.tense][agreement], *adverb, clause.degree.english, clause.quality.english]
    verb = clause.verb
    if clause.tense == "past":
        return [*adverb, verb.past]
    if clause.tense == "present":
        return [*adverb, _present(verb.english, agreement)]
    if clause.tense == "perfect":
        return ["has" if agreement == "third" else "have", *adverb, verb.participle]
    if clause.tense == "want":
        return [_present("want", agreement), "to", *adverb, verb.english]
    return [clause.tense, *adverb, verb.english]


def _present(verb: str, agreement: str) -> str:
    if agreement != "third":
        return verb
    first, *rest = verb.split(" ")
    if first.endswith("y") and first[-2] not in "aeiou":
        first = first[:-1] + "ie"
    elif first.endswith(("s", "sh", "ch", "x", "o")):
        first += "e"
    return " ".join(["has" if first == "have" else first + "s", *rest])


def _noun_phrase(noun_phrase: NounPhrase) -> str:
    kind, word, adjectives, noun, plural, wearing, relative = noun_phrase
    if kind == "who":
        return "who"
    if noun is None:
        return word.english
    words = [*(a.english for a in adjectives), noun.english_plural if plural else noun.english]
    words = _determiner(kind, word, plural, words[0]) + words
    if wearing:
        words += ["with", _noun_phrase(wearing)]
    return " ".join([*words, _clause(relative)] if relative else words)


def _determiner(kind: str, word: Word | None, plural: bool, following: str) -> list[str]:
    if word:
        return [word.english]
    if kind == "a":
        vowel = following in AN_BEFORE or (following[0] in "aeiou" and following not in A_BEFORE)
        return ["an" if vowel else "a"]
    return {"bare": [], "this": ["these" if plural else "this"]}.get(kind, [kind])
