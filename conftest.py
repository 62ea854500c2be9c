"""Fixtures of the tests and of the examples in docstrings."""

import pytest

from fire_rl.sb3 import anatomy as registry


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.fixture(autouse=True)
def example(request: pytest.FixtureRequest) -> None:
    """Run the example of a docstring in an empty folder, and forget what it registers."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("registered")
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
