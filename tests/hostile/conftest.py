"""Attaching at the input says so; here that is expected."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if "hostile" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore:.*it is attached at the input"))
