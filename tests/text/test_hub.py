"""Models and texts of the hub, from a cache laid out as huggingface_hub lays it out; nothing here needs the network."""

import gzip
import json
import shutil

import huggingface_hub.constants
import pandas as pd
import pytest
import torch

from mtp_utils.backbones import load as backbones
from mtp_utils.base import fetch, paths, profiles
from mtp_utils.reproduce import plan
from mtp_utils.reproduce.__main__ import main
from mtp_utils.text import blocks, corpora, hub

MODEL, DATA = "a" * 40, "b" * 40  # commits


def parquet(rows: list[dict]):
    return lambda path: pd.DataFrame(rows).to_parquet(path)


def code(path):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for i in range(2400):
            file.write(json.dumps({"content": f"def f{i}(x):\n    return x + {i}\n\n\n" * 12, "license": "mit"}) + "\n")


def instructions(path):
    rows = [
        {"instruction": f"What is {i}?", "context": "It is. " * (i % 2), "response": f"Number {i}. " * 20, "category": "qa"}
        for i in range(2400)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


PARTS = ("train", "validation", "test")
PAIRS = [
    {
        "translation": {
            "en": f"This is sentence {i} of a text about old dogs in a garden.",
            "de": f"Das ist Satz {i} eines Textes, ä.",
        }
    }
    for i in range(900)
]
LINES = [{"text": f" Line {i} of an article about {i * i} things, and what they are like. \n"} for i in range(9000)]
TEXTS = {
    "wmt/wmt14": {f"de-en/{part}-00000-of-00001.parquet": parquet(PAIRS) for part in PARTS},
    "Salesforce/wikitext": {f"wikitext-103-raw-v1/{part}-00000-of-00001.parquet": parquet(LINES) for part in PARTS},
    "codeparrot/codeparrot-clean-valid": {"file-1.json.gz": code},
    "databricks/databricks-dolly-15k": {"databricks-dolly-15k.jsonl": instructions},
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, off line, and a build folder."""
    monkeypatch.setenv("MTP_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv(profiles.OWN, json.dumps({"hub": True}))
    hub.rows_of.cache_clear()
    yield tmp_path / "hub"
    hub.rows_of.cache_clear()


def lay(cache, kind: str, repo: str, reference: str, commit: str, files: dict) -> None:
    folder = cache / f"{kind}s--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / reference).write_text(commit)
    for name, write in files.items():
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)


def lay_model(cache, repo: str, reference: str = "step143000", commit: str = MODEL) -> None:
    rung = [*(paths.LADDER / "w16").glob("*"), *(paths.LADDER / "tokenizer").glob("*")]
    lay(cache, "model", repo, reference, commit, {p.name: lambda path, p=p: shutil.copy(p, path) for p in rung})


def lay_texts(cache) -> None:
    for repo, files in TEXTS.items():
        lay(cache, "dataset", repo, "main", DATA, files)


def test_a_revision_is_resolved_once_and_held_to(cache):
    lay_model(cache, "org/model")
    b = backbones.load_backbone("org/model@step143000", device="cpu")
    assert (b.name, b.revision, b.fingerprint) == ("org/model@step143000", MODEL, f"org/model@step143000@{MODEL}")
    assert json.loads(fetch.lock_path().read_text()) == {"model org/model@step143000": MODEL}
    lay_model(cache, "org/model", commit="c" * 40)  # the branch moved
    again = backbones.load_backbone("org/model@step143000", device="cpu")
    assert again.revision == MODEL
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again.model(ids).logits, backbones.load_backbone("ladder/w16", device="cpu").model(ids).logits)
    fetch.lock_path().unlink()
    assert backbones.load_backbone("org/model", "step143000", device="cpu").revision == "c" * 40


def test_on_an_accelerator_the_hubs_models_are_bfloat16_and_the_ladder_is_not(cache, monkeypatch):
    lay_model(cache, "org/model")
    monkeypatch.setattr(backbones, "choose_dtype", lambda device: (torch.bfloat16, "cuda has it"))
    half = backbones.load_backbone("org/model@step143000", device="cpu")
    assert half.model.dtype == torch.bfloat16 and half.fingerprint.endswith(f"{MODEL} torch.bfloat16")
    assert backbones.load_backbone("ladder/w16", device="cpu").model.dtype == torch.float32


def test_what_is_not_there_is_an_error_that_says_what_to_do(cache):
    lay_model(cache, "org/model")
    for name, says in (("org/other", "needs the network"), ("org/model@v2", "at revision 'v2'")):
        with pytest.raises(ValueError, match=says):
            backbones.load_backbone(name)
    folder = cache / "models--org--model" / "snapshots" / MODEL
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="only models with safetensors are loaded"):
        backbones.load_backbone("org/model@step143000")


def test_texts_become_documents_in_four_splits_that_share_none(cache):
    lay_texts(cache)
    assert corpora.names() == profiles.PROFILES["hub"].corpora == tuple(hub.SOURCES)
    for corpus in corpora.names():
        splits = {s: corpora.documents(corpus, s) for s in corpora.SPLITS}
        names = [d.id for found in splits.values() for d in found]
        assert len(names) == len(set(names)) and all(splits.values())
    document = corpora.documents("translation", "test")[0]
    assert [document.text[a:b] for a, b in document.spans] == [f"Das ist Satz {i} eines Textes, ä.\n" for i in range(3)]
    document = corpora.documents("instructions", "test")[0]
    ((start, end),) = document.spans
    assert document.text[:start].startswith("What is ") and document.text[start:end].startswith("Number ")
    assert set(json.loads(fetch.lock_path().read_text()).values()) == {DATA}


def test_evaluation_text_is_cut_from_them(cache):
    lay_texts(cache)
    tokenizer = backbones.load_backbone("ladder/w16", device="cpu").tokenizer
    found = blocks.evaluation_blocks("prose", "test", tokenizer, n_documents=20, positions_per_document=2, horizon=4)
    assert len(found.documents) == 20 and found.documents[0].startswith("prose/test/")
    assert len(blocks.training_blocks("heads", tokenizer, 12, 0)) == 12


def test_other_columns_and_files_are_named(cache):
    lay(
        cache,
        "dataset",
        "wmt/wmt14",
        "main",
        DATA,
        {TEST: parquet([{"source": "a", "target": "b"}]) for TEST in TEXTS["wmt/wmt14"]},
    )
    with pytest.raises(ValueError, match="has the columns source, target; translation would be read: mend SOURCES in hub.py"):
        corpora.documents("translation", "test")
    lay(cache, "dataset", "Salesforce/wikitext", "main", DATA, {"README.md": lambda path: path.write_text("moved")})
    with pytest.raises(ValueError, match="wikitext"):
        corpora.documents("prose", "test")


def test_the_profile_looks_for_everything_before_it_begins(cache, capsys):
    assert main(["hub", "--only", "02"]) == 2
    assert "EleutherAI/pythia-70m" in capsys.readouterr().err
    for name in profiles.PROFILES["hub"].backbones:
        lay_model(cache, name.split("@")[0])
    assert main(["hub", "--only", "02"]) == 2
    assert "cannot get the dataset 'wmt/wmt14'" in capsys.readouterr().err
    lay_texts(cache)
    profile = profiles.get_profile("hub")
    plan.look_over(profile)
    out = capsys.readouterr().out
    assert out.count("GB of weights") == len(profile.backbones) and "licence: CC BY-SA 3.0 and GFDL" in out


def test_a_dry_run_of_local_things_says_what_it_would_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    monkeypatch.setenv(profiles.OWN, "")
    text = tmp_path / "text"
    text.write_text("".join(f"Line {i} of it, and nothing more.\n" for i in range(6000)))
    assert main(["smoke", "--only", "01", "--text", str(text), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "01_inherent_mtp" in out and "GB are free" in out and not list(tmp_path.glob("smoke*/tables"))
    assert "GB; joint training" in out and "TFLOP in the backbones alone, at least" in out


def test_the_estimates_are_those_of_the_sizes(monkeypatch):
    monkeypatch.setenv(profiles.OWN, "")
    default, smoke = (plan.estimates(profiles.PROFILES[name]) for name in ("default", "smoke"))
    largest = backbones.load_backbone("ladder/w256", device="cpu").n_params_total
    assert default["weights"] == pytest.approx(4 * largest, rel=0.01)
    assert default["training"] == pytest.approx(16 * largest, rel=0.05)
    assert 1e13 < default["operations"] < 1e15 and smoke["operations"] < default["operations"] / 100
    monkeypatch.setattr(plan, "_to_fetch", lambda name: (10**10, 10**10))
    assert plan.estimates(profiles.PROFILES["hub"])["weights"] >= 10**10
