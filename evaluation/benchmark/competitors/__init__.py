"""Who takes part in a benchmark. A competitor makes the predictions of a task that are missing, and tells its cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from satunet.evaluation.benchmark.results import Cost
from satunet.evaluation.benchmark.tasks import Task, TrainedNetwork


@runtime_checkable
class Competitor(Protocol):
    """One column of a benchmark."""

    @property
    def name(self) -> str:
        """Its name, which is also that of its folders."""
        ...

    def folder(self, task: Task) -> Path:
        """Where its predictions of a task are."""
        ...

    def channels(self, task: Task) -> tuple[int, ...] | None:
        """Channels that it predicts one by one, each of which must be there; ``None`` if it need not."""
        ...

    def trained_cases(self, task: Task) -> frozenset[str]:
        """Cases of the task's dataset that it is known to be trained on; what nothing tells is not in it."""
        ...

    def predict(self, task: Task) -> dict[str, str]:
        """Make what is missing; scan → reason for those that failed."""
        ...

    def release(self) -> None:
        """Let go of what is in memory: the next competitor's must be its own."""
        ...

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """What it costs, over the tasks it has predictions of; ``None`` if nothing is known."""
        ...


@runtime_checkable
class UnifiedSide(Competitor, Protocol):
    """The competitor whose label space and split decide what is scored."""

    def network(self, fold: int | str | None) -> TrainedNetwork:
        """What is known of its network of a fold, or of the only one there is."""
        ...
