"""What 'auto' means, by processor and by choice."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from satunet.compute import devices
from satunet.compute.devices import autocast_for, precision_for
from satunet.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_without_a_choice_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    monkeypatch.delenv("SATUNET_PRECISION", raising=False)
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: native)
    assert precision_for(CPU) is dtype
    assert precision_for(CPU, "float16") is torch.float16


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_the_variable_says_what_auto_means(monkeypatch: pytest.MonkeyPatch, native: bool, name: str) -> None:
    monkeypatch.setenv("SATUNET_PRECISION", name)
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: native)
    dtype = getattr(torch, name)
    assert precision_for(CPU) is dtype
    assert precision_for(CPU, "float32") is torch.float32, "who asks for a precision gets it"
    a = torch.ones(2, 2)
    with autocast_for(CPU):
        assert (a @ a).dtype is dtype


def test_processes_that_are_started_hear_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATUNET_PRECISION", "bfloat16")
    code = "import torch; from satunet.compute.devices import precision_for; print(precision_for(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.bfloat16"


def test_what_the_variable_may_not_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATUNET_PRECISION", "half")
    with pytest.raises(UserError, match="SATUNET_PRECISION 'half'; allowed are auto, bfloat16, float16, float32"):
        precision_for(CPU)
    assert precision_for(CPU, "float32") is torch.float32
