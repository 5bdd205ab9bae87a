"""`prune-env check`: what a machine has, and what will not do on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prune_env.experiments import check


def looked(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, object]], str]:
    """Status, findings by name, and all that was printed."""
    status, text = check.main([]), capsys.readouterr().out
    found = json.loads(text.splitlines()[-1])["findings"]
    return status, {finding["name"]: finding for finding in found}, text


def test_a_machine_that_runs_the_tests_will_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "new" / "cache"))
    status, findings, text = looked(capsys)
    assert status == 0
    assert all(finding["good"] for finding in findings.values())
    assert {"torch", "processor", "bfloat16", "GPU", "both check_env", "cache"} <= set(findings)
    assert "BAD" not in text
    assert list((tmp_path / "new" / "cache").iterdir()) == []


def test_what_will_not_do_is_said_with_its_cure_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(check, "NEEDED", ("torch", "no_such_package"))
    status, findings, text = looked(capsys)
    assert status == 1
    bad = [name for name, finding in findings.items() if not finding["good"]]
    assert bad == ["no_such_package", "cache"]
    assert "pip install prune_env" in str(findings["no_such_package"]["found"])
    assert text.count("BAD") == 2
