"""Unfair comparisons: refused where they would be meaningless, otherwise mentioned in the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from satunet.errors import ModelError, UserError
from satunet.evaluation.benchmark.competitors import Competitor
from satunet.evaluation.benchmark.conclusions.results import Cost, Results
from satunet.evaluation.benchmark.tasks import Task

_SAME_BUDGET = 0.05
"""Relative difference in training steps up to which there is no note."""


def require_unseen(competitor: Competitor, task: Task) -> None:
    """Refuse a competitor that was trained on scored cases, unless the task has no other cases and says so.

    Raises:
        ModelError: The competitor was trained on them.
    """
    seen = sorted(competitor.trained_cases(task) & set(task.references))
    if seen and not task.trained_on:
        raise ModelError(
            f"{competitor.name} was trained on {len(seen)} of the {len(task.cases)} cases of fold "
            f"{task.fold} that are to be scored, such as {seen[0]}; both sides need the same split"
        )


def require_same_cases(results: Results) -> None:
    """Refuse to compare competitors that were scored on different cases or classes of a dataset.

    Raises:
        UserError: The cases or classes differ.
    """
    for dataset, found in results.items():
        for what, sets in (
            ("cases", {c: frozenset(e.cases) for c, e in found.evaluations.items()}),
            ("classes", {c: frozenset(e.classes) for c, e in found.evaluations.items()}),
        ):
            first = next(iter(sets))
            for competitor, own in sets.items():
                if own != sets[first]:
                    raise UserError(
                        f"{dataset}: {first} and {competitor} were scored on different {what} "
                        f"({len(sets[first])} and {len(own)}, of which {len(own & sets[first])} are the same)"
                    )


def patient_notes(competitors: Sequence[Competitor], tasks: Iterable[Task]) -> list[str]:
    """Notes about patients of scored cases who have other cases that a competitor was trained on."""
    notes = []
    for task in tasks:
        if task.trained_on:
            continue
        scored = {task.patient(case) for case in task.references}
        for competitor in competitors:
            seen = scored & {task.patient(case) for case in competitor.trained_cases(task)}
            if seen:
                notes.append(
                    f"{task.name}: {len(seen)} of the {len(scored)} patients that are scored have other cases that "
                    f"{competitor.name} was trained on, such as {min(seen)}: its scores there are not those of new patients"
                )
    return notes


def budget_notes(costs: Mapping[str, Cost]) -> list[str]:
    """Notes about competitors that were trained for different, or unknown, numbers of steps."""
    trained = {name: cost for name, cost in costs.items() if cost.models}
    if len(trained) < 2:
        return []
    known = {name: c.training_steps for name, c in trained.items() if c.training_steps is not None}
    unknown = [name for name in trained if name not in known]
    notes = []
    if known and max(known.values()) > (1 + _SAME_BUDGET) * min(known.values()):
        each = ", ".join(f"{name} {steps:,} steps of {_networks(trained[name])}" for name, steps in known.items())
        notes.append(f"Training budgets are not equal: {each}")
    if unknown:
        notes.append(
            f"Training budgets of {', '.join(unknown)} are unknown, so that nobody can tell whether they are equal"
        )
    return notes


def _networks(cost: Cost) -> str:
    return "one network" if cost.models == 1 else f"{cost.models} networks together"
