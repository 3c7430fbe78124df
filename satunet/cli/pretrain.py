"""``satunet pretrain text | atlas``: teach the text encoder anatomical knowledge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, TypeAlias

from tyro.conf import OmitArgPrefixes, arg, subcommand

from satunet.cli.knowledge import TreeFile
from satunet.cli.options import Continue, Device, Encoder, Fold, Output, Verbose, fold_of
from satunet.trainers.knowledge.options import AtlasConfig, PretrainConfig


@dataclass(frozen=True, kw_only=True)
class _Pretraining:
    """Options of both stages."""

    output: Output
    tree: TreeFile = None
    encoder: Encoder = "minilm"
    continue_: Continue = False
    device: Device = "auto"
    verbose: Verbose = False

    def _log(self) -> None:
        from satunet.jobs.progress import setup_logging

        setup_logging(self.output / "pretrain.log", verbose=self.verbose)


@dataclass(frozen=True, kw_only=True)
class PretrainText(_Pretraining):
    """Stage 1: a text encoder learns the knowledge tree; retrieval of held-out terms is measured before and after."""

    config: Annotated[PretrainConfig, OmitArgPrefixes] = field(default_factory=PretrainConfig)

    def run(self) -> int:
        """Train; the same command with ``--c`` continues, and ``torchrun`` shares the work."""
        from satunet.cli.printing import print_rows
        from satunet.jobs.files import read_json
        from satunet.knowledge.make import load_or_build
        from satunet.trainers.knowledge.text import pretrain_text

        self._log()
        folder = pretrain_text(
            load_or_build(self.tree),
            self.output,
            encoder=self.encoder,
            config=self.config,
            device=self.device,
            continue_training=self.continue_,
            tree_file=self.tree,
        )
        measures = read_json(self.output / "measures.json")
        print_rows(_rows(measures), f"Terms kept out of training; the encoder is {folder}")
        return 0


@dataclass(frozen=True, kw_only=True)
class PretrainAtlas(_Pretraining):
    """Stage 2: text encoder and image encoder learn from each other, class by class; each step is followed by a text
    step.
    """

    dataset: Annotated[str, arg(aliases=["-d"], metavar="ID", help="Id or name of the unified dataset.")] = "900"
    fold: Fold = "0"
    config: Annotated[AtlasConfig, OmitArgPrefixes] = field(default_factory=AtlasConfig)

    def run(self) -> int:
        """Train; the same command with ``--c`` continues, and ``torchrun`` shares the work."""
        from satunet.datasets.paths import dataset_name_of
        from satunet.knowledge.make import load_or_build
        from satunet.trainers.knowledge.atlas import pretrain_atlas

        self._log()
        done = pretrain_atlas(
            dataset_name_of(self.dataset),
            load_or_build(self.tree),
            self.output,
            fold=fold_of(self.fold),
            encoder=self.encoder,
            config=self.config,
            device=self.device,
            continue_training=self.continue_,
            tree_file=self.tree,
        )
        print(f"text encoder: {done.encoder}\nimage encoder, for satunet train -pretrained_weights: {done.weights}")
        return 0


PretrainAction: TypeAlias = Annotated[PretrainText, subcommand("text")] | Annotated[PretrainAtlas, subcommand("atlas")]


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pre-train the text encoder on anatomical knowledge: text with text, then images with text."""

    action: Annotated[PretrainAction, arg(name="")]

    @property
    def verbose(self) -> bool:
        """Whether the action is verbose."""
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
