"""The bench of what is handed over: the plan applied is the network measured, a raw cut is not."""

from __future__ import annotations

import pytest

from prune_env.experiments.bench_delivery import DeliveryConfig, main, measure, page


@pytest.mark.long
def test_the_applied_plan_is_the_network_of_the_episode() -> None:
    figures = measure(DeliveryConfig())
    _, cut, applied, kept = figures["rows"]
    assert applied["fingerprint"] == kept["fingerprint"] != cut["fingerprint"]
    assert applied["test"] > 0.9 > cut["test"] + 0.3
    assert "| env.network() of the episode | 9" in page(figures)


def test_a_bare_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--task", f"{__name__}:bare"]) == 2
    assert "bare task" in capsys.readouterr().err


def bare(**options: object) -> object:
    from prune_env.testing import toy_task

    return toy_task()
