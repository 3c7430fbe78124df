"""What may go wrong in a run of a week: losses that are not finite, and memory that runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from satunet.errors import SatunetError
from satunet.jobs.workers import is_out_of_memory
from satunet.plan import UnifiedPlan


@dataclass(kw_only=True)
class BadSteps:
    """Steps that were skipped because the loss or its gradients were not finite, and how many may be.

    Attributes:
        limit: Skipped steps allowed among the last ``window``.
        window: Number of latest steps to which the limit applies.
        recent: Numbers of the skipped steps among them.
        count: Skipped steps of the whole run.
    """

    limit: int = 20
    window: int = 1000
    recent: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, step: int, loss: float, scans: Sequence[str]) -> str:
        """Count a step.

        Returns:
            Message to log.

        Raises:
            SatunetError: Too many steps were skipped.
        """
        self.recent = [s for s in self.recent if s > step - self.window] + [step]
        self.count += 1
        what = f"step {step}: the loss is {loss}" if loss != loss or abs(loss) == float("inf") else (
            f"step {step}: the loss is {loss:.4f} and its gradients are not finite"
        )  # fmt: skip
        message = f"{what}; step skipped ({len(self.recent)} of at most {self.limit} in {self.window} steps); scans: "
        message += ", ".join(scans)
        if len(self.recent) > self.limit:
            raise SatunetError(
                f"{len(self.recent)} of the last {self.window} steps had no finite loss or gradients. {message}. "
                "Lower --learning_rate, or look at these scans; satunet preprocess --verify checks the store"
            )
        return message

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, by the name that torch's optimizers use; the limits are the run's, and not saved."""
        return {"recent": list(self.recent), "count": self.count}

    def load_state_dict(self, content: Any) -> None:
        """Restore what :meth:`state_dict` returned; checkpoints of older versions have nothing."""
        if isinstance(content, dict):
            self.recent, self.count = list(content["recent"]), int(content["count"])


@contextlib.contextmanager
def explain_memory(plan: UnifiedPlan, at_once: int, where: str) -> Iterator[None]:
    """Turn running out of memory into an error that says what to change.

    Args:
        plan: Plan, whose patch is one thing to lower.
        at_once: Patches that a process works on at once.
        where: Description of what was going on, for the message.

    Raises:
        SatunetError: The block ran out of memory.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise SatunetError(_memory_advice(plan, at_once, where)) from error


def _memory_advice(plan: UnifiedPlan, at_once: int, where: str) -> str:
    smaller = smaller_patch(plan)
    ways = []
    if at_once > 1:
        ways.append(f"the patches at once (--patches_at_once {at_once // 2}: the same training, a little slower)")
    if smaller != plan.crop_size:
        ways.append(f"patch_size {plan.crop_size} (next smaller: {smaller})")
    ways.append("the network's features_per_stage (plan again with a smaller --gpu_memory)")
    file = f"{plan.plans_name}.json of {plan.dataset_name}"
    return (
        f"out of memory {where}: {at_once} patches of {plan.crop_size} voxels at once. Lower one of these values of "
        f"{file}: {'; '.join(ways)}. Fewer queries would not help: the loss keeps 32 at once"
    )


def smaller_patch(plan: UnifiedPlan) -> tuple[int, int, int]:
    """The patch with its longest axis (in steps of the network's stride) one step shorter, as nnU-Net's planner
    does.
    """
    patch = list(plan.crop_size)
    divisor = plan.network.divisor
    candidates = [a for a in range(3) if patch[a] > divisor[a]]
    if candidates:
        longest = max(candidates, key=lambda a: patch[a])
        patch[longest] -= divisor[longest]
    return patch[0], patch[1], patch[2]
