"""Control tokens that a text spells out are plain characters; added tokens that are text stay whole."""

import json
from collections import Counter

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mtp_utils.backbones import load_backbone
from mtp_utils.base import profiles
from mtp_utils.reproduce import plan
from mtp_utils.text import blocks, corpora
from mtp_utils.text.tokens import controls_in, controls_of, encode, encode_with_starts

LOG = "<|im_start|>user\nIs <|endoftext|> a `word`?<|im_end|>\n<|im_start|>assistant\nNo, `word` is.<|im_end|>\n"


def chat():
    """The ladder's tokenizer with roles of a chat added, and a word that is text."""
    tokenizer = load_backbone("ladder/w16", device="cpu").tokenizer
    added = [AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")] + [AddedToken("`word`", special=False)]
    tokenizer.add_tokens(added)
    return tokenizer


def unigram():
    """A model that knows its control tokens as words: it finds them even where they are not looked for."""
    words = [(w, 0.0) for w in ("<unk>", "<s>", "</s>")] + [(w, -4.0) for w in "\u2581abc<>/s"]
    made = Tokenizer(models.Unigram(words, 0, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_control_tokens_are_plain_characters_with_their_places_and_added_words_stay_whole():
    tokenizer = chat()
    ids, starts = encode_with_starts(tokenizer, LOG)
    assert not set(ids) & set(controls_of(tokenizer).values()) and tokenizer.decode(ids) == LOG
    assert ids.count(tokenizer.convert_tokens_to_ids("`word`")) == 2
    ends = [*starts[1:], len(LOG)]
    assert [LOG[a:b] for a, b in zip(starts, ends, strict=True)] == [tokenizer.decode([i]) for i in ids]
    assert encode(tokenizer, [LOG, "No."]) == [ids, encode(tokenizer, ["No."])[0]]
    as_control = encode(tokenizer, [LOG], plain=False)[0]
    assert Counter(i for i in as_control if i in controls_of(tokenizer).values()) == Counter(
        {i: controls_in(tokenizer, [LOG])[token] for token, i in controls_of(tokenizer).items()}
    )
    assert controls_in(tokenizer, [LOG, LOG]) == {"<|im_start|>": 4, "<|im_end|>": 4, "<|endoftext|>": 2}


def test_a_model_that_knows_a_control_token_as_a_word_does_not_see_it_either():
    tokenizer, text = unigram(), "ab <s>c</s> a"
    assert tokenizer.convert_tokens_to_ids("<s>") in tokenizer(text, split_special_tokens=True)["input_ids"]
    ids, starts = encode_with_starts(tokenizer, text)
    assert not set(ids) & {1, 2} and encode(tokenizer, [text])[0] == ids
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert "".join(pieces).replace("\u2581", "") == text.replace(" ", "")
    assert all(text[a] == piece for a, piece in zip(starts, pieces, strict=True) if piece != "\u2581")
    assert encode(tokenizer, ["ab c"])[0] == tokenizer("ab c")["input_ids"]


def test_without_control_tokens_in_it_a_text_has_the_ids_it_had():
    tokenizer = chat()
    texts = [d.text for d in corpora.documents("translation", "test")[:40]]
    assert encode(tokenizer, texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_the_ladders_tokenizer_reads_the_embedded_corpora_as_it_was_trained(monkeypatch, tmp_path):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    ladder, document = load_backbone("ladder/w16", device="cpu").tokenizer, corpora.documents("translation", "test")[0]
    texts = [document.text, "one <|endoftext|> two"]
    monkeypatch.setattr(corpora, "documents", lambda *_: [corpora.Document(str(i), t, "", ()) for i, t in enumerate(texts)])
    whole, starts = blocks.stream("prose", "pretrain", ladder), blocks.begins("prose", "pretrain", ladder)
    assert (whole == 0).sum() == 3 == len(starts) and (whole[starts] == 0).all()
    cut = blocks.stream("prose", "pretrain", chat())
    assert (cut == 0).sum() == 2 == len(blocks.begins("prose", "pretrain", chat()))


@pytest.mark.parametrize("log", [True, False])
def test_a_log_of_a_chat_is_counted_and_said_in_one_line_before_the_run(log, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    marks = ("<|endoftext|>", "<|other|>") if log else ("", "")
    lines = [f"{marks[0] if i % 100 == 0 else ''}Line {i}{marks[1]} of a text, and {i * i} is its square.\n" for i in range(1500)]
    (tmp_path / "log.txt").write_text("".join(lines))
    monkeypatch.setenv(profiles.OWN, json.dumps({"text": str(tmp_path / "log.txt")}))
    plan.look_over(profiles.get_profile("smoke"))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("the text holds")]
    assert said == (["the text holds 15 times <|endoftext|>: read as plain characters"] if log else [])
    tokenizer = load_backbone("ladder/w16", device="cpu").tokenizer
    part = blocks.evaluation_text(profiles.get_profile("smoke"), tokenizer)["text"]
    assert (part.tokens[part.mask] == 0).sum() == len(part.documents) and (part.tokens[:, 0] == 0).all()
