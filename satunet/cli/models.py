"""``satunet models | import | export | info``: models in folders and by name."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from satunet.cli.options import Verbose

Model = Annotated[
    Path, arg(aliases=["-m"], metavar="FOLDER", help="Model folder, or result folder of a trained network.")
]
NewModel = Annotated[Path, arg(aliases=["-o"], metavar="FOLDER", help="Model folder to write; it must not exist yet.")]
Name = Annotated[str | None, arg(help="A name for the model.")]
Licence = Annotated[str | None, arg(help="Licence of the weights, as their publishers state it.")]
_Fold = Annotated[str | None, arg(aliases=["-f"], help="Fold whose weights to take; the only one if not given.")]
_Checkpoint = Annotated[str, arg(aliases=["-chk"], help="Checkpoint file in the fold's folder.")]


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models that come with satunet, those in the cache, your own, and published ones that are known by
    name.
    """

    fetch: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME",
            help="Fetch published models first: sat-nano, sat-pro, hf:owner/name[/folder][@revision]. If the hub cannot be reached, "
            "this says which files to put into which folder.",
        ),
    ] = ()
    json: Annotated[bool, arg(help="Print JSON.")] = False
    verbose: Verbose = False

    def run(self) -> int:
        """Fetch the models asked for and print one row per model; returns 1 if one cannot be read."""
        from satunet.cli.environment import quick_check
        from satunet.cli.printing import print_rows
        from satunet.errors import ModelError
        from satunet.models.listing import list_models
        from satunet.models.published.known import KNOWN, published_model

        quick_check()
        asked = [published_model(name) for name in self.fetch]
        unknown = [name for name, model in zip(self.fetch, asked, strict=True) if model is None]
        if unknown:
            allowed = f"{', '.join(KNOWN)} and hf:owner/name[/folder][@revision]"
            raise ModelError(f"{', '.join(unknown)}: not the name of a published model; allowed are {allowed}")
        for model in asked:
            from satunet.models.published.cached import published_folder

            if model is not None:
                published_folder(model)
        rows = list_models()
        if self.json:
            sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        else:
            print_rows(rows, "Models for -m")
        return 1 if any("problem" in row for row in rows) else 0


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turn the published checkpoints of SAT (Nano or Pro) into a model folder."""

    source: Annotated[Positional[Literal["sat"]], arg(metavar="sat", help="Method whose checkpoints to import.")]
    checkpoint: Annotated[Path, arg(metavar="FILE", help="SAT_Nano.pth or SAT_Pro.pth.")]
    text_encoder: Annotated[Path, arg(metavar="FILE", help="text_encoder.pth of the same download.")]
    output: NewModel
    text_architecture: Annotated[
        str,
        arg(metavar="NAME", help="Hub name or folder of the text encoder's configuration and tokenizer."),
    ] = "FremyCompany/BioLORD-2023-C"
    name: Name = None
    licence: Licence = None
    verbose: Verbose = False

    def run(self) -> int:
        """Import the model and print the same as ``satunet info``."""
        from satunet.cli.environment import quick_check
        from satunet.models.import_sat import import_sat

        quick_check()
        import_sat(
            self.checkpoint,
            self.text_encoder,
            self.output,
            text_architecture=self.text_architecture,
            name=self.name,
            licence=self.licence,
        )
        return Info(model=self.output).run()


@dataclass(frozen=True, kw_only=True)
class Export:
    """Make a model folder from a trained network: weights, plan, classes and texts, without what only training
    needs.
    """

    model: Model
    output: NewModel
    fold: _Fold = None
    checkpoint: _Checkpoint = "checkpoint_final.pth"
    name: Name = None
    licence: Licence = None
    verbose: Verbose = False

    def run(self) -> int:
        """Export the model and print the same as ``satunet info``."""
        from satunet.cli.environment import quick_check
        from satunet.models.writing import export_model

        quick_check()
        export_model(
            self.model,
            self.output,
            fold=self.fold,
            checkpoint=self.checkpoint,
            name=self.name,
            licence=self.licence,
        )
        return Info(model=self.output).run()


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show a model: network, plan, classes, text encoder, hash, provenance, licence."""

    model: Annotated[
        Positional[Path],
        arg(metavar="MODEL", help="Model folder, or result folder of a trained network."),
    ]
    classes: Annotated[bool, arg(help="Also list the classes.")] = False
    verify: Annotated[bool, arg(help="Load the weights and check them against their hash.")] = False
    json: Annotated[bool, arg(help="Print JSON.")] = False
    verbose: Verbose = False

    def run(self) -> int:
        """Print the model; one that cannot be read is an error."""
        from satunet.models.info import describe_model

        facts = describe_model(self.model, classes=self.classes, verify=self.verify)
        if self.json:
            sys.stdout.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
            return 0
        for key, value in facts.items():
            sys.stdout.write(_lines(key, value))
        return 0


def _lines(key: str, value: object, indent: str = "") -> str:
    title = f"{indent}{key.replace('_', ' ')}:"
    if isinstance(value, dict):
        return title + "\n" + "".join(_lines(k, v, indent + "  ") for k, v in value.items())
    if isinstance(value, (list, tuple)) and any(isinstance(v, str) and len(value) > 8 for v in value):
        return title + "\n" + "".join(f"{indent}  {v}\n" for v in value)
    if isinstance(value, (list, tuple)):
        value = ", ".join(str(v) for v in value)
    return f"{title} {'not stated' if value is None else value}\n"
