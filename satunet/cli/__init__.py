"""The command line: ``satunet <command>``.

A command is a frozen dataclass, its fields are its options, and ``run()`` does the work and returns the exit code:
0 if all is done, 1 if some inputs failed and the rest is done, 2 if the call is wrong. tyro parses the arguments.
Nothing heavy is imported before a command runs, so that help appears at once.
"""

from __future__ import annotations

import atexit
import errno
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any, Protocol, Union, runtime_checkable

from satunet.errors import SatunetError, ScanError, Terminated

logger = logging.getLogger(__name__)

_CAUSED_BY_FOLDERS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EIO, errno.ENAMETOOLONG,
    errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EMFILE,
}  # fmt: skip
"""Errors of the operating system that a person can cause and repair: folders without write permission, files where
folders are expected, failing disks."""


@runtime_checkable
class Command(Protocol):
    """What every command must offer."""

    verbose: bool

    def run(self) -> int:
        """Do the work and return the exit code."""
        ...


COMMANDS = {
    "datasets": "data.Datasets",
    "convert": "convert.Convert",
    "labels": "data.Labels",
    "plan_and_preprocess": "data.PlanAndPreprocess",
    "fingerprint": "data.Fingerprint",
    "plan": "data.Plan",
    "preprocess": "data.Preprocess",
    "train": "train.Train",
    "predict": "predict.Predict",
    "prompts": "prompts.Prompts",
    "serve": "serve.Serve",
    "evaluate": "benchmark.Evaluate",
    "benchmark": "benchmark.Benchmark",
    "knowledge": "knowledge.Knowledge",
    "text": "knowledge.Text",
    "pretrain": "pretrain.Pretrain",
    "models": "models.Models",
    "import": "models.Import",
    "export": "models.Export",
    "info": "models.Info",
    "try": "first_look.Try",
    "view": "view.View",
    "demo": "demo.Demo",
    "doctor": "doctor.Doctor",
}
"""Command → its module in this package and its class. Only the module of the called command is imported, which takes a
fifth of the time of importing all of them."""


_PLACES = {
    "input": "scans go after -i",
    "datasets": "datasets go after -d",
    "dataset": "the dataset goes after -d",
    "prompts": "what to look for goes after -p",
}
"""Field of a command → hint about the option that a loose value was probably meant for."""


def parse(arguments: Sequence[str] | None = None) -> Command:
    """Turn arguments into a command; exits with code 2 and a message if they are wrong."""
    import tyro

    given = list(sys.argv[1:] if arguments is None else arguments)
    _refuse_unknown_command(given, list(COMMANDS))
    if given and given[0] in COMMANDS:
        prog = f"satunet {given[0]}"
        kind = _command(given.pop(0))
    else:
        prog, kind = "satunet", _every_command()
    how: dict[str, Any] = {
        "prog": prog,
        "args": given or (["--help"] if prog == "satunet" else []),
        "description": "Text-prompted 3D medical segmentation that configures itself like nnU-Net."
        if prog == "satunet"
        else None,
        "use_underscores": True,
        "config": (tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
    }
    command: Command
    command, unknown = tyro.cli(kind, return_unknown_args=True, **how)
    if any(value.startswith("-") for value in unknown):
        tyro.cli(kind, **how)  # ends the process, and suggests options with a similar name
    if unknown:
        _refuse_loose_values(prog, unknown, command)
    return command


def _refuse_loose_values(prog: str, values: Sequence[str], command: Command) -> None:
    """Exit with code 2, and say which options the loose values probably belong to."""
    places = [where for name, where in _PLACES.items() if hasattr(command, name)]
    shown = " ".join(f'"{value}"' if " " in value else value for value in values)
    sys.stderr.write(
        f"{prog}: {shown} follow{'s' if len(values) == 1 else ''} no option; "
        f"{', '.join(places)}{'. ' if places else ''}{prog} --help shows all options\n"
    )
    raise SystemExit(2)


def _command(name: str) -> Any:
    module, kind = COMMANDS[name].split(".")
    return getattr(importlib.import_module(f"satunet.cli.{module}"), kind)


def _every_command() -> Any:
    from tyro.conf import subcommand

    return Union[tuple(Annotated[_command(name), subcommand(name)] for name in COMMANDS)]  # noqa: UP007


def _refuse_unknown_command(arguments: Sequence[str], known: Sequence[str]) -> None:
    """Exit with code 2, and suggest the nearest command, if the first argument is not a command."""
    if not arguments or arguments[0].startswith("-") or arguments[0] in known:
        return
    import difflib

    near = difflib.get_close_matches(arguments[0].replace("-", "_"), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    sys.stderr.write(f"satunet: there is no command {arguments[0]!r}; {hint}Commands are {', '.join(known)}\n")
    raise SystemExit(2)


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; satunet's own errors become one clear line. Returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["--version"], ["-V"]):
        from satunet import __version__

        sys.stdout.write(f"satunet {__version__}\n")
        return 0
    command = parse(arguments)
    from satunet.jobs.progress import setup_logging
    from satunet.jobs.workers import is_out_of_memory, reason_of

    setup_logging(verbose=command.verbose)
    try:
        return command.run()
    except ScanError as error:
        logger.error("%s", error)
        return 1
    except SatunetError as error:
        logger.error("%s", error)
        logger.debug("where it came from", exc_info=True)
        return 2
    except BrokenPipeError:
        # The reader of our output has closed the pipe (`| head`). Python would complain again when it flushes at the
        # end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MemoryError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            logger.error(
                "%s; finished work is kept, and the same command continues from there. Fewer processes at once "
                "(-np, --workers) need less",
                reason_of(error),
            )
        elif isinstance(error, OSError) and error.filename is not None and error.errno in _CAUSED_BY_FOLDERS:
            logger.error("%s: %s", os.fsdecode(error.filename), os.strerror(error.errno).lower())
        else:
            raise
        logger.debug("where it came from", exc_info=True)
        return 2
    except KeyboardInterrupt as interrupt:
        ended = isinstance(interrupt, Terminated)
        what = "ended by SIGTERM" if ended else "interrupted"
        logger.error("%s; finished work is kept, and the same command continues from there", what)
        return 143 if ended else 130


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not break the tidying up
    raise Terminated


def handle_sigterm() -> None:
    """From now on, this process treats SIGTERM like Ctrl-C.

    Processes that are forked from it (nnunetv2's pools) still end at once: a pool ends its workers by SIGTERM, and would
    wait for ever for one that handles the signal.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(os, "register_at_fork"):
        # Held back while forking: a signal that arrived before the child has its own handler would be lost.
        os.register_at_fork(before=_hold_sigterm, after_in_parent=_let_sigterm, after_in_child=_end_by_sigterm)


def _hold_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_by_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_sigterm()


def _tell_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Log that a library's thread ended with an error (TensorBoard's on a full disk); the code that waits for it raises
    the error.
    """
    logger.debug("a thread ended", exc_info=ended.exc_value)


def share_cores() -> None:
    """Have OpenMP's threads give their cores away soon while they wait, unless the environment decides otherwise.

    GNU's OpenMP lets a thread wait actively for about a millisecond. Beside a busy process, it then takes the core from
    the very thread that it waits for. With a thirtieth of that, nothing is lost on free cores
    (``benchmarks/results/training.txt``). Has to be called before torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"


def main() -> None:
    """Run the command of ``sys.argv``; raises ``SystemExit``."""
    share_cores()
    handle_sigterm()
    threading.excepthook = _tell_of_thread
    sys.exit(run())


def script() -> None:
    """Entry point of the ``satunet`` command and of ``python -m satunet``."""
    try:
        main()
    except SystemExit as end:
        if "torch" in sys.modules and (end.code is None or isinstance(end.code, int)):
            _leave(end.code or 0)
        raise


def _leave(code: int) -> None:
    """End the process as Python would, but without tearing down its modules, which takes 0.4 s if torch is loaded.

    Threads are waited for, exit functions run, and what was printed is flushed, as :mod:`multiprocessing` ends its
    children. Returns if that fails (nobody reads the output any more), so that Python ends the process in its own way.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(code)
