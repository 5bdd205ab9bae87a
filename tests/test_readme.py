"""The README's code is run, or at least compiled."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"(<!-- tested[^\n]*-->\n)?```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_every_block_is_python() -> None:
    assert len(BLOCKS) >= 4
    for _, code in BLOCKS:
        compile(code, "README.md", "exec")


@pytest.mark.long
def test_the_users_own_loop_runs(tmp_path: Path) -> None:
    (code,) = [code for mark, code in BLOCKS if mark and "language" not in mark]
    imports = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert imports == {"gymnasium", "prune_env"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "stages." in done.stdout, done.stdout


@pytest.mark.long
def test_the_language_model_runs(tmp_path: Path) -> None:
    (code,) = [code for mark, code in BLOCKS if "language" in mark]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "mlp" in done.stdout, done.stdout
    assert "mistral" in done.stdout, done.stdout
