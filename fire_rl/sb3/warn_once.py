"""Say a thing about a model or policy once, however often it is seen."""

from __future__ import annotations

import warnings
from weakref import WeakKeyDictionary

_SAID: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()


def warn_once(owner: object, message: str) -> None:
    """Warn, unless the same has been said of this model or policy in this process."""
    said = _SAID.setdefault(owner, set())
    if message not in said:
        said.add(message)
        warnings.warn(message, UserWarning, stacklevel=3)
