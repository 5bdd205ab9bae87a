"""Laws 1 and 7 on networks of other libraries, where those are installed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from delivered import episode, labelled, require_delivered
from torch import nn
from zoo import Wrapped, image

from prune_env.errors import ConfigError
from prune_env.experiments.bench_discovery import examined, figures_of, laws_hold, main, page
from prune_env.experiments.networks.zoo import TIMM, VISION, ZOO

OTHERS = [f"tv-{name}" for name in VISION] + [f"timm-{name}" for name in TIMM]
BIG = {"tv-vgg11", "tv-resnext50_32x4d", "tv-convnext_tiny"}
"""Minutes each on one core."""


def test_the_figures_of_a_network_that_is_known() -> None:
    torch.manual_seed(0)
    found = figures_of(Wrapped(nn.Conv2d(8, 8, 1)).eval(), image())
    assert laws_hold(found)
    assert (found["live"], found["frozen"], found["not_followed"]) == (2, 1, 0)
    assert found["reasons"] == {"tied to the output": 1}
    assert found["trains"]
    assert 0 < found["left"] < 1
    text = page(
        {"rows": [{"name": "wrapped", **found}, {"name": "gone", "skipped": "not installed"}]}
    )
    assert "| wrapped | 2 | 1 | 0 | 98.6% | 100.0% | yes |" in text
    assert "gone" not in text


def test_a_broken_law_and_a_crash_end_with_status_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> tuple[nn.Module, torch.Tensor]:
        return nn.Conv2d(4, 4, 1), image()

    monkeypatch.setitem(ZOO, "broken", broken)
    assert main(["--only", "broken", "--out", str(tmp_path / "out")]) == 1
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["error"].startswith("ModelError: Conv2d does not run")
    assert "does not run" in (tmp_path / "out.md").read_text()
    assert not laws_hold({"seen_alike": False})
    assert not laws_hold({"seen_alike": True, "difference": 0.1})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(set(OTHERS) - BIG))
def test_laws_1_and_7_hold_where_nobody_here_wrote_the_network(name: str) -> None:
    found = examined(name)
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert "error" not in found, found["error"]
    assert laws_hold(found)
    if name == "tv-efficientnet_b0":
        assert found["live"] == 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["tv-squeezenet1_1", "tv-mobilenet_v3_small", "timm-lcnet_050"])
def test_law_5_holds_where_nobody_here_wrote_the_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    try:
        model = ZOO[name]()[0].eval()
    except ConfigError as error:
        pytest.skip(str(error))

    def drawn(seed: int, samples: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(samples, 3, 64, 64, generator=generator)

    case = episode(model, labelled(model, drawn))
    require_delivered(case, lambda: copy.deepcopy(model), tmp_path)
