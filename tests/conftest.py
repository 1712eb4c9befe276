"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bundles import hard_bundle, hard_checkpoint, pooled_bundle, tiny_bundle, tiny_checkpoint

__all__ = [
    "hard_bundle",
    "hard_checkpoint",
    "pooled_bundle",
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


@pytest.fixture(autouse=True)
def _no_settings_of_ones_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration file and no variable of whoever runs the tests decides their results, nor are plans kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-settings"))
    for name in [name for name in os.environ if name.startswith("SACCADE_") and name != "SACCADE_SHARED"]:
        monkeypatch.delenv(name)
