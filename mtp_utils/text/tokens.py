"""Tokens and their text: ids of a text, the token before every document, the class of a token, characters cut into several."""

END = "<|endoftext|>"
CLASSES = ("inside a word", "word start", "white space", "punctuation")
LONGEST_CUT = 8  # tokens that one cut of characters runs over, at most


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def end_of(tokenizer) -> int:
    """The id that stands before every document: END, or the tokenizer's own end or begin of text."""
    known = tokenizer.convert_tokens_to_ids(END)
    if known is not None and known != getattr(tokenizer, "unk_token_id", None):
        return known
    own = [i for i in (tokenizer.eos_token_id, tokenizer.bos_token_id) if i is not None]
    if not own:
        raise ValueError(f"{type(tokenizer).__name__} has no token for the end of a text: set its eos_token")
    return own[0]


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
