"""Read private attributes of other packages, with an error that says what to do without them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any


def private(owner: Any, name: str, package: str) -> Any:
    """Return a private attribute of another package's object.

    Args:
        owner: An object, a class or a module of the package.
        name: The attribute's name.
        package: The package's name on PyPI.

    Raises:
        RuntimeError: If the installed version does not have it; the version is named.
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        raise RuntimeError(_missing(owner, name, package)) from None


def set_private(owner: Any, name: str, value: Any, package: str) -> None:
    """Set a private attribute, which must be there, see :func:`private`."""
    private(owner, name, package)
    setattr(owner, name, value)


def _missing(owner: Any, name: str, package: str) -> str:
    kind = owner.__name__ if hasattr(owner, "__name__") else type(owner).__name__
    return (
        f"{package} {version(package)} has no `{kind}.{name}`, which fire_rl reads: this "
        f"version of {package} is newer or older than fire_rl knows. Install one that its "
        "pyproject.toml admits, or report this line."
    )
