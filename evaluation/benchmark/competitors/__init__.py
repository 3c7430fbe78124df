"""Participants of a benchmark. A competitor makes the missing predictions of a task and reports its cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from satunet.evaluation.benchmark.conclusions.results import Cost
from satunet.evaluation.benchmark.tasks import Task, TrainedNetwork


@runtime_checkable
class Competitor(Protocol):
    """One column of a benchmark."""

    @property
    def name(self) -> str:
        """Name of the competitor, which is also the name of its folders."""
        ...

    def folder(self, task: Task) -> Path:
        """Folder of its predictions for a task."""
        ...

    def channels(self, task: Task) -> tuple[int, ...] | None:
        """Channels that it predicts separately, all of which are required; ``None`` if it predicts whole cases."""
        ...

    def trained_cases(self, task: Task) -> frozenset[str]:
        """Cases of the task's dataset that it is known to have been trained on."""
        ...

    def predict(self, task: Task) -> dict[str, str]:
        """Make the missing predictions; returns scan → reason for those that failed."""
        ...

    def release(self) -> None:
        """Free the memory, so that the next competitor's memory is measured alone."""
        ...

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """Cost over the tasks that it has predictions for; ``None`` if nothing is known."""
        ...


@runtime_checkable
class UnifiedSide(Competitor, Protocol):
    """The competitor whose label space and split decide what is scored."""

    def network(self, fold: int | str | None) -> TrainedNetwork:
        """Facts about its network for a fold, or for its only fold."""
        ...
