"""What reading a stranger's file may cost: memory and time, as two options of a command."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

# Times its content that a file needs: as it was read, its tensors, those before and after, and the
# bytes to write. Lines of text become Python objects, which take more.
_COPIES = 4
# Multiplications of matrices per second of a fast core; a slow one needs some times as long.
_SPEED = 5e9


class OutOfTime(BaseException):
    """The time of :class:`Limits` is over. No Exception: nothing on the way may handle it."""


@dataclass(frozen=True)
class Limits:
    """How much memory and time a command may take.

    Attributes:
        max_memory: Gigabytes of memory. What a file declares to hold is checked before it is read:
            a quarter of this is the most, a sixteenth for files of text.
        max_seconds: Seconds until the command gives up.
    """

    max_memory: float = 4.0
    max_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"`--{name.replace('_', '-')}` must be above 0, got {value}.")

    def check_size(self, size: int, what: str, copies: int = _COPIES) -> None:
        """Raise ValueError if so many bytes of content need more memory than there may be."""
        needed = copies * size / 1e9
        if needed > self.max_memory:
            raise ValueError(
                f"{what} holds {_amount(size)}, for which about {_amount(1e9 * needed)} of "
                f"memory are needed, and the limit is {self.max_memory:g} GB. If you expect a file "
                f"of this size, raise it: --max-memory {math.ceil(needed)}."
            )

    def check_work(self, multiplications: float, what: str) -> None:
        """Raise ValueError if so much arithmetic surely needs more time than there may be."""
        seconds = multiplications / _SPEED
        if seconds > self.max_seconds:
            raise ValueError(
                f"{what} needs about {seconds:,.0f} seconds of arithmetic, and the limit is "
                f"{self.max_seconds:g}. If you have the time: --max-seconds {10 * seconds:.0f}."
            )

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise OutOfTime or MemoryError inside of the block when a limit is reached.

        On systems without these limits (Windows), and in other threads than the main one, only
        what is declared is checked.
        """
        with _timer(self.max_seconds), _memory(int(self.max_memory * 1e9)):
            yield


def _amount(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


@contextmanager
def _timer(seconds: float) -> Iterator[None]:
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "setitimer"):
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before: Any = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory(size: int) -> Iterator[None]:
    """Limit what the process may allocate beyond what it has."""
    try:
        import resource

        with open("/proc/self/status", encoding="ascii") as status:  # Linux
            held = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    except (ImportError, OSError, StopIteration):
        yield
        return
    wanted = held + size
    if soft != resource.RLIM_INFINITY:
        wanted = min(wanted, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
