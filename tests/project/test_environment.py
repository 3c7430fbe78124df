from __future__ import annotations

import importlib.metadata

import pytest

from satunet import environment
from satunet.environment import check_environment, quick_check
from satunet.errors import EnvironmentProblemError


def versions(monkeypatch: pytest.MonkeyPatch, **known: str) -> None:
    def version(name: str) -> str:
        if name not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(environment.importlib.metadata, "version", version)


def test_a_cuda_torchvision_beside_a_cpu_torch_is_named_with_its_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torch="2.13.0+cpu", torchvision="0.28.0")
    with pytest.raises(EnvironmentProblemError, match="pip uninstall -y torchvision"):
        quick_check()


@pytest.mark.parametrize(
    "known",
    [
        {"torch": "2.13.0+cpu"},
        {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"},
        {"torch": "2.13.0", "torchvision": "0.28.0"},
    ],
)
def test_pairs_that_work(monkeypatch: pytest.MonkeyPatch, known: dict[str, str]) -> None:
    versions(monkeypatch, **known)
    quick_check()


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch)
    with pytest.raises(EnvironmentProblemError, match="torch is not installed"):
        quick_check()


def test_this_environment_works() -> None:
    quick_check()
    assert [i.message for i in check_environment() if i.severity == "error"] == []
