"""A model card in Markdown, generated from ``model.json``, so that the two cannot differ."""

from __future__ import annotations

from collections.abc import Mapping

from satunet.models.folder import ModelCard


def model_card_text(card: ModelCard, about: str, missed: Mapping[str, float] | None = None) -> str:
    """The model card of a model with scores.

    Args:
        card: Description of the model.
        about: Intended use and limits, in Markdown.
        missed: Class that was trained, but scores too low to be offered → mean DSC.
    """
    lines = [f"# {card.name}", "", about.strip(), "", "## Scores", ""]
    lines += ["| class | modality | DSC | NSD at 1 mm | scans | from |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for s in card.scores:
        why = "patients kept out" if s.kept_out else "never trained on"
        lines.append(f"| {s.class_name} | {s.modality} | {s.dsc:.3f} | {s.nsd:.3f} | {s.scans} | {s.dataset}, {why} |")
    if missed:
        lines += ["", "Trained, but not good enough to be offered (mean DSC): "]
        lines += [", ".join(f"{name} {value:.2f}" for name, value in sorted(missed.items())) + "."]
    lines += ["", "## Sources", "", "| source | what | licence | from |", "| --- | --- | --- | --- |"]
    lines += [f"| {s.name} | {s.what} | {s.licence} | {s.address} |" for s in card.sources]
    lines += ["", f"Licence of the weights: {card.licence or 'not stated'}.", ""]
    return "\n".join(lines)
