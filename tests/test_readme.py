"""Every block of Python that people read is run, after a preamble that gives it their things."""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prune_env
from prune_env.criteria.elementwise import CRITERIA

ROOT = Path(__file__).parents[1]

NETWORK = """
import torch
from prune_env import PruneEnv, PruningTask, find_groups
from prune_env.testing import toy_model
MyNetwork = lambda: toy_model("residual")
model = MyNetwork()
images = torch.randn(2, 3, 8, 8)
train_loader = [(torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))) for _ in range(4)]
val_loader = train_loader[:1]
"""
EPISODE = """
env = PruneEnv(PruningTask.from_model(model, train_loader))
env.reset()
while not env.step([0.5])[2]:
    pass
small = env.network()
"""
KEPT = """
from prune_env import save
save("pruned/", small, env.plan)
whole = small(images)
"""
QUICKER = """
import functools, prune_env
test_loader = val_loader
prune_env.compress = functools.partial(prune_env.compress, evaluations=4, searcher="random")
"""
MIXER = """
class Mixer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(3, 24), torch.nn.Linear(24, 5)

    def forward(self, x):  # no trace follows a detour through numpy
        return self.down(torch.from_numpy(self.up(x.mean((2, 3))).detach().numpy()))

model = torch.nn.Sequential()
model.mixer = Mixer()
data, inputs = train_loader, images
"""
TOY = """
from prune_env import PruneEnv
from prune_env.testing import toy_task
env = PruneEnv(toy_task())
"""
CRITERION = """
from torch import Tensor
from prune_env.criteria.elementwise import CRITERIA, Context, Criterion
"""
REWARD = "from prune_env.mdp.rewards import Outcome"
SEARCHER = """
import numpy as np
from prune_env import Ledger
"""

PREAMBLES: dict[str, tuple[str, str]] = {
    "prune_env.compress(": (NETWORK + QUICKER, "assert result.table['tuned'].macs_ratio <= 0.5"),
    "apply(env.plan, model": (NETWORK, "assert sum(p.numel() for p in small.parameters()) > 0"),
    "format_groups(groups": (NETWORK, "assert len(live) == 4"),
    "MistralForCausalLM(config)": ("", "assert len(info['plan']) == 4"),
    '"mixer.down.weight"': (NETWORK + MIXER, "assert task.groups[-1].units == 12"),
    'gym.make("PruneEnv/Layerwise-v0")': ("", "assert 'stages.0.0.conv1' in best.plan.levels"),
    "steps = 8 * env": (TOY, ""),
    'gym.make("prune_env:PruneEnv': ("", "assert sum(p.numel() for p in small.parameters()) < 1e5"),
    "import load\n": (NETWORK + EPISODE + KEPT, "assert torch.equal(small(images), whole)"),
    "import load, save": (NETWORK + EPISODE, "assert torch.equal(small(images), "
                          "env.network()(images))"),
    "def fisher": (CRITERION + NETWORK, "PruningTask.from_model(model, train_loader, "
                   "criterion=CRITERIA['fisher'])"),
    "def frugal": (REWARD + NETWORK, "PruningTask.from_model(model, train_loader, reward=frugal)"),
    "def hill_climb": (SEARCHER, "from prune_env.testing import check_searcher\n"
                       "check_searcher(hill_climb)"),
}  # fmt: skip
"""What a block needs before it, and what must hold behind it, by a phrase that only it has."""

SLOW = {
    "apply(env.plan, model",
    "MistralForCausalLM(config)",
    'gym.make("PruneEnv/Layerwise-v0")',
    "steps = 8 * env",
    'gym.make("prune_env:PruneEnv',
}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    code
    for page in PAGES
    if page.name != "objectives.md"  # test_objectives.py runs those
    for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
]


def block_with(phrase: str) -> str:
    (found,) = [code for code in BLOCKS if phrase in code]
    return found


def test_every_block_is_run() -> None:
    assert [sum(phrase in code for phrase in PREAMBLES) for code in BLOCKS] == [1] * len(PREAMBLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        if "/tests/" in target:  # a proof by its name
            names = re.findall(rf"\[(test_\w+)\]\({re.escape(target)}\)", text)
            assert all(f"def {each}(" in there.read_text("utf-8") for each in names), names
        if heading:
            found = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.M)
            assert heading in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in found]


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) < 6_000


@pytest.mark.parametrize(
    "phrase",
    [pytest.param(p, marks=pytest.mark.long if p in SLOW else ()) for p in PREAMBLES],
)
def test_a_block_does_what_it_says(
    phrase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "transformers" in block_with(phrase):
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prune_env, "compress", prune_env.compress)  # put back afterwards
    for name in CRITERIA:  # what a block registers is taken out again
        monkeypatch.setitem(CRITERIA, name, CRITERIA[name])
    before, behind = PREAMBLES[phrase]
    space: dict[str, Any] = {"__name__": "readme"}
    try:
        for code in (before, block_with(phrase), behind):
            exec(compile(code, "README.md", "exec"), space)
    finally:
        CRITERIA.pop("fisher", None)


DIGITS = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from prune_env.fingerprint import fingerprint
from prune_env.tasks.digits import dense_digits, load_digits
torch.set_num_threads(1)
splits, model = load_digits(), dense_digits()
train_loader = DataLoader(TensorDataset(*splits.train), batch_size=64)
val_loader = DataLoader(TensorDataset(*splits.val), batch_size=64)

def right(network, samples):
    with torch.no_grad():
        return float((network.eval()(samples.images).argmax(1) == samples.labels).float().mean())
"""
PROMISE = """
seen = right(model, type(splits.train)(*(part[500:] for part in splits.train)))
print("RESULT", info["accuracy"] - seen, right(env.network(), splits.test) -
      right(model, splits.test), fingerprint(env.network()))
env.plan.save("plan.json")
"""
AGAIN = """
from prune_env import PruningPlan, apply
small = apply(PruningPlan.load("plan.json"), model, train_loader)
print("RESULT", right(small, splits.test) - right(model, splits.test), fingerprint(small))
"""


@pytest.mark.long
def test_the_first_block_keeps_its_promise_on_test_here_and_in_another_process(
    tmp_path: Path,
) -> None:
    """What `info` says is lost of the accuracy is lost on test, within sampling error."""
    block = block_with("apply(env.plan, model")
    tuned = "from prune_env import FinetuneSettings\n" + block.replace(
        "teacher=model)", "teacher=model, settings=FinetuneSettings(epochs=1))"
    )
    assert tuned.count("epochs=1") == 1
    promised, lost, mark = run(DIGITS + tuned + PROMISE, tmp_path)
    lost_there, mark_there = run(DIGITS + AGAIN, tmp_path)
    samples, wrong = 400, 0.05  # the error of a difference, were one in twenty wrong
    error = math.sqrt(2 * wrong * (1 - wrong) / samples)
    assert abs(float(promised) - float(lost)) < 2 * error, (promised, lost)
    assert lost_there == lost
    assert mark_there == mark
    assert (tmp_path / "pruned").is_dir()


def run(code: str, folder: Path) -> list[str]:
    """What a script of its own says behind RESULT."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return line.split()[1:]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """The loaders here are short, which a task says aloud."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
