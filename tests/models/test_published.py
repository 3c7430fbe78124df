"""Published models by name, from a hub on loopback: its files have the true keys and shapes, its weights are random."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from satunet.errors import ModelError
from satunet.jobs.files import read_json
from satunet.jobs.records import to_plain
from satunet.models.choice import ModelChoice
from satunet.models.folder import ModelCard, ModelFolder
from satunet.models.info import describe_model
from satunet.models.published import hub as hub_module
from satunet.models.published.cached import published_folder
from satunet.models.published.hub import HubUnreachableError, list_repository
from satunet.models.published.known import KNOWN, Published, published_model
from satunet.models.shipped import resolve_model
from satunet.network import NetworkConfig
from tests.models.hub_server import Hub, Repository
from tests.prediction.published_sat import TINY, bert_folder, network_checkpoint, text_checkpoint

ROOT = Path(__file__).resolve().parents[2]
BIOLORD = "FremyCompany/BioLORD-2023-C"


@pytest.fixture(scope="module")
def published_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What SAT and BioLORD publish, small."""
    top = tmp_path_factory.mktemp("published")
    for name in ("Nano", "Pro"):
        (top / "SAT" / name).mkdir(parents=True)
        network_checkpoint(top / "SAT" / name / f"{name.lower()}.pth")
        text_checkpoint(top / "SAT" / name / f"{name.lower()}_text_encoder.pth")
    (top / "SAT" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (top / "SAT" / "train.py").write_text("raise SystemExit('code of strangers')")
    bert_folder(top / "BioLORD")
    (top / "BioLORD" / "model.safetensors").write_bytes(b"weights that nobody needs")
    return top


@pytest.fixture
def hub(published_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("SATUNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)  # what is kept of a cut are whole chunks
    files = tmp_path / "hub"
    shutil.copytree(published_files, files)
    with Hub() as server:
        server.repositories = {"zzh99/SAT": Repository(files / "SAT"), BIOLORD: Repository(files / "BioLORD")}
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def fetch(name: str) -> Path:
    model = published_model(name)
    assert model is not None
    return published_folder(model, presets=[TINY], patch_size=(16, 16, 8))


@pytest.mark.parametrize(
    ("name", "repository", "folder", "revision"),
    [
        ("sat-nano", "zzh99/SAT", "Nano", None),
        ("sat-pro@v1", "zzh99/SAT", "Pro", "v1"),
        ("hf:me/my.model", "me/my.model", "", None),
        ("hf:me/model/a/b", "me/model", "a/b", None),
        ("hf:me/model/a@refs/pr/1", "me/model", "a", "refs/pr/1"),
    ],
)
def test_names(name: str, repository: str, folder: str, revision: str | None) -> None:
    found = published_model(name)
    assert found is not None
    assert (found.repository, found.folder, found.revision) == (repository, folder, revision)


@pytest.mark.parametrize("name", ["hf:", "hf:model", "hf:me/", "hf:me/../x", "hf:me/model/../..", "hf:me/model@", "sat-nano@", "hf:a b/c", "hf:me/model@../x", "hf:/etc/passwd"])  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ModelError, match=r"allowed are sat-nano, sat-pro and hf:owner/name"):
        published_model(name)


def test_other_words_and_folders_are_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert published_model("my_model") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sat-nano").mkdir()
    assert resolve_model("sat-nano") == Path("sat-nano")
    places = {
        published_model(n).place for n in ("sat-nano", "sat-pro", "sat-nano@v1", "hf:zzh99/SAT", "hf:zzh99/SAT@v1")
    }  # type: ignore[union-attr]
    assert len(places) == 5


def test_it_is_fetched_once_and_says_where_it_is_from(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = fetch("sat-nano")
    said = caplog.text
    assert said.index("licence: apache-2.0") < said.index("please cite: Zhao et al.")
    model = ModelFolder.load(folder)
    assert model.card is not None
    origin = model.card.provenance
    assert model.card.licence == "apache-2.0"
    assert origin["repository"] == "zzh99/SAT"
    assert origin["revision"] == hub.repositories["zzh99/SAT"].commit
    assert origin["text_encoder"]["architecture"] == f"{BIOLORD}@{hub.repositories[BIOLORD].commit}"
    state = torch.load(hub.repositories["zzh99/SAT"].folder / "Nano" / "nano.pth")["model_state_dict"]
    key = "transformer_decoder.norm.weight"
    assert torch.equal(model.network.state_dict()[key], state[f"module.{key}"])
    assert "nano.pth" in hub.files_asked()
    assert {"pro.pth", "train.py", "model.safetensors"}.isdisjoint(hub.files_asked())
    before = len(hub.asked)
    hub.down = True
    assert fetch("sat-nano") == folder  # nobody is asked again
    assert len(hub.asked) == before
    left = [f for f in (folder.parents[1] / "fetched" / "zzh99").rglob("*") if f.is_file()]
    assert left == []


def test_commands_take_it_by_name(hub: Hub) -> None:
    fetch("sat-nano")
    choice = ModelChoice(model=(Path("sat-nano"),))
    assert choice.folders == (KNOWN["sat-nano"].place,)
    assert choice.describe()[0].modalities == ("ct", "mri", "pet")


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub) -> None:
    hub.cut_after = [32768, 8192, 0, 10]
    ModelFolder.load(fetch("sat-nano"))
    ranges = [r for _, path, r in hub.asked if path.endswith("/nano.pth")]
    assert ranges == ["", "bytes=32768-", "bytes=40960-", "bytes=40960-", "bytes=40960-"]


def test_a_later_call_goes_on_where_an_earlier_one_ended(hub: Hub) -> None:
    hub.cut_after = [65536, *[0] * 100]
    with pytest.raises(HubUnreachableError, match=r"what arrived is kept, and the same command continues"):
        fetch("sat-nano")
    assert not KNOWN["sat-nano"].place.exists()
    hub.cut_after = []
    hub.asked.clear()
    ModelFolder.load(fetch("sat-nano"))
    assert [r for _, path, r in hub.asked if path.endswith("/nano.pth")] == ["bytes=65536-"]


def test_parts_of_two_versions_are_not_mixed(hub: Hub) -> None:
    file = hub.repositories["zzh99/SAT"].folder / "Nano" / "nano.pth"
    hub.cut_after = [file.stat().st_size // 2, *[0] * 100]
    with pytest.raises(HubUnreachableError):
        fetch("sat-nano")
    hub.cut_after = []
    network_checkpoint(file, **{"module.transformer_decoder.norm.bias": torch.full((24,), 7.0)})
    model = ModelFolder.load(fetch("sat-nano"))
    assert model.network.state_dict()["transformer_decoder.norm.bias"].tolist() == [7.0] * 24


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_is_not_what_the_list_says_is_not_used(hub: Hub, times: int) -> None:
    """Changed on the way, at the same length: only the hash can tell."""
    content = (hub.repositories["zzh99/SAT"].folder / "Nano" / "nano.pth").read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    hub.served["Nano/nano.pth"] = [bytes(changed)] * times
    if times == 1:
        ModelFolder.load(fetch("sat-nano"))
        return
    with pytest.raises(
        ModelError, match=r"Nano/nano\.pth was fetched twice and does not match the hub's list.*is not used"
    ):
        fetch("sat-nano")
    assert not KNOWN["sat-nano"].place.exists()
    assert not list((Path(os.environ["SATUNET_CACHE"]) / "fetched").rglob("*.part"))


def test_small_files_are_checked_too(hub: Hub) -> None:
    content = (hub.repositories[BIOLORD].folder / "config.json").read_bytes()
    hub.served["config.json"] = [content.replace(b"24", b"42")] * 2
    with pytest.raises(ModelError, match=r"config\.json was fetched twice and does not match the hub's list"):
        fetch("sat-nano")


def test_without_the_hub_it_says_what_to_put_where_and_takes_it_from_there(hub: Hub) -> None:
    hub.down = True
    with pytest.raises(HubUnreachableError) as caught:
        fetch("sat-nano")
    said = str(caught.value)
    model = KNOWN["sat-nano"]
    place, architecture = model.fetched / "Nano", Path(os.environ["SATUNET_CACHE"], "fetched", *BIOLORD.split("/"))
    for part in (f"{hub.address}/zzh99/SAT (folder Nano)", str(place), f"{hub.address}/{BIOLORD}", str(architecture)):
        assert part in said
    assert "\n" not in said
    # Done as it says.
    shutil.copytree(hub.repositories["zzh99/SAT"].folder / "Nano", place, dirs_exist_ok=True)
    shutil.copytree(hub.repositories[BIOLORD].folder, architecture, dirs_exist_ok=True)
    card = ModelFolder.load(fetch("sat-nano")).card
    assert card is not None
    assert "by hand" in card.provenance["hashes"]
    assert str(architecture) not in json.dumps(to_plain(card))


def test_the_text_encoders_files_alone_are_missing(hub: Hub) -> None:
    del hub.repositories[BIOLORD]
    with pytest.raises(ModelError, match=r"BioLORD-2023-C: no such repository"):
        fetch("sat-nano")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:zzh99/none", "no such repository"),
        ("sat-nano@v7", r"there is no revision 'v7'"),
        ("hf:zzh99/SAT", r"no model in its top folder.*there are models in Nano, Pro"),
        ("hf:zzh99/SAT/Mini", r"no model in Mini.*there are models in Nano, Pro"),
    ],
)
def test_what_the_hub_does_not_have(hub: Hub, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        fetch(name)
    assert "\n" not in str(caught.value)


def test_two_networks_in_one_folder_are_not_guessed(hub: Hub) -> None:
    folder = hub.repositories["zzh99/SAT"].folder / "Nano"
    shutil.copyfile(folder / "nano.pth", folder / "nano_old.pth")
    with pytest.raises(ModelError, match=r"checkpoints there: nano\.pth, nano_old\.pth, nano_text_encoder\.pth"):
        fetch("sat-nano")


def test_a_revision_is_kept_apart(hub: Hub) -> None:
    newest, old = fetch("sat-nano"), fetch("sat-nano@v1")
    assert newest != old
    assert ModelCard.load(old / "model.json").weights_hash == ModelCard.load(newest / "model.json").weights_hash


@pytest.mark.parametrize("inside", ["", "deep/er"])
def test_a_model_folder_is_taken_as_it_is(hub: Hub, tmp_path: Path, inside: str) -> None:
    source = fetch("sat-nano")
    repository = tmp_path / "mine"
    shutil.copytree(source, repository / inside)
    (repository / inside / "run.py").write_text("raise SystemExit")
    hub.repositories["me/mine"] = Repository(repository)
    folder = fetch("hf:me/mine" + (f"/{inside}" if inside else ""))
    assert ModelFolder.load(folder).weights_hash == ModelFolder.load(source).weights_hash
    names = {f.relative_to(source).as_posix() for f in source.rglob("*") if f.is_file()}
    assert {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()} == names


def test_a_model_folder_whose_weights_are_not_its_own_is_refused(hub: Hub, tmp_path: Path) -> None:
    repository = tmp_path / "mine"
    shutil.copytree(fetch("sat-nano"), repository)
    card = read_json(repository / "model.json")
    (repository / "model.json").write_text(json.dumps(card | {"weights_hash": "0" * 64}))
    hub.repositories["me/mine"] = Repository(repository)
    with pytest.raises(ModelError, match="the weights are not those"):
        fetch("hf:me/mine")
    assert not Published(name="x", repository="me/mine").place.exists()


def test_a_list_with_paths_that_lead_outside_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    info = Repository.info

    def evil(self: Repository, name: str) -> dict[str, object]:
        found = info(self, name)
        found["siblings"][0]["rfilename"] = "Nano/../../../evil.pth"
        return found

    monkeypatch.setattr(Repository, "info", evil)
    with pytest.raises(ModelError, match="not a path inside it"):
        list_repository("zzh99/SAT")


@pytest.mark.slow
def test_a_whole_nano_as_it_is_published(hub: Hub, tmp_path: Path) -> None:
    """Every tensor of SAT-Nano in its true shape, by the name that a person types."""
    files = hub.repositories["zzh99/SAT"].folder / "Nano"
    network_checkpoint(files / "nano.pth", NetworkConfig.nano())
    text_checkpoint(files / "nano_text_encoder.pth", width=768)
    bert_folder(hub.repositories[BIOLORD].folder, width=768)
    hub.cut_after = [200_000_000]
    facts = describe_model(resolve_model("sat-nano"))
    assert facts["network"]["parameters"] == "110.28 M"
    assert facts["classes"]["count"] == 451
    assert facts["provenance"]["checkpoint"]["bytes"] == (files / "nano.pth").stat().st_size


def test_hashes_are_gits_own(hub: Hub) -> None:
    """The oracle is git itself."""
    if shutil.which("git") is None:
        pytest.skip("git is not here")
    folder = hub.repositories["zzh99/SAT"].folder
    expected = subprocess.run(["git", "hash-object", folder / "README.md"], capture_output=True, text=True, check=True)
    listed = {f.path: f for f in list_repository("zzh99/SAT").files}
    assert listed["README.md"].git_hash == expected.stdout.strip()
    assert listed["README.md"].is_whole(folder / "README.md")
    assert listed["Nano/nano.pth"].sha256 == hashlib.sha256((folder / "Nano" / "nano.pth").read_bytes()).hexdigest()


def test_the_library_may_be_told_to_stay_offline(hub: Hub, tmp_path: Path) -> None:
    """As a person meets it: the command, a sentence, exit code 2, no request."""
    done = subprocess.run(
        [sys.executable, "-m", "satunet", "models", "--fetch", "sat-nano"], capture_output=True, encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 2
    assert "put them into" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.asked == []


def test_the_endpoint_is_the_hubs_own_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_module.endpoint().startswith("https://")
