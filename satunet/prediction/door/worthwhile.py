"""Classes that are worth looking for in a scan when every class is requested.

A model may have learned some of its classes from crops, in which a window shows a few centimetres at a fine spacing. In
a scan of the trunk, such a class takes hundreds of windows, most of them of regions in which the model never saw it,
while other classes take a few. A class is left out if

- the scan is far larger than the scans it was learned from (it takes more than :data:`MOST_WINDOWS` windows side by
  side), and
- it costs far more than the cheapest class (more than :data:`TIMES_THE_FEWEST` times as many windows).

If all classes cost the same, none is left out, however large the scan. A class that is requested by name is always
looked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from satunet.geometry import Grid, extent_mm
from satunet.labels import LabelSpace
from satunet.plan import UnifiedPlan

MOST_WINDOWS = 12
"""Number of windows side by side up to which a class is always looked for."""
TIMES_THE_FEWEST = 4
"""Multiple of the cheapest class's number of windows up to which a class is looked for."""
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Known:
    """Classes of a model, and the plan by which it looks for them.

    Attributes:
        space: Classes of the model.
        plan: Plan of the model.
    """

    space: LabelSpace
    plan: UnifiedPlan


def worth_looking_for(names: Sequence[str], modality: str, grid: Grid, models: Sequence[Known]) -> frozenset[str]:
    """Classes that are worth looking for in a scan.

    Args:
        names: Classes that are known in the modality.
        modality: Modality of the scan.
        grid: Grid of the scan.
        models: Models that are used together; a class takes the windows of every model that knows it.
    """
    windows = windows_of(names, modality, grid, models)
    most = max(MOST_WINDOWS, TIMES_THE_FEWEST * min(windows.values(), default=0))
    return frozenset(name for name in names if windows[name] <= most)


def windows_of(names: Sequence[str], modality: str, grid: Grid, models: Sequence[Known]) -> Mapping[str, int]:
    """Class → number of windows side by side that cover a scan at the spacing at which the class is looked for."""
    windows = dict.fromkeys(names, 0)
    for model in models:
        plan, extent = model.plan, extent_mm(grid, model.plan.orientation)
        for name in names:
            if name in model.space:
                spacing = plan.spacing_for(name, modality, extent)
                window = plan.window_of(name, modality, spacing[0])
                windows[name] += math.prod(
                    math.ceil(e / (s * p)) for e, s, p in zip(extent, spacing, window, strict=True)
                )
    return windows


def told(names: Sequence[str]) -> str:
    """One line about classes that are not looked for, and how to request them anyway."""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return (
        f"not looked for, because the model knows them only from much smaller scans: {shown} "
        f'(to look for them anyway, name them: predict -p "{names[0]}" …)'
    )
