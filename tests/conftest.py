"""For all tests: what takes long begins first, so that no worker is left alone with it in the end."""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)  # after the shuffling; the order within the two halves stays random
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("e2e")}
    items.sort(key=lambda item: item.path not in slow)
