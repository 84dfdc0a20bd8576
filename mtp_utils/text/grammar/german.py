"""The German side: gender, case, number, adjective endings, verb position, separable verbs, commas.

`take` resolves free choice: it is called once per site, in an order that does not depend on its answers, with the
options, canonical first; where there is but one option it must return that one and count no site.
"""

from collections.abc import Callable

from .derivation import Clause, NounPhrase, Phrase, Sentence
from .english import person
from .lexicon import VerbForm, Word

Take = Callable[[tuple], object]

# Endings by gender (p = plural). The articles' own are those of `strong`, but for ein- without ending (mixed).
STRONG = {"nom": {"m": "er", "f": "e", "n": "es", "p": "e"}, "acc": {"m": "en", "f": "e", "n": "es", "p": "e"},
          "dat": {"m": "em", "f": "er", "n": "em", "p": "en"}}
WEAK = {"nom": {"m": "e", "f": "e", "n": "e", "p": "en"}, "acc": {"m": "en", "f": "e", "n": "e", "p": "en"},
        "dat": {"m": "en", "f": "en", "n": "en", "p": "en"}}
MIXED = {"nom": {"m": "er", "f": "e", "n": "es", "p": "en"}, "acc": {"m": "en", "f": "e", "n": "es", "p": "en"},
         "dat": {"m": "en", "f": "en", "n": "en", "p": "en"}}
THE = {"nom": {"m": "der", "f": "die", "n": "das", "p": "die"}, "acc": {"m": "den", "f": "die", "n": "das", "p": "die"},
       "dat": {"m": "dem", "f": "der", "n": "dem", "p": "den"}}
CONTRACTED = {("in", "dem"): "im", ("in", "das"): "ins", ("an", "dem"): "am", ("an", "das"): "ans",
              ("von", "dem"): "vom", ("zu", "dem"): "zum", ("zu", "der"): "zur"}
AUXILIARIES = {"will": ("werde", "wird", "werden"), "can": ("kann", "kann", "können"),
               "must": ("muss", "muss", "müssen"), "want": ("will", "will", "wollen"),
               "should": ("soll", "soll", "sollen"), "hat": ("habe", "hat", "haben"),
               "ist": ("bin", "ist", "sind"), "war": ("war", "war", "waren")}
PERSONS = ("first", "third", "plural")
WHO = {pronoun: Word("who", (pronoun,)) for pronoun in THE["nom"].values()}


def german(sentence: Sentence, take: Take) -> str:
    """The German sentence under the choices of `take`, capitalised, with its full stop."""
    if sentence.sub is None:
        text = _main(sentence.main, take, False)
    else:
        conjunction = take(sentence.conjunction.forms)
        sub = f"{conjunction} {_subordinate(sentence.sub, take)}"
        main = _main(sentence.main, take, sentence.sub_first)
        text = f"{sub} , {main}" if sentence.sub_first else f"{main} , {sub}"
    text = text.replace(" ,", ",").replace(",,", ",").rstrip(",")
    return text[0].upper() + text[1:] + "."


def _main(clause: Clause, take: Take, taken: bool) -> str:
    """Verb second: behind the subject, behind the comment or time when one comes first (a site of free choice), or
    behind the subordinate clause when that comes first (`taken`)."""
    subject, comment, time, finite, middle, end = _parts(clause, take)
    mid = [w for w in (comment, time) if w]
    front = bool(mid) and not taken and take((True, False) if comment or clause.time_first else (False, True))
    if taken or front:
        words = [*mid[:front], finite, subject, *mid[front:]]
    else:
        words = [subject, finite, *mid]
    return " ".join([*words, *middle, *end])


def _subordinate(clause: Clause, take: Take) -> str:
    """Verb last, a separable prefix joined to it."""
    subject, comment, time, finite, middle, end = _parts(clause, take)
    verb = end[0] + finite if clause.verb and clause.tense in ("present", "past") and end else " ".join([*end, finite])
    return " ".join([subject, *(w for w in (comment, time) if w), *middle, verb])


def _parts(clause: Clause, take: Take) -> tuple:
    """(subject, comment, time, finite verb, list of the middle field, list of the right bracket)."""
    subject = _noun_phrase(clause.subject, "nom", take)
    comment, time, adverb = (take(w.forms) if w else "" for w in (clause.comment, clause.time, clause.adverb))
    indirect = _noun_phrase(clause.indirect, "dat", take) if clause.indirect else ""
    if clause.verb is None:
        quality = f"{take(clause.degree.forms)} {take(clause.quality.forms)[0]}"
        finite = _form(AUXILIARIES["ist" if clause.tense == "present" else "war"], clause)
        return subject, comment, time, finite, [w for w in (adverb, quality) if w], []
    form = take(clause.verb.forms)
    finite, end = _verb(form, clause)
    direct, prepositional = _objects(clause, take)
    company, place = (_phrase(p, take) if p else "" for p in (clause.company, clause.place))
    objects = (direct, adverb) if clause.object and clause.object.determiner == "name" else (adverb, direct)
    middle = [w for w in (indirect, *objects, company, place, prepositional) if w]
    return subject, comment, time, finite, middle, end


def _objects(clause: Clause, take: Take) -> tuple[str, str]:
    """(bare object, object with its preposition): the latter stands behind the place."""
    if clause.object is None:
        return "", ""
    preposition, _, case = clause.verb.frame.rpartition("+")
    if preposition:
        return "", _phrase(Phrase("", preposition, case, clause.object), take)
    return _noun_phrase(clause.object, "dat" if case == "dat" else "acc", take), ""


def _verb(form: VerbForm, clause: Clause) -> tuple[str, list[str]]:
    """Finite form and right bracket: separable prefix, participle or infinitive."""
    prefix = [form.prefix] if form.prefix else []
    agreement = person(clause.subject)
    if clause.tense == "past":
        plural = form.past + ("n" if form.past.endswith("e") else "en")
        return plural if agreement == "plural" else form.past, prefix
    if clause.tense == "present":
        return _form((first_person(form.infinitive), form.third, form.infinitive), clause), prefix
    if clause.tense == "perfect":
        return _form(AUXILIARIES[form.auxiliary], clause), [form.participle]
    return _form(AUXILIARIES[clause.tense], clause), [form.prefix + form.infinitive]


def first_person(infinitive: str) -> str:
    """First person singular present: gehen -> gehe, bügeln -> bügle, füttern -> füttere."""
    if infinitive.endswith("eln"):
        return infinitive[:-3] + "le"
    return infinitive[:-1] + ("e" if infinitive.endswith("rn") else "")


def _form(forms: tuple[str, str, str], clause: Clause) -> str:
    return forms[PERSONS.index(person(clause.subject))]


def _phrase(phrase: Phrase, take: Take) -> str:
    noun_phrase = _noun_phrase(phrase.noun_phrase, phrase.case, take)
    if phrase.noun_phrase.determiner == "the" and phrase.english:  # not before objects: "von dem Mädchen träumen"
        article, rest = noun_phrase.split(" ", 1)
        contracted = CONTRACTED.get((phrase.german, article))
        if contracted:
            return f"{contracted} {rest}"
    return f"{phrase.german} {noun_phrase}"


def _noun_phrase(noun_phrase: NounPhrase, case: str, take: Take) -> str:
    kind, word, adjectives, noun, plural, wearing, relative = noun_phrase
    if noun is None:
        return take(word.forms)
    form = take(noun.forms)
    gender = "p" if plural else form.gender
    article, endings = _determiner(kind, take(word.forms) if word else "", gender, case)
    words = [article] if article else []
    words += [take(a.forms)[1] + endings[case][gender] for a in adjectives]
    if plural:
        words.append(form.plural + ("n" if case == "dat" and form.plural[-1] not in "ns" else ""))
    else:
        words.append(form.singular if case == "nom" else form.oblique)
    if wearing:
        words.append("mit " + _noun_phrase(wearing, "dat", take))
    if relative:
        words += [",", _relative(relative, THE["nom"][gender], take), ","]
    return " ".join(words)


def _relative(clause: Clause, pronoun: str, take: Take) -> str:
    return _subordinate(clause._replace(subject=clause.subject._replace(word=WHO[pronoun])), take)


def _determiner(kind: str, word: str, gender: str, case: str) -> tuple[str, dict]:
    """(the article's form, the endings of the adjectives behind it)."""
    if kind == "the":
        return THE[case][gender], WEAK
    if kind in ("this", "every"):
        return {"this": "dies", "every": "jed"}[kind] + STRONG[case][gender], WEAK
    if kind in ("a", "possessive"):
        bare = gender in "mn" and case == "nom" or gender == "n" and case == "acc"
        return (word or "ein") + ("" if bare else STRONG[case][gender]), MIXED
    if kind == "quantifier" and word.endswith("e") and case == "dat":
        return word + "n", STRONG
    return word, STRONG
