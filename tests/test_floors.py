"""Floors: a file imports lower floors or its own folder; heavy packages have one home each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "prune_env.errors": -1, "prune_env.storage": 0, "prune_env.locks": 0, "prune_env.checks": 0,
    "prune_env.progress": 0, "prune_env.version": 0, "prune_env.records": 0.5,
    "prune_env.structure": 1,
    "prune_env.fingerprint": 1.2,
    "prune_env.attention": 1.5, "prune_env.units": 1.7, "prune_env.costs": 2,
    "prune_env.quality": 2, "prune_env.calibration": 2.5, "prune_env.repair": 3,
    "prune_env.criteria": 3.1, "prune_env.plan": 3.2, "prune_env.recovery": 3.5,
    "prune_env.mdp": 4, "prune_env.deploy": 4, "prune_env.search": 5, "prune_env.tasks": 5,
    "prune_env.testing": 5.5, "prune_env.pipeline": 5.5, "prune_env.agents": 6,
    "prune_env.experiments.config": 7,
    "prune_env.experiments.report": 7.1, "prune_env.experiments.data": 7.2,
    "prune_env.experiments.networks": 7.3, "prune_env.experiments.stages": 7.4,
    "prune_env.experiments.sweeps": 7.5, "prune_env.experiments.benches": 7.6,
    "prune_env.experiments": 7.7,
}  # fmt: skip
HOMES = {
    "gymnasium": {
        "prune_env/__init__.py",  # registers the ids
        "prune_env/mdp/env.py",
        "prune_env/mdp/shapes.py",
        "prune_env/mdp/vector.py",
        "prune_env/mdp/vector_wrappers.py",
        "prune_env/mdp/wrappers.py",
        "agents/",
        "experiments/",
    },
    "stable_baselines3": {"agents/"},
    "sb3_contrib": {"agents/"},
    "optuna": {"agents/optuna_search.py"},
    "cmaes": {"agents/optuna_search.py"},
    "torch_pruning": set(),
}
"""Where a package may be imported at all."""
LAZY = {"transformers", "torchvision", "pyarrow", "matplotlib"}
"""Never imported by prune_env when a module is loaded."""


KINDS_OF_NETWORK = {
    "attention", "attn", "head", "heads", "conv", "convolution", "qkv", "gqa", "expert", "experts",
    "moe", "bert", "mistral", "mixtral", "llama", "qwen", "gpt", "vit", "deit", "swin", "resnet",
    "mobilenet", "vgg", "bigbird",
}  # fmt: skip
"""What nothing above plan/ needs to know to prune a network."""
ABOVE_PLAN = (
    "prune_env/mdp/", "prune_env/recovery/", "prune_env/deploy/", "prune_env/search/",
    "prune_env/pipeline/", "prune_env/tasks/", "prune_env/testing.py", "agents/", "experiments/",
)  # fmt: skip
NETWORKS = (
    "prune_env/tasks/digits.py", "prune_env/testing.py",  # networks to prune are written there
    "experiments/networks/", "experiments/inspect.py", "experiments/benches/discovery.py",
    "experiments/benches/fuzz_files.py",  # folders as other libraries leave them
    "experiments/data/texts.py",  # batches with the keys that language models read
    "experiments/bench_",
)  # fmt: skip
"""Files that say which networks there are; benches, which ask for one kind each, are free too."""


@dataclass(frozen=True)
class Import:
    module: str
    lazy: bool
    """Inside a function, or for annotations only."""


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import of a file of `package`, relative ones made absolute."""
    tree = ast.parse(source)
    inner = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, id(node) in inner)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*parts, node.module or ""]) if node.level else str(node.module)
            for alias in node.names:
                yield Import(f"{base.rstrip('.')}.{alias.name}", id(node) in inner)


INSTALLED = ("agents", "experiments")
"""Folders of a checkout that are installed inside the package."""


def module_of(path: str) -> str:
    """The module of a file, named relative to the repository."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"prune_env.{module}" if path.startswith(INSTALLED) else module


def folder_of(module: str) -> str | None:
    """The folder (or file, on floors without folders) in FLOORS that `module` belongs to."""
    found = [f for f in FLOORS if module == f or module.startswith(f"{f}.")]
    return max(found, key=len, default=None)


def faults(path: str, source: str) -> list[str]:
    """What a file, named relative to the repository, imports but must not."""
    module = module_of(path)
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    own, found = folder_of(module), []
    for used in imports(source, package):
        other, top = folder_of(used.module), used.module.partition(".")[0]
        if own and other and other != own and FLOORS[other] >= FLOORS[own]:
            found.append(f"{path} (floor {FLOORS[own]}) imports {used.module}")
        if own and not other and top == "prune_env" and FLOORS[own] < FLOORS["prune_env.agents"]:
            found.append(f"{path} imports {used.module}: name the module it comes from")
        if module == "prune_env" and other and FLOORS[other] >= FLOORS["prune_env.agents"]:
            found.append(f"{path} imports {used.module}: whoever prunes need not train agents")
        if top in INSTALLED:
            found.append(
                f"{path} imports {used.module}: it is installed as prune_env.{used.module}"
            )
        if top in HOMES and not any(path.startswith(home) for home in HOMES[top]):
            found.append(f"{path} imports {top}")
        if top in LAZY and path.startswith("prune_env/") and not used.lazy:
            found.append(f"{path} imports {top} when it is loaded")
    return found


def words(source: str) -> Iterator[str]:
    """Words of the names and strings of a file, in lower case; documentation is left out."""
    tree = ast.parse(source)
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if id(node) in documentation:
            continue
        values = (value for _, value in ast.iter_fields(node))
        for value in values:
            texts = value if isinstance(value, list) else [value]
            for text in texts:
                if isinstance(text, str):
                    yield from (
                        w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)
                    )


def mentions(path: str, source: str) -> list[str]:
    """Kinds of network that a file above surgery/ mentions but must not."""
    if path.startswith(NETWORKS) or not path.startswith(ABOVE_PLAN):
        return []
    return sorted(KINDS_OF_NETWORK.intersection(words(source)))


def sources() -> list[Path]:
    return [p for top in ("prune_env", "agents", "experiments") for p in (ROOT / top).rglob("*.py")]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_upwards(path: Path) -> None:
    assert faults(path.relative_to(ROOT).as_posix(), path.read_text()) == []


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_above_plans_knows_what_it_prunes(path: Path) -> None:
    assert mentions(path.relative_to(ROOT).as_posix(), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "line", "found"),
    [
        ("prune_env/mdp/x.py", "if hasattr(model, 'num_attention_heads'):\n    pass", True),
        ("prune_env/recovery/x.py", "from torch.nn import Conv2d", True),
        ("agents/x.py", "import transformers.models.bert", True),
        ("experiments/report/report.py", "def f(resnet20):\n    pass", True),
        ("experiments/x.py", "text = 'VGG and more'", True),
        ("prune_env/deploy/x.py", "f(isMoE=1, mhead=2)\nx.self_attn", True),
        ("prune_env/mdp/x.py", "def f():\n    'Not of heads.'\nx = 1\n'nor of conv'", False),
        ("prune_env/mdp/x.py", "header, ahead, converged, vitality = 'overhead invites'", False),
        ("prune_env/plan/x.py", "num_heads = 3", False),
        ("experiments/bench_x.py", "num_heads = 3", False),
    ],
)
def test_the_reader_tells_kinds_of_network(path: str, line: str, found: bool) -> None:
    assert bool(mentions(path, line)) == found


def test_every_module_has_a_floor() -> None:
    for path in sources():
        module = module_of(path.relative_to(ROOT).as_posix())
        if module != "prune_env":
            assert folder_of(module), f"{module} has no floor"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("prune_env/structure/x.py", "from prune_env.costs.model import CostModel"),
        ("prune_env/structure/x.py", "import prune_env.mdp.env"),
        ("prune_env/structure/x.py", "from prune_env import CostModel"),
        ("prune_env/structure/x.py", "from ..plan.plan import PruningPlan"),
        ("prune_env/structure/x.py", "def f():\n    from prune_env.plan import cut"),
        ("prune_env/errors.py", "from prune_env.storage import write_text"),
        ("prune_env/plan/x.py", "from prune_env.recovery.finetune import finetune"),
        ("prune_env/deploy/x.py", "from prune_env.mdp.task import PruningTask"),
        ("prune_env/tasks/x.py", "from prune_env import testing"),
        ("prune_env/mdp/x.py", "import prune_env.agents.sb3"),
        ("prune_env/__init__.py", "from prune_env.experiments.config.run import Config"),
        ("agents/x.py", "from prune_env.experiments.config.run import Config"),
        ("agents/x.py", "from agents.sb3 import AGENTS"),
        ("prune_env/repair/x.py", "from prune_env.criteria.obs import order"),
        ("prune_env/mdp/task.py", "import gymnasium.spaces"),
        ("prune_env/mdp/env.py", "from stable_baselines3 import PPO"),
        ("experiments/x.py", "import sb3_contrib"),
        ("agents/x.py", "def f():\n    import optuna"),
        ("prune_env/tasks/x.py", "import matplotlib.pyplot as plt"),
        ("prune_env/tasks/x.py", "try:\n    import torchvision\nexcept ImportError:\n    pass"),
    ],
)
def test_the_checker_catches(path: str, line: str) -> None:
    assert faults(path, line)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("prune_env/mdp/x.py", "from prune_env.plan.plan import PruningPlan"),
        ("prune_env/mdp/x.py", "from prune_env.mdp.task import PruningTask"),
        ("prune_env/structure/x.py", "from .groups import Axis\nfrom . import labels"),
        ("prune_env/__init__.py", "from prune_env.mdp.env import PruneEnv"),
        ("prune_env/mdp/env.py", "import gymnasium"),
        ("agents/x.py", "import gymnasium, sb3_contrib\nfrom prune_env import PruneEnv"),
        ("prune_env/tasks/x.py", "def f():\n    import torchvision"),
        ("experiments/x.py", "import matplotlib\nfrom prune_env.agents.sb3 import AGENTS"),
    ],
)
def test_the_checker_lets_pass(path: str, line: str) -> None:
    assert faults(path, line) == []
