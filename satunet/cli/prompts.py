"""``satunet prompts``: what prompts mean to a model, without a scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from satunet.cli.options import Encoder, Verbose
from satunet.jobs.wording import counted

if TYPE_CHECKING:
    from satunet.labels import LabelSpace
    from satunet.prompts import Reading
    from satunet.text import TextEncoder


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Say what prompts mean to a model: which classes, the nearest ones, and why. Prediction decides in the same
    way.
    """

    prompts: Annotated[
        tuple[str, ...], arg(aliases=["-p"], metavar="TEXT", help='Prompts, such as "liver" "left kidney".')
    ] = ()
    prompt_file: Annotated[Path | None, arg(metavar="FILE", help="Text file with one prompt per line.")] = None
    model: Annotated[
        Path | None, arg(aliases=["-m"], metavar="FOLDER", help="Model folder whose classes and text encoder to take.")
    ] = None
    labels: Annotated[
        str, arg(metavar="NAME", help="Without a model: 'sat_ds' for SAT-DS's classes, or a label_space.json.")
    ] = "sat_ds"
    encoder: Encoder = "minilm"
    json: Annotated[bool, arg(help="Print a JSON list instead of a table.")] = False
    verbose: Verbose = False

    def run(self) -> int:
        """Print it."""
        from satunet.errors import PromptError
        from satunet.prompts import PromptReader

        wanted = [p for p in (*self.prompts, *self._listed()) if p.strip()]
        if not wanted:
            raise PromptError('say what to read with one of: -p "liver" …, --prompt_file FILE')
        space, where = self._space()
        reader = PromptReader(space)
        readings = [reader.interpret(prompt, self._encoder) for prompt in wanted]
        if self.json:
            import json

            print(json.dumps([as_json(reading) for reading in readings], ensure_ascii=False, indent=1))
            return 0
        from satunet.cli.printing import print_rows

        rows: list[dict[str, object]] = [
            {
                "prompt": reading.prompt,
                "status": reading.status,
                "classes": list(reading.classes),
                "nearest": [f"{name} ({similarity:.2f})" for name, similarity in reading.nearest],
                "reason": reading.reason,
            }
            for reading in readings
        ]
        print_rows(
            rows, f"{counted(len(rows), 'prompt')}, {counted(len(space.classes), 'class', 'classes')} of {where}"
        )
        return 0

    def _listed(self) -> tuple[str, ...]:
        if self.prompt_file is None:
            return ()
        from satunet.prediction.door.inputs import read_prompts

        return read_prompts(self.prompt_file)

    def _space(self) -> tuple[LabelSpace, str]:
        from satunet.labels import LabelSpace, catalogue_space

        if self.model is not None:
            from satunet.models.choice import existing_model

            # Nothing else of the model is read: words are understood without its weights, its encoder, and torch.
            return LabelSpace.load(existing_model(self.model) / "label_space.json"), str(self.model)
        if self.labels == "sat_ds":
            return catalogue_space(), "SAT-DS"
        return LabelSpace.load(Path(self.labels)), self.labels

    def _encoder(self) -> TextEncoder:
        """The text encoder, loaded for the first prompt whose words alone do not tell its meaning."""
        if self.model is not None:
            from satunet.models.folder import ModelDescription

            return ModelDescription.read(self.model).text_encoder()
        from satunet.text import load_text_encoder

        return load_text_encoder(self.encoder)


def as_json(reading: Reading) -> dict[str, object]:
    """A reading as plain strings and numbers."""
    return {
        "prompt": reading.prompt,
        "status": reading.status,
        "classes": list(reading.classes),
        "similarity": reading.similarity,
        "nearest": [{"class": name, "similarity": similarity} for name, similarity in reading.nearest],
        "reason": reading.reason,
    }
