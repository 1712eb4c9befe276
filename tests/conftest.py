"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bundles import hard_bundle, hard_checkpoint, tiny_bundle, tiny_checkpoint

__all__ = [
    "hard_bundle",
    "hard_checkpoint",
    "tiny_bundle",
    "tiny_checkpoint",
]  # fixtures that every test module may ask for


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data, from SACCADE_SHARED; its absence fails in CI and skips elsewhere."""
    value = os.environ.get("SACCADE_SHARED", "")
    folder = Path(value).resolve()
    if value and folder.is_dir():
        return folder
    reason = f"shared test data not found (SACCADE_SHARED={value!r})"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
