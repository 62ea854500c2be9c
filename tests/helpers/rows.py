"""Tables of test parameters."""

import itertools

import pytest


def rows(quick, *factors, missing=()):
    """The product of some lists of values: the rows named by ``quick`` now, the others in full."""
    missing = list(missing)
    return [
        pytest.param(*row, marks=[] if row in quick else pytest.mark.full)
        for row in itertools.product(*factors)
        if row not in missing
    ]
