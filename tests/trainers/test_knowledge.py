"""Knowledge pre-training of tiny encoders on small trees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from satunet.errors import KnowledgeError, ModelError, UserError
from satunet.knowledge.build import Imported, assemble
from satunet.knowledge.concepts import read_concepts
from satunet.knowledge.file import load_tree, save_tree
from satunet.knowledge.retrieval import measure
from satunet.knowledge.tree import KnowledgeTree, Source, Term, name_key
from satunet.text import load_text_encoder
from satunet.trainers.knowledge.atlas import masked_mean, pretrain_atlas
from satunet.trainers.knowledge.loss import contrastive_loss
from satunet.trainers.knowledge.options import AtlasConfig, PretrainConfig
from satunet.trainers.knowledge.pairs import PairSampler
from satunet.trainers.knowledge.text import pretrain_text
from satunet.trainers.knowledge.tower import TextTower

from .helpers import NAME

ROOT = Path(__file__).resolve().parents[2]
ORGANS = ("liver", "spleen", "kidney", "lung", "heart", "brain", "colon", "thymus")
PLACES = ("artery", "vein", "nerve", "wall", "lobe")
SIDES = ("left", "right")


def small_tree() -> KnowledgeTree:
    """Artery, vein, … of eight organs and their sides: names and definitions say the same in other words."""
    found = Imported(sources=[Source(name="toy", version="1", licence="CC0-1.0")])
    for i, organ in enumerate(ORGANS):
        found.add(
            Term(id=organ, name=organ, source="toy", synonyms=(f"word{i}",), definition=f"thing called word{i}"), ""
        )
        for place in PLACES:
            key = f"{place} of {organ}"
            found.add(
                Term(
                    id=key,
                    name=key,
                    source="toy",
                    synonyms=(f"word{i} {place}",),
                    definition=f"thing {place} in word{i}",
                ),
                "",
            )
            found.relate(key, "part_of", organ, "")
            for side in SIDES:
                name = f"{side} {place} of {organ}"
                found.add(Term(id=name, name=name, source="toy", synonyms=(f"{place} of word{i} {side}",)), "")
                found.relate(name, f"{side}_variant_of", key, "")
                found.relate(name, "part_of", organ, "")
        for place in PLACES:
            for side, other in (SIDES, SIDES[::-1]):
                found.relate(f"{side} {place} of {organ}", "other_side", f"{other} {place} of {organ}", "")
    return assemble([found]).tree


def tiny_encoder(folder: Path) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ORGANS, *PLACES, *SIDES, *(f"word{i}" for i in range(8)),
             "of", "in", "is", "part", "a", "kind", "the", "one", "thing", "called", "on", "side", "sided", "lt", "rt",
             "(", ")", ",", "-"]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATUNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def start(tmp_path: Path) -> str:
    return str(tiny_encoder(tmp_path / "start"))


def settings(kind: type[PretrainConfig] = PretrainConfig, **changes: object) -> Any:
    values = {
        "steps": 6,
        "batch": 16,
        "learning_rate": 3e-3,
        "frozen_layers": 0,
        "held_out": 0.2,
        "checkpoint_every": 3,
    }
    return kind(**{**values, **changes})  # type: ignore[arg-type]


# ---- the loss ---------------------------------------------------------------------------------------------------


def test_with_one_positive_a_row_it_is_clips_loss() -> None:
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    logits = 7 * a @ b.T
    target = torch.arange(5)
    expected = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    assert contrastive_loss(a, b, target, torch.tensor(7.0)).item() == pytest.approx(expected.item(), rel=1e-6)


def test_several_positives_by_hand() -> None:
    """Two concepts, the first twice; all cosines 0 or 1, so every softmax is known."""
    a = torch.eye(3)[[0, 0, 1]]
    ids = torch.tensor([0, 0, 1])
    e = np.e
    # Rows of the first concept: two positives with probability e / (2 e + 1) each; the third row: e / (e + 2).
    expected = (2 * -np.log(e / (2 * e + 1)) - np.log(e / (e + 2))) / 3
    assert contrastive_loss(a, a, ids, torch.tensor(1.0)).item() == pytest.approx(expected, rel=1e-6)


def test_ignored_pairs_are_no_negatives() -> None:
    a = torch.eye(3)[[0, 0, 1]]  # the second anchor lies on the first's positive, and has an id of its own
    ids = torch.tensor([0, 5, 1])
    ignored = torch.zeros(3, 3, dtype=torch.bool)
    ignored[1, 0] = True
    e = np.e
    rows = [-np.log(e / (2 * e + 1)), -np.log(e / (e + 1)), -np.log(e / (e + 2))]
    columns = [-np.log(e / (e + 1)), -np.log(e / (2 * e + 1)), -np.log(e / (e + 2))]
    expected = (np.mean(rows) + np.mean(columns)) / 2
    assert contrastive_loss(a, a, ids, torch.tensor(1.0), ignored).item() == pytest.approx(expected, rel=1e-6)
    # A positive cannot be ignored.
    both = contrastive_loss(a, a, ids, torch.tensor(1.0), torch.eye(3, dtype=torch.bool))
    assert both.item() == pytest.approx(contrastive_loss(a, a, ids, torch.tensor(1.0)).item())


def test_features_that_autocast_made_meet_in_float32() -> None:
    """An image tower gives bfloat16, the temperature and often the text float32; a scale of 100 needs all digits."""
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(6, 16), dim=1).bfloat16() for _ in range(2))
    ids, scale = torch.tensor([0, 1, 2, 2, 3, 4]), torch.tensor(100.0)
    expected = contrastive_loss(a.float(), b.float(), ids, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive_loss(a, b.float(), ids, scale)
    assert contrastive_loss(a, b, ids, scale).item() == expected.item() == inside.item()
    assert inside.dtype == torch.float32


# ---- concepts and pairs -----------------------------------------------------------------------------------------


def test_sides_are_held_out_together_and_names_are_kept_apart() -> None:
    concepts = read_concepts(small_tree(), held_out=0.3)
    held = {c.base for c in concepts if c.held_out}
    assert 0.1 < len(held) / len({c.base for c in concepts}) < 0.5
    assert not held & {c.base for c in concepts if not c.held_out}
    names = {name_key(n) for c in concepts if c.held_out for n in c.names}
    assert not names & {name_key(n) for c in concepts if not c.held_out for n in c.names}


def test_terms_that_are_the_same_are_one_concept() -> None:
    found = Imported(sources=[Source(name="s", version="1", licence="CC0-1.0")])
    for key, name in (("1", "kidney"), ("2", "Kidney"), ("3", "ren"), ("4", "liver")):
        found.add(Term(id=key, name=name, source="s", definition=f"definition {key}"), "")
    found.relate("1", "same_as", "3", "")
    concepts = read_concepts(assemble([found]).tree, held_out=0)
    assert [c.names for c in concepts] == [("kidney", "ren"), ("liver",)]
    assert concepts[0].definitions == ("definition 1", "definition 2", "definition 3")


def test_no_text_of_a_held_out_concept_is_ever_drawn() -> None:
    concepts = read_concepts(small_tree(), held_out=0.3)
    sampler = PairSampler(concepts, batch=32)
    forbidden = {name_key(n) for c in concepts if c.held_out for n in c.names}
    forbidden |= {name_key(d) for c in concepts if c.held_out for d in c.definitions}
    for step in range(40):
        batch = sampler(step)
        assert len(batch.anchors) == len(batch.positives) == len(batch.ids) == 32
        assert not forbidden & {name_key(t) for t in (*batch.anchors, *batch.positives)}


def test_batches_depend_on_seed_and_step_alone_and_bring_the_other_side() -> None:
    concepts = read_concepts(small_tree(), held_out=0)
    first, again = PairSampler(concepts, seed=3)(7), PairSampler(concepts, seed=3)(7)
    assert first.anchors == again.anchors and np.array_equal(first.ids, again.ids)
    assert PairSampler(concepts, seed=4)(7).anchors != first.anchors
    drawn = {int(i) for i in first.ids if i < len(concepts)}
    sided = [i for i in drawn if concepts[i].side]
    assert sided
    together = [i for i in sided if concepts[i].near[0] in drawn]
    assert len(together) / len(sided) > 0.5
    assert concepts[concepts[sided[0]].near[0]].base == concepts[sided[0]].base


def test_a_tree_without_anything_to_pair_is_an_error() -> None:
    found = Imported(sources=[Source(name="s", version="1", licence="CC0-1.0")])
    for i in range(9):
        found.add(Term(id=str(i), name=f"a name of more than four words {i}", source="s"), "")
    with pytest.raises(KnowledgeError, match="gives no pairs"):
        PairSampler(read_concepts(assemble([found]).tree, held_out=0), batch=4)(0)


def test_a_side_that_is_a_concept_keeps_its_id() -> None:
    concepts = read_concepts(small_tree(), held_out=0)
    sampler = PairSampler(concepts, batch=32, mix=(0, 0, 0, 1))
    for batch in map(sampler, range(5)):
        for positive, i in zip(batch.positives, batch.ids.tolist(), strict=True):
            known = [j for j, c in enumerate(concepts) if name_key(positive) in map(name_key, c.names)]
            assert not known or i in known


# ---- measures ---------------------------------------------------------------------------------------------------


def test_measures_of_embeddings_made_by_hand() -> None:
    found = Imported(sources=[Source(name="s", version="1", licence="CC0-1.0")])
    for key, synonym, definition in (("left x", "lx", "about x"), ("right x", "rx", ""), ("y", "", "")):
        found.add(Term(id=key, name=key, source="s", synonyms=(synonym,) if synonym else (), definition=definition), "")
    found.relate("left x", "part_of", "y", "")
    concepts = read_concepts(assemble([found]).tree, held_out=0)
    vectors = {
        "left x": [1, 0, 0], "right x": [0.8, 0.6, 0], "y": [0, 0, 1],
        "lx": [0.9, 0.1, 0],  # first answer right
        "rx": [1, 0, 0],  # its own term is second
        "about x": [0.6, 0.8, 0],  # its own term is second
        "left x is part of": [1, 0, 0.1],  # nearest is right x; y is second, left x itself left aside
    }  # fmt: skip

    def encode(texts: object) -> np.ndarray:
        return np.array([vectors[t] for t in texts], dtype=np.float32)  # type: ignore[attr-defined]

    result = measure(encode, concepts, of=lambda c: True)
    assert (result.synonym.queries, result.synonym.recall_at_1, result.synonym.mrr) == (2, 0.5, 0.75)
    assert (result.definition.recall_at_1, result.definition.recall_at_10, result.definition.mrr) == (0, 1, 0.5)
    assert (result.part_whole.queries, result.part_whole.mrr) == (1, 0.5)
    assert (result.side_confusion, result.sided) == (1.0, 2)
    flat = measure(lambda texts: np.ones((len(texts), 2), np.float32), concepts, of=lambda c: True)
    assert flat.synonym.recall_at_1 == 0  # one point for all is no knowledge


# ---- stage 1 ----------------------------------------------------------------------------------------------------


def test_a_tiny_encoder_learns_what_it_was_not_shown(start: str, tmp_path: Path) -> None:
    folder = pretrain_text(
        small_tree(), tmp_path / "run", encoder=start, config=settings(steps=80, batch=32), device="cpu"
    )
    measures = json.loads((tmp_path / "run" / "measures.json").read_text())
    before, after = measures["before"], measures["after"]
    assert after["synonym"]["mrr"] > before["synonym"]["mrr"] + 0.2
    assert after["definition"]["mrr"] > before["definition"]["mrr"] + 0.1
    assert after["part_whole"]["recall_at_1"] > before["part_whole"]["recall_at_1"] + 0.2
    assert after["side_confusion"] == 0
    record = json.loads((folder / "training_record.json").read_text())
    assert record["sources"] == [{"name": "toy", "version": "1", "licence": "CC0-1.0", "url": ""}]
    assert record["held_out"] > 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(10, 81, 10))
    # The saved folder is the encoder that was measured, to us and to sentence-transformers.
    encoder = load_text_encoder(str(folder))
    texts = ["left artery of liver", "word3"]
    vectors = encoder.encode(texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    concepts = read_concepts(small_tree(), held_out=0.2)
    assert measure(encoder.encode, concepts).rounded() == after
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu")
    assert np.allclose(model.encode(texts), vectors, atol=1e-5)


def test_a_run_that_goes_on_is_the_unbroken_one(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = small_tree()
    pretrain_text(tree, tmp_path / "whole", encoder=start, config=settings(), device="cpu")

    from satunet.trainers.knowledge import text

    taken = text.TextStep.__call__

    def killed(self: object, step: int) -> float:
        if step == 4:
            raise KeyboardInterrupt
        return taken(self, step)  # type: ignore[arg-type]

    monkeypatch.setattr(text.TextStep, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain_text(tree, tmp_path / "broken", encoder=start, config=settings(), device="cpu")
    monkeypatch.setattr(text.TextStep, "__call__", taken)
    with pytest.raises(UserError, match="continue with --c"):
        pretrain_text(tree, tmp_path / "broken", encoder=start, config=settings(), device="cpu")
    with pytest.raises(UserError, match="made with settings"):
        pretrain_text(tree, tmp_path / "broken", encoder=start, config=settings(batch=8), continue_training=True)
    pretrain_text(tree, tmp_path / "broken", encoder=start, config=settings(), device="cpu", continue_training=True)
    a, b = (
        torch.load(tmp_path / d / "checkpoint.pt", weights_only=True)["modules"]["tower"] for d in ("whole", "broken")
    )
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=0)
    (tmp_path / "broken" / "checkpoint.pt").write_bytes(b"x")
    with pytest.raises(ModelError, match="cannot be continued from"):
        pretrain_text(tree, tmp_path / "broken", encoder=start, config=settings(), continue_training=True)


@pytest.mark.slow
def test_two_processes_are_one(planned: Path, start: str, tmp_path: Path) -> None:
    """torchrun with gloo, on stage 2, which takes steps of stage 1 as well; shares of texts and scans are unequal."""
    save_tree(small_tree(), tmp_path / "tree.jsonl")
    # In float32: two processes of bfloat16 differ by its rounding.
    config = settings(AtlasConfig, batch=5, scans=3, steps=3, dropout=False, learning_rate=1e-3, precision="float32")
    pretrain_atlas(NAME, small_tree(), tmp_path / "one", encoder=start, config=config, device="cpu", fold="all")
    script = tmp_path / "two.py"
    script.write_text(
        "from pathlib import Path\n"
        "from satunet.knowledge.file import load_tree\n"
        "from satunet.trainers.knowledge.atlas import pretrain_atlas\n"
        "from satunet.trainers.knowledge.options import AtlasConfig\n"
        f"pretrain_atlas({NAME!r}, load_tree(Path({str(tmp_path / 'tree.jsonl')!r})), "
        f"Path({str(tmp_path / 'two')!r}), encoder={start!r}, config={config!r}, device='cpu', fold='all')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(torchrun, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (torch.load(tmp_path / d / "checkpoint.pt", weights_only=True)["modules"] for d in ("one", "two"))
    for module, weights in one.items():
        for name, value in weights.items():
            # Normalisation and softmax take these out: their gradients are rounding, which Adam makes whole steps of.
            if not name.endswith((".conv.bias", "key.bias")):
                torch.testing.assert_close(two[module][name], value, rtol=1e-3, atol=2e-5, msg=f"{module} {name}")
    # The losses of all processes are one loss.
    logs = [(tmp_path / d / "log.jsonl").read_text() for d in ("one", "two")]
    a, b = (json.loads(log) for log in logs)
    assert a["atlas"] == pytest.approx(b["atlas"], rel=1e-4) and a["text"] == pytest.approx(b["text"], rel=1e-4)


def test_what_cannot_be_trained(start: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="9 layers should be frozen; the model has 2 layers"):
        TextTower(load_text_encoder(start), frozen_layers=9)
    found = Imported(sources=[Source(name="s", version="1", licence="CC0-1.0")])
    found.add(Term(id="1", name="liver", source="s"), "")
    with pytest.raises(KnowledgeError, match="1 concepts to train on"):
        pretrain_text(assemble([found]).tree, tmp_path / "run", encoder=start, config=settings(held_out=0))
    for wrong in ({"steps": 0}, {"held_out": 1.5}, {"learning_rate": 0}):
        with pytest.raises(UserError):
            settings(**wrong)


def test_frozen_layers_stay_and_the_others_move(start: str, tmp_path: Path) -> None:
    config = settings(frozen_layers=1, steps=3)
    folder = pretrain_text(small_tree(), tmp_path / "run", encoder=start, config=config, device="cpu")
    before, after = (load_text_encoder(str(f)).load()[1].state_dict() for f in (start, folder))  # type: ignore[attr-defined]
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved and all("layer.1." in n for n in moved)


def test_learning_rate_rises_and_falls() -> None:
    config = settings(steps=50, warmup=0.1)
    rates = [config.learning_rate_at(s) for s in range(50)]
    assert max(rates) == rates[5] == pytest.approx(config.learning_rate)
    assert all(a < b for a, b in pairwise(rates[:5])) and all(a > b for a, b in pairwise(rates[5:]))


# ---- stage 2 ----------------------------------------------------------------------------------------------------


def test_features_are_means_over_masks_at_every_resolution() -> None:
    features = torch.arange(8.0).reshape(1, 2, 2, 2)
    masks = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    masks[0, :2] = True  # the half x = 0 of the map: values 0 to 3
    masks[1, 3, 3, 3] = True  # one voxel in the map's last: value 7
    assert masked_mean(features, masks)[:, 0].tolist() == pytest.approx([1.5, 7.0])


@pytest.mark.parametrize("native", [False, True], ids=["float32", "bfloat16"])
def test_atlas_and_text_learn_from_each_other(
    planned: Path, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    from satunet.datasets.paths import preprocessed_dir
    from satunet.network.model import PromptedUNet
    from satunet.plan import UnifiedPlan
    from satunet.trainers.unified.pretrained import start_from

    monkeypatch.setenv("SATUNET_PRECISION", "bfloat16" if native else "float32")  # PyTorch emulates what is not there
    config = settings(AtlasConfig, steps=6, batch=8, scans=2, learning_rate=1e-3)
    done = pretrain_atlas(NAME, small_tree(), tmp_path / "run", encoder=start, config=config, device="cpu", fold="all")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"step", "atlas", "text", "learning_rate"} == set(lines[-1])
    measures = json.loads((tmp_path / "run" / "measures.json").read_text())
    assert measures["atlas_after"]["classes_seen"] > 0
    assert load_text_encoder(str(done.encoder)).dim == 32
    network = PromptedUNet(UnifiedPlan.load(preprocessed_dir() / NAME / "satunetPlans.json").network)
    before = {n: p.clone() for n, p in network.state_dict().items()}
    assert "image encoder starts from" in start_from(network, done.weights)
    moved = {n for n, p in network.state_dict().items() if not torch.equal(p, before[n])}
    assert moved and all(n.startswith("backbone.encoder.") for n in moved)
    # Going on when all is done changes nothing and says the same.
    again = pretrain_atlas(NAME, small_tree(), tmp_path / "run", encoder=start, config=config, device="cpu", fold="all",
                           continue_training=True)  # fmt: skip
    assert again == done


def test_a_tree_of_the_users_classes_names_the_scans_that_show_them(planned: Path, tmp_path: Path) -> None:
    from satunet.cli import run
    from satunet.datasets.paths import preprocessed_dir
    from satunet.labels import LabelSpace
    from satunet.plan import UnifiedPlan
    from satunet.preprocessing.store.scans import ScanStore

    file = tmp_path / "tree.jsonl"
    assert run(["knowledge", "build", "-d", "900", "--ontologies", "none", "-o", str(file)]) == 0
    tree = load_tree(file)
    folder = preprocessed_dir() / NAME
    space = LabelSpace.load(folder / "label_space.json")
    store = ScanStore(folder / UnifiedPlan.load(folder / "satunetPlans.json").data_identifier)
    shown: dict[str, set[str]] = {}
    for scan in store.scan_ids:
        labels = set(np.unique(np.asarray(store.labels(scan)[:])).tolist())
        for name, ids in space.ids[store.record(scan).dataset].items():
            if labels & set(ids):
                shown.setdefault(name, set()).add(scan)
    assert {t.name: set(t.scans) for t in tree.terms.values() if t.scans} == shown
