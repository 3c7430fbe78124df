"""All errors that satunet raises on purpose.

::

    SatunetError
    ├── UserError (ValueError)             the call or its configuration is wrong: exit code 2
    │   ├── PathsNotSetError               nnUNet_raw, nnUNet_preprocessed or nnUNet_results is not set
    │   ├── DatasetNotFoundError           no such dataset id or name
    │   ├── DatasetError                   a dataset.json or a dataset folder that cannot be used
    │   ├── CatalogueError                 a catalogue of datasets that contradicts itself
    │   ├── LabelSpaceError                label maps that contradict each other
    │   ├── PlanError                      a plan that cannot be made or read
    │   ├── KnowledgeError                 a knowledge tree, or a source of one, that cannot be used
    │   ├── ModelError                     a model folder or checkpoint that cannot be used
    │   └── PromptError                    prompts that cannot be used
    ├── ScanError (ValueError)             one bad file among many: counted, the rest goes on, exit code 1
    │   ├── UnreadableImageError
    │   ├── NotThreeDimensionalError
    │   ├── NonFiniteImageError
    │   ├── GridMismatchError
    │   ├── UnexpectedLabelError
    │   ├── MissingFileError
    │   └── ScanTooLargeError
    └── EnvironmentProblemError (RuntimeError)   the installation cannot do what was asked
        └── DiskFullError              no space to write to: no later result could be saved either

    KeyboardInterrupt
    └── Terminated                     SIGTERM: treated like Ctrl-C, with exit code 143

A message says what was received, what is allowed, and which file it is about.
"""

from __future__ import annotations

from pathlib import Path


class SatunetError(Exception):
    """Base of every error raised on purpose."""


class UserError(SatunetError, ValueError):
    """The call, or a configuration it names, is wrong."""


class PathsNotSetError(UserError):
    """An environment variable of nnU-Net that is needed is not set, or names no folder."""


class DatasetNotFoundError(UserError):
    """No dataset of the given id or name in ``nnUNet_raw``."""


class DatasetError(UserError):
    """A dataset folder or its ``dataset.json`` cannot be used."""


class CatalogueError(UserError):
    """A catalogue of datasets that cannot be read, or whose records contradict themselves or each other."""


class LabelSpaceError(UserError):
    """Label definitions that contradict each other, or a class that is not in the label space."""


class PlanError(UserError):
    """A plan that cannot be made, read or used."""


class KnowledgeError(UserError):
    """A knowledge tree, or a file it is made from, that cannot be read or contradicts itself."""


class ModelError(UserError):
    """A model folder, checkpoint or weight file that cannot be used."""


class PromptError(UserError):
    """Prompts that cannot be used: none given, an unreadable prompt file."""


class ScanError(SatunetError, ValueError):
    """One input that cannot be used; a job counts it and goes on with the others.

    Args:
        path: The file the error is about.
        reason: Reason: what was received and what is allowed, without the path.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ScanError], tuple[Path, str]]:
        # Errors are pickled in worker processes; the default pickling would call __init__ with only the message.
        return type(self), (self.path, self.reason)


class UnreadableImageError(ScanError):
    """The file is not an image that satunet can read, or it is truncated."""


class NotThreeDimensionalError(ScanError):
    """The image is not one 3D volume."""


class NonFiniteImageError(ScanError):
    """The image holds NaN or infinite voxels."""


class GridMismatchError(ScanError):
    """Two images that belong together have different shapes or affines."""


class UnexpectedLabelError(ScanError):
    """A label map holds values that are not integers, or ids that its dataset does not list."""


class MissingFileError(ScanError):
    """A file that a case needs does not exist: a channel or a label map."""


class ScanTooLargeError(ScanError):
    """Processing the scan would take more memory than there is."""


class EnvironmentProblemError(SatunetError, RuntimeError):
    """The installation cannot do what was asked; the message says how to repair it."""


class DiskFullError(EnvironmentProblemError):
    """There is no space left to write to: a long job stops, and continues from there when it is started again."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): whatever handles Ctrl-C handles it."""
