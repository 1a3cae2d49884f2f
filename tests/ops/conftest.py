"""Fixtures of the op tests."""

import pytest

from tests.ops import common


@pytest.fixture
def on(request):
    """The implementation under test: ``cpu`` with the best instruction set unless a test parametrises it."""
    with common.implementation(getattr(request, "param", "cpu")) as chosen:
        yield chosen
