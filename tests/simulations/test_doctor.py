# SPDX-License-Identifier: Apache-2.0
from importlib import metadata
from pathlib import Path

import pytest

from simulations import doctor


def found(name: str) -> doctor.Check:
    return next(check for check in doctor.examine() if check.name == name)


def test_a_missing_library_is_wrong_and_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "opacus":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert found("opacus").found == "not installed"
    assert "make simulate" in found("opacus").remedy
    assert found("flwr").is_good


def test_another_version_than_asked_for_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["flwr[simulation]==0.9.0", "torch>=1"])
    assert "needs flwr ==0.9.0" in found("flwr").remedy
    assert found("torch").is_good


def test_a_full_disk_and_little_memory_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_DISK_BYTES", 1 << 60)
    monkeypatch.setattr(doctor, "MIN_FREE_MEMORY_BYTES", 1 << 60)
    assert "free some space" in found("disk here").remedy
    assert "--workers 1" in found("memory").remedy


def test_a_cache_that_is_not_there_yet_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "not" / "yet"))
    assert str(tmp_path) in found("disk of the cache").found
