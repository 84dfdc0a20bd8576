"""The corpora: splits that do not leak, text that is what it says, positions that count."""

import ast
import random

import pytest
import torch

from mtp_utils.backbones.load import load_backbone
from mtp_utils.findings import controls, scoring
from mtp_utils.text import blocks, corpora, freezing, packages, tokens
from mtp_utils.text.offsets import labels_of


@pytest.fixture(scope="module")
def tokenizer():
    return load_backbone("ladder/w16", device="cpu").tokenizer


@pytest.fixture(scope="module")
def test_blocks(tokenizer):
    return {
        c: blocks.evaluation_blocks(c, "test", tokenizer, n_documents=40, positions_per_document=2, horizon=4)
        for c in corpora.CORPORA
    }


def without_docstrings(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and body
            and packages._is_doc(body[0])
        ):
            node.body = body[1:] or ([] if isinstance(node, ast.Module) else [ast.Expr(ast.Constant(...))])
    return ast.dump(tree)


def test_stripped_source_is_the_same_program_without_docstrings():
    source = (
        '"""Module."""\nimport re  # why\n\n\ndef f(a):\n    """Doc # not a comment."""\n\n\ndef g():\n    """Doc."""\n'
        '    # only a comment\n    s = "a # b"  # c\n    return f"{s}#", \'#\', """#"""\n'
    )
    stripped = packages.strip_source(source, ast.parse(source))
    assert without_docstrings(ast.parse(stripped)) == without_docstrings(ast.parse(source))
    assert "Doc" not in stripped and "comment" not in stripped and "why" not in stripped and '"a # b"' in stripped


def test_stripped_files_of_the_packages_parse_and_nearly_all_are_the_same_program():
    files = random.Random(0).sample(packages.source_files(), 60)
    same, total = 0, 0
    for _, path in files:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        stripped = packages.strip_source(source, tree)
        total += 1
        same += without_docstrings(ast.parse(stripped)) == without_docstrings(tree)  # blank runs inside strings are squeezed
    assert same >= 0.95 * total


def test_docstrings_lose_their_doctests_only():
    tree = ast.parse('def f():\n    """One.\n\n    >>> f()\n    1\n\n    Two.\n    """\n')
    assert packages.docstrings(tree) == ["One.\n\nTwo.\n"]


def test_a_file_is_in_one_split_and_no_evaluation_text_overlaps_training_beyond_the_limit():
    splits = {s: {d.cluster for d in corpora.documents("prose", s)} for s in ("heads", "validation", "test")}
    assert not (
        splits["heads"] & splits["test"] or splits["validation"] & splits["test"] or splits["heads"] & splits["validation"]
    )
    known = set().union(*(freezing._grams(d.text) for d in corpora.documents("prose", "heads")))
    for d in corpora.documents("prose", "test"):
        grams = freezing._grams(d.text)
        assert len(grams & known) <= freezing.MAX_OVERLAP * max(1, len(grams)), d.id


def test_the_frozen_evaluation_files_are_those_installed():
    for corpus in corpora.CORPORA:
        assert freezing.differences(corpus, "test") == []


def test_unknown_names_say_what_exists():
    with pytest.raises(ValueError, match="translation, code, prose"):
        corpora.documents("poetry", "test")
    with pytest.raises(ValueError, match="pretrain, heads, validation, test"):
        corpora.documents("code", "dev")


def test_more_documents_than_there_are_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="n_documents=100000"):
        blocks.evaluation_blocks("code", "validation", tokenizer, n_documents=100_000, positions_per_document=1, horizon=4)


@pytest.mark.parametrize("corpus", corpora.CORPORA)
def test_scored_positions_have_context_and_all_their_labels_in_the_document(corpus, test_blocks):
    b = test_blocks[corpus]
    assert (b.scored.sum(1) == 2).all()
    row, t = b.scored.nonzero(as_tuple=True)
    assert (t >= blocks.MIN_CONTEXT - 1).all()
    assert b.mask[row, t + b.horizon].all(), "a label past the end of the text"
    for k in range(1, 5):
        assert (labels_of(b.tokens, b.scored, k) != 0).all(), "a label is the end-of-text token"


def test_translation_labels_lie_on_the_german_side(test_blocks, tokenizer):
    b = test_blocks["translation"]
    documents = {d.id: d for d in corpora.documents("translation", "test")}
    for row, t in b.scored.nonzero().tolist():
        document = documents[b.documents[row]]
        starts = [a for a, _ in tokenizer(document.text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]]
        for k in range(1, 5):  # token 0 of a block is the end-of-text mark
            assert any(a <= starts[t + k - 1] < z for a, z in document.spans)


def test_blocks_are_the_same_every_time_and_their_fingerprint_tells_them_apart(tokenizer, tmp_path, monkeypatch):
    def make(seed, build):
        monkeypatch.setenv("MTP_BUILD", str(tmp_path / build))
        return blocks.evaluation_blocks(
            "code", "validation", tokenizer, n_documents=10, positions_per_document=2, horizon=4, seed=seed
        )

    one, same, other = make(0, "a"), make(0, "b"), make(1, "a")
    assert torch.equal(one.tokens, same.tokens) and one.fingerprint == same.fingerprint != other.fingerprint


def test_text_is_read_once_and_a_damaged_copy_is_not_trusted(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    asked, documents = [], corpora.documents
    monkeypatch.setattr(corpora, "documents", lambda *names: asked.append(names) or documents(*names))

    def make():
        size = {"n_documents": 5, "positions_per_document": 1, "horizon": 4}
        return blocks.evaluation_blocks("translation", "validation", tokenizer, **size)

    first, second = make(), make()
    assert len(asked) == 1 and first.documents == second.documents and first.rates == second.rates
    for name in ("tokens", "mask", "scored", "classes"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    (path,) = (tmp_path / "cache").glob("blocks-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert make().fingerprint == first.fingerprint and len(asked) == 2


def test_token_classes(tokenizer):
    ids = tokenizer("def value_of(x):\n    return x", add_special_tokens=False)["input_ids"]
    found = {tokenizer.decode([i]): tokens.CLASSES[c] for i, c in zip(ids, tokens.token_classes(ids, tokenizer), strict=True)}
    assert found["def"] == "word start" and found["("] == "punctuation"
    assert {c for t, c in found.items() if not t.strip()} == {"white space"}


def test_the_gold_line_is_the_grammars_own_distribution(tokenizer, test_blocks):
    """Its cross-entropy on its own documents is its entropy: mean of -log m2(label) - H(m2) is zero, |z| < 4."""
    b = blocks.evaluation_blocks("translation", "test", tokenizer, n_documents=150, positions_per_document=2, horizon=2)
    keys = scoring.positions_of(b).assign(
        offset=2, label_source="data", label=labels_of(b.tokens, b.scored, 2).numpy(), token_class=0
    )
    gold = controls.gold_table(scoring.Tokenizer(tokenizer), b, scoring.Labels(keys))
    assert (gold.log_prob > -50).all()
    excess = -gold.log_prob - gold.entropy
    assert abs(excess.mean()) < 4 * excess.std() / len(excess) ** 0.5 + 1e-9
    assert (gold[gold.document.str.contains("/0/")].entropy < 1e-9).all(), "at rate 0 the German is a function of the English"
