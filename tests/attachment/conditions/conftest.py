"""Clones at the input say so; here that is expected."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if "conditions" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore:.*it is attached at the input"))
