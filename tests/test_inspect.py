"""Laws of `experiments.inspect`: every network gets its line, whatever happens to it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prune_env.errors import ConfigError
from prune_env.experiments.benches import discovery
from prune_env.experiments.benches.discovery import found_line, inspect
from prune_env.experiments.inspect import main
from prune_env.experiments.networks.models import MODELS
from prune_env.experiments.networks.zoo import VISION, ZOO
from prune_env.testing import TOYS, toy_inputs, toy_model

ROOT = Path(__file__).parents[1]


def inspected(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[dict[str, Any], list[str]]:
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    return json.loads(lines[-1]), lines[:-1]


def test_a_model_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    last, lines = inspected(capsys, "--model", "digits,resnet20")
    figures = last["models"]
    assert set(figures) == {"digits", "resnet20"}
    for name, facts in figures.items():
        assert facts["live"] + sum(facts["frozen"].values()) == facts["groups"]
        assert 0 < facts["prunable_share"] <= 1
        assert any(line.startswith(name) and f"of  {facts['groups']}" in line for line in lines)
    assert figures["resnet20"]["frozen"]["zero-padded shortcut"] == 3
    assert any("verified" in line for line in lines)


def test_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    last, _ = inspected(capsys, "--task", "toy", "--no-tables")
    assert last["models"]["toy"]["live"] == 4


def test_by_default_all_of_ours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def note(name: str, factory: object) -> discovery.Found:
        seen.append(name)
        return discovery.Found(name, figures={"skipped": "here"})

    monkeypatch.setattr(discovery, "inspect", note)
    inspected(capsys)
    assert seen == list(MODELS)
    seen.clear()
    inspected(capsys, "--zoo", "--only", "regnet")
    assert seen == [name for name in ZOO if "regnet" in name] != []


@pytest.mark.parametrize("name", TOYS)
def test_every_toy_has_a_line(name: str) -> None:
    found = inspect(name, lambda: (toy_model(name), toy_inputs(name)))
    assert not found.crashed
    assert found.figures["live"] >= 1
    assert found_line(found, 20).startswith(name)


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such luck")


def test_a_crash_is_a_line_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ZOO, "broken", lambda: (Broken(), torch.zeros(2, 3)))
    assert main(["--zoo", "--only", "broken"]) == 1
    out = capsys.readouterr().out
    assert "CRASHED" in out
    assert "no such luck" in json.loads(out.splitlines()[-1])["models"]["broken"]["error"]


def test_without_its_library_a_network_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    absent = ("torchvision", "transformers")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in absent else find(name, *a)
    )
    for name in ("tv-vgg11", "hf-convnext"):
        found = inspect(name, ZOO[name])
        assert "not installed" in found.figures["skipped"]
        assert not found.crashed


def test_unknown_names_end_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "resnet21"]) == 2
    assert "resnet20" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        inspect("nothing", lambda: discovery._built("nothing", 10))


@pytest.mark.long
@pytest.mark.parametrize("name", ["hf-resnet-basic", "hf-mobilenetv1", "hf-regnet-y"])
def test_networks_of_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    found = inspect(name, ZOO[name])
    assert not found.crashed
    assert found.figures["frozen"] == {"tied to the output": 1}
    assert found.figures["prunable_share"] == 1


@pytest.mark.long
def test_convnext_keeps_its_residual_width_and_gives_its_hidden_neurons() -> None:
    pytest.importorskip("transformers")
    found = inspect("hf-convnext", ZOO["hf-convnext"])
    assert found.figures["live"] == 5  # one MLP per block
    assert "normalised across units (LayerNorm)" in found.figures["frozen"]


def test_help_imports_nothing_heavy() -> None:
    """All three commands answer --help without torch, matplotlib or transformers."""
    code = (
        "import sys\n"
        "from prune_env.experiments import compare, inspect\n"
        "from prune_env.experiments.config.cli import parse\n"
        "heavy = {'torch', 'matplotlib', 'transformers', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_zoo_covers_what_is_promised() -> None:
    assert {f"tv-{name}" for name in VISION} < set(ZOO)
    architectures = {"resnet", "mobilenetv1", "mobilenetv2", "efficientnet", "regnet", "convnext"}
    assert all(any(a in name for name in ZOO if name.startswith("hf-")) for a in architectures)
