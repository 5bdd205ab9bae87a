"""What is shipped: prune_env alone, whole, with its data and types."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy
import pytest

import prune_env

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def folders() -> set[str]:
    """Every folder that holds Python files, as the package that it is installed as."""
    found = set()
    for top in ("prune_env", "agents", "experiments"):
        for path in (ROOT / top).rglob("*.py"):
            name = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
            found.add(name if top == "prune_env" else f"prune_env.{name}")
    return found


def test_every_package_is_listed() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders()
    for name in folders():
        assert Path(str(importlib.import_module(name).__file__)).name == "__init__.py"


def test_the_public_names_fit_on_a_screen_and_exist() -> None:
    assert len(prune_env.__all__) <= 20
    assert sorted(prune_env.__all__) == list(prune_env.__all__)
    for name in prune_env.__all__:
        assert getattr(prune_env, name).__doc__, f"{name} is not documented"


def test_versions_agree() -> None:
    assert prune_env.__version__ == PROJECT["project"]["version"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy without what development leaves lying about."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("no setuptools to build with")
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "runs", "dist")
    shutil.copytree(ROOT, folder / "source", ignore=skip)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    run = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), str(folder / "source")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(built)


@pytest.mark.long
def test_the_wheel_holds_prune_env_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"prune_env"}


def test_the_wheel_holds_every_module_the_types_and_the_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for top, inside in (("prune_env", ""), ("agents", "prune_env/"), ("experiments", "prune_env/")):
        for pattern in ("*.py", "*.typed", "*.npz", "*.toml", "*.html", "*.yml"):
            for path in (ROOT / top).rglob(pattern):
                assert inside + path.relative_to(ROOT).as_posix() in names
    assert "prune_env/py.typed" in names
    assert "prune_env/tasks/digits.npz" in names


ALL = """
import importlib, pkgutil, prune_env
names = [module.name for module in pkgutil.walk_packages(prune_env.__path__, "prune_env.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)

import torch
torch.set_num_threads(1)
from prune_env.testing import toy_inputs, toy_model

model = toy_model("chain")
data = [(toy_inputs("chain", seed, 16), torch.arange(16) % 5) for seed in range(3)]
result = prune_env.compress(
    model, data[:1], data[1:2], data[2:], budget=0.6, searcher="uniform", evaluations=1, epochs=1
)
assert result.report("compressed").exists() and result.table["tuned"].macs_ratio <= 0.6
from prune_env.experiments.command import main
assert main("run --searcher random --baselines uniform --evaluations 2 --finetune-epochs 0 "
            "--threads 1 --dense-epochs 1 --reward-samples 50 --calibration-samples 50 "
            "--no-tensorboard --runs out".split()) == 0
print(prune_env.__file__)
"""


@pytest.mark.long
def test_the_wheel_alone_is_the_whole_product(built: Path, tmp_path: Path) -> None:
    """In a virtual environment that has the dependencies and no checkout."""
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    (site,) = (tmp_path / "bare" / "lib").glob("python*/site-packages")
    # A path alone: the editable install beside the dependencies is not followed from there.
    (site / "dependencies.pth").write_text(str(Path(numpy.__file__).parents[1]))
    install = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([sys.executable, *install, str(built)], check=True)

    def called(*words: str | Path) -> str:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    *_, figures, place = called(python, "-W", "ignore", "-c", ALL).splitlines()
    assert place.startswith(str(site))
    assert {"dense", "uniform", "random", "settings"} == set(json.loads(figures))
    assert list((tmp_path / "out").glob("*/report.html"))
    assert "compare" in called(python.parent / "prune-env", "--help")


@pytest.mark.long
def test_the_core_imports_without_the_extras() -> None:
    """gymnasium, torch and numpy are enough: no other package of the extras is loaded."""
    code = (
        "import sys, prune_env, prune_env.testing; heavy = {'stable_baselines3', 'transformers', "
        "'matplotlib', 'pyarrow', 'torchvision', 'tensorboard', 'pandas', 'sklearn'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_the_version_range_of_torch_is_a_range() -> None:
    (torch,) = [line for line in PROJECT["project"]["dependencies"] if line.startswith("torch")]
    assert ">=" in torch
    assert "==" not in torch
