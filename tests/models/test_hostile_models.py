"""Models that strangers made: nothing of theirs runs, is fetched, or takes files along."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from satunet.errors import ModelError
from satunet.models.writing import export_model
from satunet.plan import UnifiedPlan
from satunet.prediction import ModelFolder
from satunet.text import TextBank, load_text_encoder
from satunet.text.copying import copy_text_encoder
from tests.prediction.conftest import write_model
from tests.text.test_text import tiny_bert


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return tiny_bert(tmp_path / "encoder")


def named(tmp_path: Path, text_encoder: str) -> Path:
    """A result folder whose plan and texts name an encoder."""
    folder = write_model(tmp_path / "model")
    dataclasses.replace(UnifiedPlan.load(folder / "plans.json"), text_encoder=text_encoder).save(folder / "plans.json")
    bank = TextBank.load(folder / "text_bank.safetensors")
    dataclasses.replace(bank, encoder_name=text_encoder).save(folder / "text_bank.safetensors")
    return folder


def test_a_model_type_with_code_of_its_own_is_refused_without_asking(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``auto_map`` names code beside the weights; transformers would ask on the terminal whether to run it."""
    (encoder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((encoder / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}, "model_type": "evil"}
    (encoder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_text_encoder(str(encoder)).encode(["liver"])
    assert not (tmp_path / "ran").exists()


def test_a_foreign_models_text_encoder_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    asked: list[dict[str, Any]] = []

    def from_pretrained(source: str, **options: Any) -> Any:
        asked.append({"source": source} | options)
        raise OSError("not here")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    folder = named(tmp_path, "somebody/model")
    with pytest.raises(ModelError, match="somebody/model"):
        ModelFolder.load(folder).text_encoder().encode(["liver"])
    assert asked == [{"source": "somebody/model", "trust_remote_code": False, "local_files_only": True}]
    with pytest.raises(ModelError):
        load_text_encoder("somebody/model").encode(["liver"])  # asked for by the user's own word
    assert asked[-1]["local_files_only"] is False


def test_export_takes_no_folder_that_the_plan_names(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "id_rsa").write_text("key")
    folder = named(tmp_path, str(secret))
    with pytest.raises(ModelError, match="no transformers model"):
        export_model(folder, tmp_path / "out", fold="all")
    assert not list((tmp_path).rglob("out*/**/id_rsa"))


def test_export_takes_another_encoder_than_the_models_own_neither(tmp_path: Path, encoder: Path) -> None:
    folder = named(tmp_path, str(encoder))
    with pytest.raises(ModelError, match="not the text encoder that the network was trained with"):
        export_model(folder, tmp_path / "out", fold="all")


def test_a_copy_holds_the_encoder_and_nothing_else(tmp_path: Path, encoder: Path) -> None:
    (encoder / "notes.docx").write_text("private")
    (encoder / ".env").write_text("private")
    (encoder / "code.py").write_text("private")
    copy_text_encoder(encoder, tmp_path / "copy")
    assert not {"notes.docx", ".env", "code.py"} & {f.name for f in (tmp_path / "copy").rglob("*")}
    wanted, found = (load_text_encoder(str(f)).encode(["liver"]) for f in (encoder, tmp_path / "copy"))
    assert (wanted == found).all()
    (tmp_path / "secret.txt").write_text("private")
    (encoder / "vocabulary.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ModelError, match=r"vocabulary\.txt: is a link"):
        copy_text_encoder(encoder, tmp_path / "again")
    with pytest.raises(ModelError, match="no transformers model"):
        copy_text_encoder(tmp_path, tmp_path / "none")
