"""Fixtures of several files."""

import sys

import pytest

import train
from tests.compatibility import (  # noqa: F401  # hooks
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)


@pytest.fixture
def main(monkeypatch, capfd):
    """Run train.main in this process: the exit code, the output and the errors."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
        try:
            code = train.main()
        except SystemExit as exit:
            code = exit.code
        out, err = capfd.readouterr()
        return code, out, err

    return run
