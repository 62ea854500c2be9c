"""Keep our random numbers apart from the training's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed python, numpy and torch (all devices) inside, restore their states afterwards.

    The seed is mixed with a constant. The caller may have given the same number to
    ``torch.manual_seed`` and so have drawn the weights that are now replaced; a new draw must not
    repeat them.
    """
    mixed = int(np.random.SeedSequence([0xF12E, seed]).generate_state(1)[0])
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    # fork_rng itself would warn about many devices, and initialise CUDA where nobody uses it.
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if used else []
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(mixed)
            np.random.seed(mixed)  # noqa: NPY002  (user code may draw from it)
            torch.manual_seed(mixed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
