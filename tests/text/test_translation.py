"""The bilingual grammar: German that is right, a distribution that is the sampler's, splits that hold words apart."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from mtp_utils.text.grammar import derivation as grammar
from mtp_utils.text.grammar import translation
from mtp_utils.text.grammar.derivation import Clause, NounPhrase, Phrase, Sentence
from mtp_utils.text.grammar.english import english
from mtp_utils.text.grammar.lexicon import Word, lexicon
from mtp_utils.text.grammar.translation import german_distribution, next_distribution, pairs, sample_pair, split_of

LEXICON = lexicon()
NOUNS = {n.english: n for group in LEXICON["nouns"].values() for n in group}
NOUNS |= {noun.english: noun for noun, _, _ in LEXICON["places"]}
VERBS = {v.english: v for v in LEXICON["verbs"]}
WORDS = {w.english: w for name in ("conjunctions", "comments", "times", "degrees", "names", "cities", "pronouns",
                                   "numerals", "quantifiers", "possessives") for w in LEXICON[name]}
WORDS |= {w.english: w for words in (LEXICON["adverbs"] | LEXICON["adjectives"]).values() for w in words}
WORDS["that"] = Word("that", ("dass",))


def np(text: str, plural: bool = False, **more) -> NounPhrase:
    """Noun phrase from "determiner adjective noun" ("-" for none), a name or a pronoun; nouns in the singular."""
    if text in ("I", "he", "she", "we", "they"):
        return NounPhrase("pronoun", WORDS[text])
    if " " not in text:
        return NounPhrase("name", WORDS[text])
    determiner, *adjectives, noun = text.replace("an ", "a ", text.startswith("an ")).split(" ")
    word = WORDS.get(determiner)
    kinds = [k for k in ("possessives", "numerals", "quantifiers") if word in LEXICON[k]]
    kind = kinds[0].removesuffix("s") if kinds else determiner if determiner != "-" else "bare"
    return NounPhrase(kind, word, tuple(WORDS[a] for a in adjectives), NOUNS[noun], plural, **more)


def many(text: str) -> NounPhrase:
    return np(text, plural=True)


def clause(subject, verb: str, tense: str = "present", obj=None, **more) -> Clause:
    """Clause from texts; words of the closed classes by their English."""
    words = {k: WORDS[v] if isinstance(v, str) else v for k, v in more.items()}
    return Clause(np(subject) if isinstance(subject, str) else subject, VERBS.get(verb), tense,
                  object=np(obj) if isinstance(obj, str) else obj, **words)


def alone(*arguments, **more) -> Sentence:
    return Sentence(clause(*arguments, **more))


def at(english_preposition: str, german: str, case: str, noun_phrase) -> Phrase:
    return Phrase(english_preposition, german, case, np(noun_phrase) if isinstance(noun_phrase, str) else noun_phrase)


GOLD = [
    # adjective endings: weak, mixed, strong; nominative, accusative, dative; singular, plural
    (alone("the old man", "repair", obj="the old car"), "The old man repairs the old car.",
     "Der alte Mann repariert das alte Auto."),
    (alone("an old man", "buy", "past", "a red car"), "An old man bought a red car.",
     "Ein alter Mann kaufte ein rotes Auto."),
    (alone("a young woman", "see", obj="a young man"), "A young woman sees a young man.",
     "Eine junge Frau sieht einen jungen Mann."),
    (alone("the woman", "see", "past", "the big dog"), "The woman saw the big dog.", "Die Frau sah den großen Hund."),
    (alone("I", "help", obj="the old woman"), "I help the old woman.", "Ich helfe der alten Frau."),
    (alone("he", "help", obj="a sick child"), "He helps a sick child.", "Er hilft einem kranken Kind."),
    (alone("we", "drink", obj="- cold milk"), "We drink cold milk.", "Wir trinken kalte Milch."),
    (alone("she", "drink", "past", "- cold wine"), "She drank cold wine.", "Sie trank kalten Wein."),
    (alone("they", "drink", "past", "- cold beer"), "They drank cold beer.", "Sie tranken kaltes Bier."),
    (alone("my old uncle", "wear", obj="his new hat"), "My old uncle wears his new hat.",
     "Mein alter Onkel trägt seinen neuen Hut."),
    (alone("our child", "see", obj="this big house"), "Our child sees this big house.",
     "Unser Kind sieht dieses große Haus."),
    (alone("every young boy", "love", obj="her big dog"), "Every young boy loves her big dog.",
     "Jeder junge Junge liebt ihren großen Hund."),
    (alone(many("the young man"), "read", obj=many("three long book")), "The young men read three long books.",
     "Die jungen Männer lesen drei lange Bücher."),
    (alone(many("many young student"), "help", "past", many("the old neighbour")),
     "Many young students helped the old neighbours.", "Viele junge Studenten halfen den alten Nachbarn."),
    (alone("Peter", "thank", "past", many("four old friend")), "Peter thanked four old friends.",
     "Peter dankte vier alten Freunden."),
    (alone("Anna", "thank", obj=many("several friend")), "Anna thanks several friends.", "Anna dankt mehreren Freunden."),
    (alone(many("my old friend"), "love", obj=many("- small cat")), "My old friends love small cats.",
     "Meine alten Freunde lieben kleine Katzen."),
    (alone(many("this red car"), "", degree="very", quality="expensive"), "These red cars are very expensive.",
     "Diese roten Autos sind sehr teuer."),
    (alone("she", "buy", obj="an expensive lamp"), "She buys an expensive lamp.",
     "Sie kauft eine teure Lampe."),
    (alone("the house", "", "past", degree="too", quality="dark"), "The house was too dark.", "Das Haus war zu dunkel."),
    (alone("they", "congratulate", "perfect", "Anna", adverb="always"), "They have always congratulated Anna.",
     "Sie haben Anna immer gratuliert."),
    (alone("she", "repair", "want", "the radio", adverb="secretly"), "She wants to secretly repair the radio.",
     "Sie will heimlich das Radio reparieren."),
    # nouns of the n-declension, dative plural
    (alone("the student", "see", obj="the student"), "The student sees the student.", "Der Student sieht den Studenten."),
    (alone("the boy", "follow", "perfect", "the bear"), "The boy has followed the bear.", "Der Junge ist dem Bären gefolgt."),
    (alone("Maria", "give", indirect=many("the child"), obj=many("- new ball")), "Maria gives the children new balls.",
     "Maria gibt den Kindern neue Bälle."),
    # separable verbs, the verb bracket
    (alone("he", "open", obj="the window"), "He opens the window.", "Er macht das Fenster auf."),
    (alone("the teacher", "switch off", "past", "the old lamp"), "The teacher switched off the old lamp.",
     "Der Lehrer schaltete die alte Lampe aus."),
    (alone("the teacher", "open", "perfect", "the door"), "The teacher has opened the door.",
     "Der Lehrer hat die Tür aufgemacht."),
    (alone("I", "open", "must", "the door"), "I must open the door.", "Ich muss die Tür aufmachen."),
    (alone("they", "get up", "perfect"), "They have got up.", "Sie sind aufgestanden."),
    (alone("she", "repair", "want", "the bicycle"), "She wants to repair the bicycle.", "Sie will das Fahrrad reparieren."),
    # prepositions with their case, contracted with the article or not
    (alone("Paul", "work", place=at("in", "in", "dat", "the old garden")), "Paul works in the old garden.",
     "Paul arbeitet im alten Garten."),
    (alone("Paul", "work", place=at("in", "in", "dat", "a big city")), "Paul works in a big city.",
     "Paul arbeitet in einer großen Stadt."),
    (alone("I", "go", place=at("into", "in", "acc", "the house")), "I go into the house.", "Ich gehe ins Haus."),
    (alone("we", "drive", "past", place=at("to", "zu", "dat", "the station")), "We drove to the station.",
     "Wir fuhren zum Bahnhof."),
    (alone("she", "run", place=at("to", "zu", "dat", "the school")), "She runs to the school.", "Sie läuft zur Schule."),
    (alone("Lukas", "sing", company=at("with", "mit", "dat", many("two young singer"))), "Lukas sings with two young singers.",
     "Lukas singt mit zwei jungen Sängerinnen."),
    (alone("Lukas", "sing", company=at("without", "ohne", "acc", "his small dog")), "Lukas sings without his small dog.",
     "Lukas singt ohne seinen kleinen Hund."),
    (alone("the girl", "wait for", obj="the bus", place=at("in", "in", "dat", "the city")),
     "The girl waits for the bus in the city.", "Das Mädchen wartet in der Stadt auf den Bus."),
    (alone("the girl", "look after", "past", "the horse"), "The girl looked after the horse.",
     "Das Mädchen passte auf das Pferd auf."),
    (alone("he", "dream of", obj="the king"), "He dreams of the king.", "Er träumt von dem König."),
    # verb second: inversion, order of the middle field
    (alone("the man", "wash", "past", "the bus", time="yesterday", time_first=True), "Yesterday the man washed the bus.",
     "Gestern wusch der Mann den Bus."),
    (alone("the man", "wash", "past", "the bus", time="yesterday", adverb="quickly"),
     "The man quickly washed the bus yesterday.", "Der Mann wusch gestern schnell den Bus."),
    (alone("she", "open", obj="the door", comment="unfortunately,", time="today"), "Unfortunately, she opens the door today.",
     "Leider macht sie heute die Tür auf."),
    # subordinate clauses: verb last, commas, inversion behind them
    (Sentence(clause("he", "wake up"), WORDS["because"], clause("she", "open", obj="the window")),
     "He wakes up because she opens the window.", "Er wacht auf, weil sie das Fenster aufmacht."),
    (Sentence(clause("she", "say", "past"), WORDS["that"], clause("he", "write", "perfect", "the letter", adverb="already")),
     "She said that he has already written the letter.", "Sie sagte, dass er schon den Brief geschrieben hat."),
    (Sentence(clause("Clara", "stay", place=at("in", "in", "dat", "Vienna")), WORDS["if"],
              clause("Felix", "work", "must", time="tomorrow")),
     "Clara stays in Vienna if Felix must work tomorrow.", "Clara bleibt in Wien, wenn Felix morgen arbeiten muss."),
    (Sentence(clause("the cat", "sleep", "past"), WORDS["although"],
              clause("the dog", "", "past", degree="very", quality="hungry"), True),
     "Although the dog was very hungry, the cat slept.", "Obwohl der Hund sehr hungrig war, schlief die Katze."),
    (Sentence(clause("I", "close", obj="the door", time="now"), WORDS["while"], clause("they", "listen to", obj="Julia"), True),
     "While they listen to Julia, I close the door now.", "Während sie Julia zuhören, mache ich jetzt die Tür zu."),
    # relative clauses and attributes of the subject
    (alone(np("the woman", relative=clause(NounPhrase("who"), "live", place=at("in", "in", "dat", "Cologne"))), "paint", "past",
           "a tree", time="yesterday", time_first=True), "Yesterday the woman who lives in Cologne painted a tree.",
     "Gestern malte die Frau, die in Köln wohnt, einen Baum."),
    (alone(np("the man", relative=clause(NounPhrase("who"), "switch on", obj="the radio")), "sleep"),
     "The man who switches on the radio sleeps.", "Der Mann, der das Radio einschaltet, schläft."),
    (alone(np("the girl", wearing=np("a red jacket")), "dance"), "The girl with a red jacket dances.",
     "Das Mädchen mit einer roten Jacke tanzt."),
]


def pair_of(tree: Sentence) -> translation.Pair:
    return translation.Pair(english(tree), "", "", tree)


@pytest.mark.parametrize(("tree", "source", "canonical"), GOLD, ids=[g[1] for g in GOLD])
def test_canonical_german(tree, source, canonical):
    assert english(tree) == source
    assert german_distribution(pair_of(tree), 0.0) == [(canonical, 1.0)]


def test_articles_pronouns_and_endings_follow_the_synonyms_gender():
    tree = alone("he", "see", "past", "a big car", time="yesterday", time_first=True)
    found = dict(german_distribution(pair_of(tree), 0.25))
    assert found["Gestern sah er ein großes Auto."] == pytest.approx(0.75**3)
    assert found["Er erblickte gestern einen großen Wagen."] == pytest.approx(0.25**3)
    assert len(found) == 8


@pytest.mark.parametrize("choice", [0.0, 0.25, 0.5, 1.0])
def test_probabilities_sum_to_one_over_distinct_sentences_that_hold_the_drawn_one(choice):
    for pair in pairs(200, 3, choice):
        found = german_distribution(pair, choice)
        assert sum(p for _, p in found) == pytest.approx(1, abs=1e-12)
        assert len(dict(found)) == len(found) <= 2**translation.MAX_SITES
        assert dict(found)[pair.german] > 0
        assert len(found) == 1 or 0 < choice < 1


def test_sampler_draws_from_the_enumerated_distribution():
    """Chi-square of the drawn sentences' ranks by probability; 5 sigma of its normal approximation: false alarm < 1e-5."""
    choice, statistic, freedom, rng = 0.25, 0.0, 0, random.Random(5)
    trees = [p.tree for p in pairs(400, 6, choice) if len(german_distribution(p, choice)) in (2, 4, 8)][:20]
    for tree in trees:
        expected = dict(german_distribution(pair_of(tree), choice))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(translation, "draw_sentence", lambda _, tree=tree: tree)
            drawn = Counter(sample_pair(rng, choice).german for _ in range(2000))
        assert set(drawn) <= set(expected)
        statistic += sum((drawn[text] - 2000 * p) ** 2 / (2000 * p) for text, p in expected.items())
        freedom += len(expected) - 1
    assert freedom > 40
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def test_prefix_conditions_the_distribution():
    tree = alone("he", "see", "past", "a big car", time="yesterday", time_first=True)
    alternatives = german_distribution(pair_of(tree), 0.25)
    rest = dict(next_distribution(alternatives, "Gestern sah er ein"))
    assert rest == pytest.approx({" großes Auto.": 0.75, "en großen Wagen.": 0.25})
    with pytest.raises(ValueError, match="no alternative"):
        next_distribution(alternatives, "Heute")


@pytest.fixture(scope="module")
def drawn():
    return pairs(20_000, 7, 0.5)


def test_equal_english_means_equal_distribution(drawn):
    assert _ambiguous(drawn)[0] == 0


def test_english_can_be_read_back_even_with_one_word_of_each_kind(monkeypatch):
    """A lexicon of one word a kind makes equal sentences frequent: none may come from two derivations."""
    small = {k: v[:1] for k, v in LEXICON.items() if isinstance(v, list)}
    small |= {"states": ["love"], "unwilled": ["see"], "worn": ["hat"]}
    small |= {k: {group: words[:1] for group, words in v.items()} for k, v in LEXICON.items() if isinstance(v, dict)}
    small["times"] = [next(w for w in LEXICON["times"] if w.group == g) for g in ("past", "future", "present", "any")]
    small["verbs"] = [VERBS[v] for v in ("read", "love", "help", "wait for", "give", "go", "say", "live", "get up")]
    monkeypatch.setattr(grammar, "lexicon", lambda: small)
    ambiguous, repeated = _ambiguous(pairs(10_000, 8, 0.0))
    assert repeated > 200
    assert ambiguous == 0


def _ambiguous(drawn) -> tuple[int, int]:
    """(English sentences with several derivations, repetitions of an English sentence)."""
    trees: dict[str, set] = {}
    for pair in drawn:
        trees.setdefault(pair.english, set()).add(pair.tree)
    return sum(len(found) > 1 for found in trees.values()), len(drawn) - len(trees)


def test_same_seed_gives_the_same_pairs_and_the_same_english_at_every_rate():
    assert pairs(200, 4, 0.5) == pairs(200, 4, 0.5)
    assert pairs(200, 4, 0.5) != pairs(200, 5, 0.5)
    assert [p.english for p in pairs(200, 4, 0.0)] == [p.english for p in pairs(200, 4, 0.5)]


def test_rate_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="probability"):
        sample_pair(random.Random(0), 1.5)


def test_splits_have_their_shares_and_no_combination_of_a_clause_crosses(drawn):
    splits = [split_of(p) for p in drawn]
    shares = Counter(splits)
    trained = {c for p, s in zip(drawn, splits, strict=True) if s in ("pretrain", "heads") for c in p.combination.split(" ")}
    held_out = {c for p in drawn for c in p.combination.split(" ") if translation._unit("combination/" + c) < 0.04}
    assert len(held_out) > 100
    assert not trained & held_out
    assert 0.74 < shares["pretrain"] / len(drawn) < 0.79
    assert shares["test"] > 1.5 * shares["validation"] > 1000
    crossing = {s for p, s in zip(drawn, splits, strict=True) if set(p.combination.split(" ")) & held_out}
    assert crossing == {"validation", "test"}


def test_split_depends_on_the_english_only():
    canonical, free = pairs(500, 10, 0.0), pairs(500, 10, 0.5)
    assert [split_of(p) for p in canonical] == [split_of(p) for p in free]
    assert [p.german for p in canonical] != [p.german for p in free]


def test_articles_agree_with_the_gender_of_every_noun():
    raw = json.loads((Path(translation.__file__).parent / "lexicon.json").read_text(encoding="utf-8"))
    entries = [e for name in ("nouns", "places") for group in raw[name].values() for e in group]
    accusative = {"der": "den", "die": "die", "das": "das"}
    for entry in entries:
        source, forms = entry.split(": ")
        noun = source.split(", ")[0]
        expected = set()
        for form in forms.split(" / "):
            article, word = form.split(", ")[0].split(" ")
            oblique = form.split(", den ")[-1] if ", den " in form else word
            expected.add(f"Er sucht {accusative[article]} {oblique}.")
        tree = alone("he", "look for", obj=NounPhrase("the", noun=NOUNS[noun]))
        assert {text for text, _ in german_distribution(pair_of(tree), 0.5)} == expected


def test_genders_follow_the_suffixes_that_fix_them():
    fixed = {"chen": "n", "ung": "f", "schaft": "f", "ion": "f", "rei": "f", "ette": "f", "rin": "f", "ling": "m", "tum": "n"}
    checked = 0
    for noun in NOUNS.values():
        for form in noun.forms:
            for suffix, gender in fixed.items():
                if form.singular.lower().endswith(suffix) and not form.singular.lower().endswith("kuchen"):
                    assert form.gender == gender, form
                    checked += 1
    assert checked > 10


def test_lexicon_is_large_and_its_english_unambiguous():
    forms = [f.singular for n in NOUNS.values() for f in n.forms]
    forms += [f.prefix + f.infinitive for v in VERBS.values() for f in v.forms]
    adjectives = {a.english: a for group in LEXICON["adjectives"].values() for a in group}
    forms += [f[0] for a in adjectives.values() for f in a.forms]
    assert len(set(forms)) > 500
    assert len(NOUNS) == sum(map(len, LEXICON["nouns"].values())) + len(LEXICON["places"])
    assert len(VERBS) == len(LEXICON["verbs"])
    assert not [a for a in adjectives.values() for f in a.forms if f[1].endswith("e")]


def test_fingerprint_covers_every_module_of_the_grammar():
    here = Path(translation.__file__).parent
    imported = {f"{name}.py" for name in ("translation", "derivation", "english", "german", "lexicon")} | {"lexicon.json"}
    assert set(translation.SOURCES) == imported
    assert all((here / name).exists() for name in translation.SOURCES)
    assert len(translation.fingerprint()) == 64
