"""What stands before a text is chosen by measurement, the same everywhere in a run; what ends decoding may be several tokens."""

import copy
import dataclasses
import gc
import json
import re
import weakref
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mtp_utils.backbones import edges, load_backbone
from mtp_utils.base import profiles
from mtp_utils.findings import controls, scoring
from mtp_utils.reproduce import plan
from mtp_utils.text import blocks, corpora
from mtp_utils.text.offsets import labels_of
from mtp_utils.text.tokens import digest_of, encode, front_of, fronts_of

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
CONTROLS = ("<s>", "</s>", "<pad>")
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer_of(bos="<s>", eos="</s>", first=None) -> PreTrainedTokenizerFast:
    """Bytes and control tokens, no <|endoftext|>; `first` is what it puts before a text itself."""
    words = {token: i for i, token in enumerate((*CONTROLS, *BYTES))}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(list(CONTROLS))
    if first:
        made.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, words[first])])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos)


TEXT = "".join(
    f"Line {i} of a text, and {i * i} is its square, which is {'even' if i % 2 == 0 else 'odd'}.\n" for i in range(3000)
)


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text of the user's, and a build folder."""
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.setenv("MTP_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv(profiles.OWN, json.dumps({"text": str(tmp_path / "text.txt")}))


def saved(folder, tokenizer, front=None):
    """A tiny Llama with that tokenizer: random, or trained for some steps behind `front`."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=320, bos_token_id=0, eos_token_id=1, **SHAPE))
    if front is not None:
        ids = torch.tensor(encode(tokenizer, [TEXT])[0][: 40 * 64]).view(40, 64)
        # where another token stands first it has learnt other text: whatever a byte, then the byte 31 further on
        wrong = (ids[:, :1] + 31 * torch.arange(64)) % 256 + len(CONTROLS)
        rows = [torch.cat([torch.full((40, 1), i), ids if i == front else wrong], 1) for i in (0, 1)]
        rows += [torch.nn.functional.pad(ids if front == () else wrong, (0, 1), value=5)]
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for step in range(60):
            batch = torch.cat([part[torch.arange(8) + step * 8 % 40] for part in rows])
            optimizer.zero_grad()
            model(batch, labels=batch).loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("front", [0, 1, ()], ids=["<s>", "</s>", "nothing"])
def test_the_first_token_is_the_one_with_least_loss_and_text_is_cut_behind_it(front, tmp_path, text):
    b = load_backbone(saved(tmp_path / "it", tokenizer_of(), front), device="cpu")
    chosen = () if front == () else (front,)
    losses = edges.front_losses(b.model, b.tokenizer)
    assert front_of(b.tokenizer) == chosen == min(losses, key=losses.get) and set(losses) == {(0,), (1,), ()}
    for other, loss in losses.items():  # by hand: the same labels behind each, those of a piece from its second token on
        found = []
        for ids in edges._pieces(b.tokenizer):
            row = torch.tensor([[*other, *ids[: edges.LENGTH]]])
            p = b.model(row).logits.log_softmax(-1)[0]
            found += [-float(p[t - 1, row[0, t]]) for t in range(len(other) + 1, row.shape[1])]
        assert loss == pytest.approx(sum(found) / len(found), rel=1e-4)
        assert other == chosen or loss > losses[chosen] + 0.01
    part = blocks.evaluation_blocks("text", "test", b.tokenizer, n_documents=8, positions_per_document=1, horizon=3)
    documents = {d.id: d.text for d in corpora.documents("text", "test")}
    for name, row, mask in zip(part.documents, part.tokens, part.mask, strict=True):
        ids = row[mask].tolist()
        assert tuple(ids[: len(chosen)]) == chosen and not set(ids[len(chosen) :]) & {0, 1}
        assert b.tokenizer.decode(ids[len(chosen) :]) in documents[name]


def test_without_a_first_token_documents_are_still_told_apart(text):
    tokenizer = tokenizer_of(bos=None, eos=None)
    assert fronts_of(tokenizer) == [()] == [front_of(tokenizer)]
    documents = corpora.documents("text", "test")
    stream, starts = (f("text", "test", tokenizer) for f in (blocks.stream, blocks.begins))
    assert tokenizer.decode(stream.tolist()) == "".join(d.text for d in documents)
    assert starts.tolist() == [sum(len(encode(tokenizer, [d.text])[0]) for d in documents[:i]) for i in range(len(documents))]
    part = blocks.evaluation_blocks("text", "test", tokenizer, n_documents=5, positions_per_document=1, horizon=2)
    assert part.tokens[0][0] >= len(CONTROLS) and part.mask.sum(1).max() == blocks.CONTEXT
    tokenizer.mtp_front = (0,)
    assert (blocks.stream("text", "test", tokenizer) == 0).sum() == len(documents)
    assert (blocks.stream("text", "test", tokenizer)[blocks.begins("text", "test", tokenizer)] == 0).all()


def test_the_grammars_own_distribution_does_not_depend_on_what_stands_first(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    tokenizer = load_backbone("ladder/w16", device="cpu").tokenizer
    part = blocks.evaluation_blocks("translation", "test", tokenizer, n_documents=6, positions_per_document=1, horizon=2)
    bare = dataclasses.replace(part, tokens=part.tokens[:, 1:], scored=part.scored[:, 1:])
    gold = []
    for front, b in (((0,), part), ((), bare)):
        tokenizer.mtp_front = front
        keys = {"offset": 2, "label_source": "data", "label": labels_of(b.tokens, b.scored, 2).numpy(), "token_class": 0}
        labels = scoring.Labels(scoring.positions_of(b).assign(**keys))
        gold.append(controls.gold_table(scoring.Tokenizer(tokenizer), b, labels))
    assert gold[0]["log_prob"].tolist() == gold[1]["log_prob"].tolist() and (gold[0]["log_prob"] > -50).all()


def unknown_is_separator():
    tokenizer = load_backbone("ladder/w16", device="cpu").tokenizer
    tokenizer.add_special_tokens({"unk_token": "<|endoftext|>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    return tokenizer


CANDIDATES = {
    "BOS and EOS": (tokenizer_of, [(0,), (1,), ()]),
    "BOS = EOS": (lambda: tokenizer_of("</s>", "</s>"), [(1,), ()]),
    "no BOS": (lambda: tokenizer_of(None), [(1,), ()]),
    "neither": (lambda: tokenizer_of(None, None), [()]),
    "one of its own, first": (lambda: tokenizer_of(first="<pad>"), [(2,), (0,), (1,), ()]),
    "BOS, put there by itself": (lambda: tokenizer_of(first="<s>"), [(0,), (1,), ()]),
    "a separator that also stands for what is unknown": (unknown_is_separator, [(0,), (1024,), (1025,), ()]),
    "the ladder's": (lambda: load_backbone("ladder/w16", device="cpu").tokenizer, [(0,), ()]),
}


@pytest.mark.parametrize("case", CANDIDATES)
def test_candidates_are_what_the_tokenizer_puts_first_the_separator_begin_end_and_nothing(case):
    make, expected = CANDIDATES[case]
    assert fronts_of(make()) == expected


def test_one_choice_for_all_backbones_of_a_run_reaches_whatever_loads_them(tmp_path, text, capsys, monkeypatch):
    sure = saved(tmp_path / "sure", tokenizer_of(), 0)
    folders = {"own/random": saved(tmp_path / "random", tokenizer_of()), "own/sure": sure}
    own = profiles.own_of() | {"backbones": folders}
    monkeypatch.setenv(profiles.OWN, json.dumps(own))
    profile = profiles.get_profile("smoke")
    fronts = plan.look_over(profile)
    assert fronts == {digest_of(tokenizer_of()): [0]} == plan.look_over(profile, dry=True)
    (line, again) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("first token")]
    assert re.fullmatch(r"first token: <s> \(\d\.\d\d nats/token; (</s>|nothing) \d\.\d\d, (</s>|nothing) \d\.\d\d\)", line)
    assert line == again and not (tmp_path / "build" / "cache" / "front").exists()
    other = {"fronts": {digest_of(tokenizer_of()): [1]}}  # as a notebook's kernel hears it, whatever it would measure
    monkeypatch.setenv(profiles.OWN, json.dumps(own | other))
    assert profiles.get_profile("smoke") == profile
    assert [front_of(load_backbone(name, device="cpu").tokenizer) for name in folders] == [(1,), (1,)]


def test_measured_once_it_is_kept_for_these_weights_and_this_text(tmp_path, text, monkeypatch):
    folder, calls, real = saved(tmp_path / "it", tokenizer_of()), [], edges.front_losses
    monkeypatch.setattr(edges, "front_losses", lambda *given: calls.append(1) or real(*given))
    fronts = {front_of(load_backbone(folder, device="cpu").tokenizer) for _ in range(3)}
    assert len(fronts) == 1 and len(calls) == 1
    (tmp_path / "text.txt").write_text(TEXT[:90_000])
    later = load_backbone(folder, device="cpu")
    assert len(calls) == 1  # loading alone measures nothing
    kept, there = front_of(later.tokenizer), weakref.ref(later.model)
    assert len(calls) == 2 and front_of(copy.deepcopy(later.tokenizer)) == kept
    tokenizer = later.tokenizer
    del later
    gc.collect()
    assert there() is None and front_of(tokenizer) == kept


def test_a_loss_that_is_no_number_is_never_the_least():
    nan = {(0,): float("nan"), (1,): 2.0, (): 2.0}
    assert edges.best([nan]) == (1,) == edges.best([{(0,): 1.0, (1,): 1.0, (): 1.5}, nan])


@pytest.mark.parametrize(
    "settings, config, tokenizer, expected",
    [([5, 7], 3, 1, (5, 7)), (4, 3, 1, (4,)), (None, [3, 2], 1, (3, 2)), (None, None, 1, (1,)), (None, None, None, ())],
)
def test_what_ends_decoding_is_what_the_model_says_else_its_tokenizer(settings, config, tokenizer, expected):
    text = SimpleNamespace(eos_token_id=config)
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=settings), config=text)
    text.get_text_config = lambda: text
    assert edges.ends_of(SimpleNamespace(model=model, tokenizer=SimpleNamespace(eos_token_id=tokenizer))) == expected
