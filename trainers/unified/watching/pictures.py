"""Pictures of predictions beside labels, so that the eye finds a mirrored or empty mask in a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST = 10  # number of classes in a picture; more colours cannot be told apart


def prediction_figure(
    image: NDArray[np.floating[Any]],
    reference: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    names: Sequence[str],
    title: str,
) -> Any:
    """Image, labels and prediction side by side in the axial slice with most of the labels.

    Args:
        image: (X, Y, Z), axes right, anterior, superior.
        reference: (K, X, Y, Z) masks of the queries.
        predicted: (K, X, Y, Z) predicted masks.
        names: Names of the queries.
        title: Title above the picture.

    Returns:
        A matplotlib figure, not registered with pyplot.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    shown = np.argsort(-reference.reshape(len(names), -1).sum(1), kind="stable")[:_MOST]
    counts = reference[shown].sum(axis=(0, 1, 2)) if len(shown) else np.zeros(image.shape[2])
    if not counts.any() and len(shown):
        counts = predicted[shown].sum(axis=(0, 1, 2))
    z = int(np.argmax(counts)) if counts.any() else image.shape[2] // 2
    low, high = np.percentile(image, (1, 99))
    grey = np.clip((image[:, :, z] - low) / max(float(high - low), 1e-6), 0, 1)
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, masks, heading in zip(
        figure.subplots(1, 3), (None, reference, predicted), ("image", "labels", "prediction"), strict=True
    ):
        picture = np.repeat(grey[:, :, None], 3, axis=2)
        if masks is not None:
            for number, k in enumerate(shown):
                inside = masks[k, :, :, z]
                picture[inside] = 0.45 * picture[inside] + 0.55 * np.array(colours[number])
        # Rows from anterior to posterior; the patient's right is on the left, as radiologists look at it.
        axes.imshow(picture.transpose(1, 0, 2)[::-1, ::-1], interpolation="nearest")
        axes.set_title(heading, fontsize=9)
        axes.axis("off")
    handles = [_square(colours[number]) for number in range(len(shown))]
    labels = [names[k] for k in shown]
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=6, frameon=False)
    figure.suptitle(title, fontsize=9)
    return figure


def _square(colour: Any) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour)
