"""One attempt to bring something down, in a process of its own, with limits of time and memory."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.flags import parse_flags
from experiments.launch import launch
from fire_rl.cli import main as fire_rl_main

SECONDS = 180.0
MEGABYTES = 1_500.0


@dataclass(frozen=True)
class Trial:
    """What is tried.

    Attributes:
        name: Says what, within its area.
        run: Does it in an empty folder; returns None if it was survived, else what went wrong.
    """

    name: str
    run: Callable[[Path], str | None]


@dataclass(frozen=True)
class Ending:
    """How a command ended: exit code, and what it printed."""

    code: int
    out: str
    err: str

    def names(self, *words: str) -> str | None:
        """Return None if it ended well, or with an error that holds one of the words."""
        if "Traceback" in self.err:
            return f"traceback: {self.err.strip().splitlines()[-1][:300]}"
        if self.code == 0:
            return None
        if self.code == 2 and any(word in self.err for word in words):
            return None
        return f"exit code {self.code}, which names none of {words}: {self.err.strip()[:300]}"


def train_py(*arguments: object) -> Ending:
    """Run ``train.py`` in this process."""
    return _command("train.py", lambda: launch(parse_flags(None)), arguments)


def fire_rl_command(*arguments: object) -> Ending:
    """Run ``fire-rl`` in this process."""
    return _command("fire-rl", fire_rl_main, arguments)


def _command(name: str, main: Callable[[], Any], arguments: tuple[object, ...]) -> Ending:
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [name, *map(str, arguments)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main()
        except SystemExit as exit:
            code = exit.code
        except BaseException:
            traceback.print_exc()
            code = 1
    sys.argv = before
    if isinstance(code, str):
        err.write(code)
    number = code if isinstance(code, int) else 0 if code is None else 1
    return Ending(number, out.getvalue(), err.getvalue())


def attempt(trial: Trial, folder: Path) -> str | None:
    """Carry out a trial in a forked process; return None if it was survived."""
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(trial, folder, sending))
    process.start()
    sending.close()
    try:
        if not receiving.poll(SECONDS):
            return f"took longer than {SECONDS:.0f} s"
        answer: str | None = receiving.recv()
        return answer
    except EOFError:
        process.join()
        return f"the process died, exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _child(trial: Trial, folder: Path, sending: Any) -> None:
    torch.set_num_threads(1)
    os.environ["XDG_STATE_HOME"] = str(folder.parent / "state")
    warnings.simplefilter("default")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        answer = trial.run(folder)
    except BaseException as error:
        answer = f"raised {type(error).__name__}: {error}"[:300]
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if answer is None and used > MEGABYTES:
        answer = f"used {used:.0f} MB"
    sending.send(answer)
