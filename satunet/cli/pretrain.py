"""``satunet pretrain text | atlas``: knowledge into the text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from tyro.conf import arg, subcommand

from satunet.cli.knowledge import TreeFile
from satunet.cli.options import Continue, Device, Encoder, Fold, Output, Verbose, fold_of

if TYPE_CHECKING:
    from satunet.trainers.knowledge.options import PretrainConfig

Rate = Annotated[float, arg(help="Peak learning rate.")]


@dataclass(frozen=True, kw_only=True)
class _Pretraining:
    """Options of both stages."""

    output: Output
    tree: TreeFile = None
    encoder: Encoder = "minilm"
    steps: Annotated[int, arg(help="Optimizer steps.")] = 1000
    batch: Annotated[int, arg(help="Pairs of texts a step, over all processes.")] = 128
    learning_rate: Rate = 2e-4
    frozen_layers: Annotated[int, arg(help="Lowest layers of the text encoder that stay as they are.")] = 3
    held_out: Annotated[float, arg(help="Share of the names that are kept out of training, to measure with.")] = 0.1
    seed: Annotated[int, arg(help="Seed of split, pairs and dropout.")] = 0
    continue_: Continue = False
    device: Device = "auto"
    verbose: Verbose = False

    def _log(self) -> None:
        from satunet.jobs.progress import setup_logging

        setup_logging(self.output / "pretrain.log", verbose=self.verbose)

    def _config(self, **more: Any) -> PretrainConfig:
        from satunet.trainers.knowledge.options import PretrainConfig

        return PretrainConfig(
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            frozen_layers=self.frozen_layers,
            held_out=self.held_out,
            seed=self.seed,
            **more,
        )

    def _where(self) -> dict[str, Any]:
        """What both stages take besides their data and settings."""
        return {
            "encoder": self.encoder,
            "device": self.device,
            "continue_training": self.continue_,
            "tree_file": self.tree,
        }


@dataclass(frozen=True, kw_only=True)
class PretrainText(_Pretraining):
    """Stage 1: a text encoder learns the knowledge tree; retrieval of held-out terms is measured before and after."""

    def run(self) -> int:
        """Train; the same command with ``--c`` goes on, ``torchrun`` shares the work."""
        from satunet.cli.data import print_rows
        from satunet.jobs.files import read_json
        from satunet.knowledge.make import load_or_build
        from satunet.trainers.knowledge.text import pretrain_text

        self._log()
        folder = pretrain_text(load_or_build(self.tree), self.output, config=self._config(), **self._where())
        measures = read_json(self.output / "measures.json")
        print_rows(_rows(measures), f"Terms kept out of training; the encoder is {folder}")
        return 0


@dataclass(frozen=True, kw_only=True)
class PretrainAtlas(_Pretraining):
    """Stage 2: text encoder and image encoder learn from each other, class by class, with a text step after each."""

    dataset: Annotated[str, arg(aliases=["-d"], metavar="ID", help="Id or name of the unified dataset.")] = "900"
    fold: Fold = "0"
    scans: Annotated[int, arg(help="Scans a step, over all processes.")] = 4
    learning_rate: Rate = 1e-4

    def run(self) -> int:
        """Train; the same command with ``--c`` goes on, ``torchrun`` shares the work."""
        from satunet.datasets.paths import dataset_name_of
        from satunet.knowledge.make import load_or_build
        from satunet.trainers.knowledge.atlas import pretrain_atlas

        self._log()
        done = pretrain_atlas(
            dataset_name_of(self.dataset),
            load_or_build(self.tree),
            self.output,
            fold=fold_of(self.fold),
            config=self._config(scans=self.scans),
            **self._where(),
        )
        print(f"text encoder: {done.encoder}\nimage encoder, for satunet train -pretrained_weights: {done.weights}")
        return 0


PretrainAction: TypeAlias = Annotated[PretrainText, subcommand("text")] | Annotated[PretrainAtlas, subcommand("atlas")]


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pre-train the text encoder on knowledge: text with text, then atlas with text."""

    action: Annotated[PretrainAction, arg(name="")]

    @property
    def verbose(self) -> bool:
        """As the action says."""
        return self.action.verbose

    def run(self) -> int:
        """Run the action."""
        return self.action.run()


def _rows(measures: dict[str, dict[str, object]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name in ("synonym", "definition", "part_whole"):
        for value in ("recall_at_1", "recall_at_10", "mrr"):
            before, after = (measures[k][name][value] for k in ("before", "after"))  # type: ignore[index]
            rows.append(
                {"measure": f"{name.replace('_', ' → ')} {value.replace('_', ' ')}", "before": before, "after": after}
            )
    rows.append({"measure": "side confusion", **{k: measures[k]["side_confusion"] for k in ("before", "after")}})
    return rows
