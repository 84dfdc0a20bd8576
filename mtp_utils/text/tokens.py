"""Tokens and their text: ids of a text, what stands before every document, the class of a token, characters cut into several."""

import re
import weakref
from collections import Counter

from ..base.files import sha256

END = "<|endoftext|>"
CLASSES = ("inside a word", "word start", "white space", "punctuation")
LONGEST_CUT = 8  # tokens that one cut of characters runs over, at most
front_measures: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()  # a backbone's tokenizer -> what tells its front


def encode(tokenizer, texts: list[str], plain: bool = True) -> list[list[int]]:
    """Token ids of each text, without special tokens; plain: a control token that a text spells out is plain characters."""
    found = tokenizer(texts, add_special_tokens=False, split_special_tokens=plain)["input_ids"] if texts else []
    for i in _whole(tokenizer, texts, found) if plain else ():
        found[i] = _apart(tokenizer, texts[i])[0]
    return found


def encode_with_starts(tokenizer, text: str, plain: bool = True) -> tuple[list[int], list[int]]:
    """As `encode`, of one text: ids, and the character that each of them begins at."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=plain)
    if plain and _whole(tokenizer, [text], [found["input_ids"]]):
        return _apart(tokenizer, text)
    return found["input_ids"], [a for a, _ in found["offset_mapping"]]


def controls_of(tokenizer) -> dict[str, int]:
    """The tokens that are no text (begin, end, roles of a chat, padding), as they are spelt, and their ids."""
    return {token.content: i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}


def controls_in(tokenizer, texts) -> Counter:
    """How often the texts spell out each control token."""
    found = _spelt(tokenizer)
    return Counter(token for text in texts for token in found.findall(text))


def _spelt(tokenizer) -> re.Pattern:
    """Finds control tokens that are spelt out, the longest where one begins another."""
    return re.compile("|".join(map(re.escape, sorted(controls_of(tokenizer), key=len, reverse=True))) or r"(?!)")


def _whole(tokenizer, texts: list[str], ids: list[list[int]]) -> list[int]:
    """Which texts have a control token whole among their ids though it was to be split: a Unigram may know it."""
    spelt, controls = _spelt(tokenizer), set(controls_of(tokenizer).values())
    return [i for i, text in enumerate(texts) if spelt.search(text) and not controls.isdisjoint(ids[i])]


def _apart(tokenizer, text: str) -> tuple[list[int], list[int]]:
    """As `encode_with_starts`, every control token cut behind its first character (where some tokenizers see a word begin)."""
    cuts = [0, *(found.start() + 1 for found in _spelt(tokenizer).finditer(text)), len(text)]
    ids, starts = [], []
    for begin, end in zip(cuts, cuts[1:], strict=False):
        found = tokenizer(text[begin:end], add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
        ids += found["input_ids"]
        starts += [begin + a for a, _ in found["offset_mapping"]]
    return ids, starts


def fronts_of(tokenizer) -> list[tuple[int, ...]]:
    """What may stand before a document: what the tokenizer itself puts there, END if it knows that, its begin or end of text, or
    nothing; the likelier first."""
    with_own, without = tokenizer("a")["input_ids"], encode(tokenizer, ["a"])[0]
    own = next((with_own[:i] for i in range(len(with_own)) if with_own[i : i + len(without)] == without), [])
    separator = tokenizer.convert_tokens_to_ids(END)
    if separator == tokenizer.unk_token_id and getattr(tokenizer, "unk_token", None) != END:  # it may stand for both
        separator = None
    single = [(i,) for i in (separator, tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
    return list(dict.fromkeys([*([tuple(own)] if own else []), *single, ()]))


def front_of(tokenizer) -> tuple[int, ...]:
    """The ids, mostly one, that stand before every document: those that its backbone was measured to be best behind
    (backbones.edges), when first asked for, kept as the tokenizer's `mtp_front`; of any other tokenizer the likeliest."""
    known = getattr(tokenizer, "mtp_front", None)
    if known is None and tokenizer in front_measures:
        known = tokenizer.mtp_front = front_measures[tokenizer](tokenizer)
        del front_measures[tokenizer]  # and with it the model that it holds
    return fronts_of(tokenizer)[0] if known is None else known


def digest_of(tokenizer) -> str:
    """sha256 of what the tokenizer does."""
    return sha256(tokenizer.backend_tokenizer.to_str().encode())


def token_classes(ids: list[int], tokenizer) -> list[int]:
    """Index into CLASSES of each token, from its text and the one before it."""
    found, before = [], " "
    for text in texts_of(ids, tokenizer):
        if not text.strip():
            kind = 2
        elif text.strip()[0].isalnum() or text.strip()[0] == "_" or not text.isascii():
            kind = 0 if not text[0].isspace() and (before.isalnum() or before == "_") else 1
        else:
            kind = 3
        found.append(kind)
        before = text[-1:]
    return found


def texts_of(ids: list[int], tokenizer, together: bool = False) -> list[str]:
    """The text of each token (or the one text of all of them together) as it stands in a text: at its very beginning, one of some
    tokenizers loses the space it begins with."""
    anchor = encode(tokenizer, ["a"])[0][-1]
    begin = len(tokenizer.decode([anchor]))
    return [whole[begin:] for whole in tokenizer.batch_decode([[anchor, *ids]] if together else [[anchor, i] for i in ids])]


def characters_of(ids: list[int], tokenizer) -> list[tuple[str, int, int]]:
    """Of each token of a text the text it stands for, which part of it and of how many: a character that is cut into several
    tokens, each of them no text alone, is whole in all of them."""
    alone, found = texts_of(ids, tokenizer), []
    while len(found) < len(ids):
        at = len(found)
        for n in range(2, min(LONGEST_CUT, len(ids) - at) + 1 if "\ufffd" in alone[at] else 0):
            whole = texts_of(ids[at : at + n], tokenizer, together=True)[0]
            if "\ufffd" not in whole:
                found += [(whole, part, n) for part in range(n)]
                break
        else:
            found.append((alone[at], 0, 1))
    return found


def vocabulary_of(tokenizer) -> int:
    """The largest id of a token and 1, those added later among them: what lies beyond in a model stands for no text."""
    return max(tokenizer.get_vocab().values()) + 1
