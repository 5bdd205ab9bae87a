"""Files are data: whatever they hold, nothing of it is run."""

from __future__ import annotations

import ast
import base64
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import stable_baselines3
import torch
from torch import nn

from prune_env.agents.policy import POLICY, read_policy
from prune_env.agents.sb3 import load_policy
from prune_env.errors import ConfigError, DataError, ModelError, PruneEnvError, RunError
from prune_env.experiments import run, tensorboard, transfer
from prune_env.experiments.config.cli import parse
from prune_env.experiments.config.run import RunConfig
from prune_env.experiments.data.splits import load_splits
from prune_env.experiments.data.tokens import load_tokens
from prune_env.experiments.networks.models import load_weights
from prune_env.experiments.networks.pretrained import load_pretrained
from prune_env.experiments.networks.pricing import price
from prune_env.experiments.stages.policies import continuing
from prune_env.plan.ladder_file import load_ladders
from prune_env.recovery.checkpoint import load_progress
from prune_env.search.searchers import run_search
from prune_env.storage import load_tensors, save_tensors
from prune_env.testing import toy_task

ROOT = Path(__file__).parent.parent


# ---- the source: what could run a file's content is not called at all


def _names(node: ast.expr) -> str:
    return ast.unparse(node).replace(" ", "")


def _given(call: ast.Call, name: str) -> object:
    """The constant given for a keyword, "?" for what is worked out, None where it is left out."""
    found = [k.value for k in call.keywords if k.arg == name]
    return getattr(found[0], "value", "?") if found else None


PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}
SENDERS = {"prune_env/search/workers.py"}
"""Where a task goes to processes of ours, through memory; nothing is read from a file."""
LOADERS = {"", "torch", "np", "json", "PruningPlan"}
"""Whose `load` may be called; torch's and NumPy's with what keeps them from unpickling."""
BUILT_IN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
NAMERS = {
    "prune_env/__init__.py", "experiments/benches/kill_jobs.py", "experiments/command.py",
    "prune_env/deploy/configs.py", "prune_env/mdp/registry.py", "prune_env/search/searchers.py",
    "experiments/networks/zoo.py", "experiments/data/images.py", "experiments/networks/pricing.py",
    "experiments/networks/vision.py", "prune_env/pipeline/result.py",
}  # fmt: skip
"""Where a name becomes a module: constants, and what is given by the user in person."""


def faults(path: str, source: str) -> list[str]:
    """What a file does that could run the content of another file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [str(getattr(node, "module", a.name)) for a in node.names]
            pickles = [m for m in modules if m.partition(".")[0] in PICKLES]
            found += [f"imports {m}" for m in pickles if path not in SENDERS]
            ours = modules[0].partition(".")[0] in ("prune_env", "agents", "experiments")
            found += [f"imports {a.name}" for a in node.names if a.name == "load" and not ours]
        elif isinstance(node, ast.Call):
            found += _faults_of(path, node)
    return [f"{path}: {fault}" for fault in found]


def _faults_of(path: str, call: ast.Call) -> list[str]:
    name = _names(call.func)
    owner, _, method = name.rpartition(".")
    rules = {
        "built-in": name in BUILT_IN,
        "shell": _given(call, "shell") not in (None, False),
        "load": method == "load" and owner not in LOADERS,
        "torch.load": name == "torch.load" and _given(call, "weights_only") is not True,
        "allow_pickle": _given(call, "allow_pickle") not in (None, False),
        "SB3": method in ("load_from_zip_file", "load_replay_buffer", "load_from_pkl"),
        "url": method == "load_state_dict_from_url" or "add_safe_globals" in name,
        "trust": method in ("from_pretrained", "from_config")
        and owner.rpartition(".")[2].startswith("Auto")
        and _given(call, "trust_remote_code") is not False,
        "local": method == "from_pretrained" and _given(call, "local_files_only") is not True,
        "safetensors": method == "from_pretrained"
        and not owner.endswith("AutoConfig")
        and _given(call, "use_safetensors") is not True,
        "names": method == "import_module" and path not in NAMERS,
    }
    return [f"{rule}: {name}" for rule, broken in rules.items() if broken]


def sources() -> list[Path]:
    return [f for top in ("prune_env", "agents", "experiments") for f in (ROOT / top).rglob("*.py")]


def test_nothing_that_could_run_a_file_is_called() -> None:
    found = [
        fault
        for file in sources()
        for fault in faults(file.relative_to(ROOT).as_posix(), file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from torch import load", "from cloudpickle import loads", "import yaml",
        "import joblib",
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.hub.load('a', 'b')",
        "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=flag is None or True)",
        "PPO.load(path)", "AGENTS[name].algorithm.load(path)", "model.load_replay_buffer(p)",
        "save_util.load_from_zip_file(p)", "eval(text)", "exec(text)", "os.system(text)",
        "subprocess.run(text, shell=True)", "library.AutoConfig.from_pretrained(path)",
        "AutoModel.from_config(config)", "torch.serialization.add_safe_globals([list])",
        "Auto.from_pretrained(path, local_files_only=True, trust_remote_code=False)",
        "AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=True)",
        "importlib.import_module(facts['class'])",
    ],
)  # fmt: skip
def test_the_search_for_them_finds_each(line: str) -> None:
    assert faults("experiments/new.py", line)


def test_tensorboard_answers_this_machine_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tensorboard.arguments(tensorboard.TensorBoardConfig(tmp_path, port=7007))
    assert words == ["--logdir", str(tmp_path), "--host", "127.0.0.1", "--port", "7007"]
    assert tensorboard.main(["--runs", str(tmp_path / "nothing")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    said = (ROOT / "Makefile").read_text() + (ROOT / "experiments/screenshots.py").read_text()
    assert "bind_all" not in said
    calls = re.findall(r"tensorboard --logdir.*", said)
    assert calls
    assert all("--host 127.0.0.1" in call for call in calls)


# ---- what is given by others: none of it runs, each is an error of our family


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.made),)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What a payload would make."""
    return tmp_path / "made"


def sb3_zip(path: Path, made: Path) -> Path:
    """A policy as SB3 writes it, whose settings and whose weights are payloads."""
    code = base64.b64encode(pickle.dumps(Payload(made))).decode()
    torch.save({"policy": Payload(made)}, path.with_suffix(".pth"))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", json.dumps({"n_steps": {":type:": "int", ":serialized:": code}}))
        file.write(path.with_suffix(".pth"), "policy.pth")
    return path


def test_the_zip_would_run_its_payload_where_it_is_unpickled(tmp_path: Path, made: Path) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - it is no policy; too late
        stable_baselines3.PPO.load(sb3_zip(tmp_path / "policy.zip", made))
    assert made.exists()


@pytest.mark.parametrize("name", ["policy.zip", POLICY])
def test_a_policy_runs_nothing(
    tmp_path: Path, made: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sb3_zip(tmp_path / name, made)
    with pytest.raises(ConfigError, match=r"runs code when it is read\. Search again"):
        continuing("ppo", path)
    argv = ["--task", "toy", "--runs", str(tmp_path / "runs"), "--init-policy", str(path)]
    assert run.main(argv) == 2
    given = ["--to", "toy", "--runs", str(tmp_path / "runs"), "--init-policy", str(path)]
    assert transfer.main([*given, "--budget", "0.7"]) == 2
    assert capsys.readouterr().err.count("Search again") == 2
    assert not made.exists()


READS: dict[str, Callable[[Path], Any]] = {
    "policy": lambda path: continuing("ppo", path),
    "tensors": load_tensors,
    "weights": lambda path: load_weights(nn.Linear(2, 2), path),
    "ladders": lambda path: load_ladders(path, nn.Linear(2, 2)),
    "checkpoint": lambda path: load_progress(path, {}),
    "tokens": lambda path: load_tokens(path),
    "images": lambda path: load_splits(path, seed=0),
    "price": lambda path: price(str(path)),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ".npy", ".parquet", ".json"])
@pytest.mark.parametrize("kind", READS)
@pytest.mark.parametrize("write", ["pickle", "torch", "torch_old"])
def test_a_pickle_by_any_name_runs_nothing(
    tmp_path: Path, made: Path, kind: str, suffix: str, write: str
) -> None:
    path, content = tmp_path / f"file{suffix}", {"weight": Payload(made), "fingerprint": {}}
    if write == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(PruneEnvError):
        READS[kind](path)
    assert not made.exists()


def test_arrays_of_objects_run_nothing(tmp_path: Path, made: Path) -> None:
    odd = np.array([Payload(made), None], dtype=object)
    np.savez(tmp_path / "set.npz", images=odd, labels=odd)
    np.savez(tmp_path / "tokens.npz", train=odd)
    np.save(tmp_path / "tokens.npy", odd)
    for path in ("tokens.npz", "tokens.npy"):
        with pytest.raises(DataError):
            load_tokens(tmp_path / path)
    with pytest.raises(DataError):
        load_splits(tmp_path / "set.npz", seed=0)
    assert not made.exists()


def test_parquet_with_a_pickled_type_runs_nothing(tmp_path: Path, made: Path) -> None:
    """Arrow once unpickled the types that a file's schema described (CVE-2023-47248)."""
    described = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(made)),
    }
    image = pa.field("image", pa.binary(), metadata=described)
    schema = pa.schema([image, pa.field("label", pa.int64())])
    table = pa.table({"image": [pickle.dumps(Payload(made))] * 2, "label": [0, 1]}, schema=schema)
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError):
        load_splits(tmp_path, seed=0)
    assert not made.exists()


# ---- model folders


def folder_with_code(path: Path, made: Path, model_type: str) -> Path:
    """A model's folder that brings a module of its own."""
    path.mkdir()
    auto = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    config = {
        "model_type": model_type, "auto_map": auto, "architectures": ["pipeline", "Model"],
        "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 9, "n_positions": 8,
        "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    (path / "theirs.py").write_text(f"import os\nos.mkdir({str(made)!r})\n")
    return path


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking on the terminal is a failure: nobody may be there."""

    def asked(text: str = "") -> str:
        raise AssertionError(f"asked on the terminal: {text}")

    monkeypatch.setattr("builtins.input", asked)


@pytest.mark.long
@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("model_type", ["theirs", "gpt2"])
def test_code_in_a_model_folder_does_not_run(tmp_path: Path, made: Path, model_type: str) -> None:
    folder = folder_with_code(tmp_path / "model", made, model_type)
    with pytest.raises(ModelError, match="holds no causal language model"):
        load_pretrained(folder)
    argv = ["--model", str(folder), "--data", "none.npz", "--runs", str(tmp_path)]
    assert run.main(argv) == 2
    if model_type == "theirs":  # the library knows the other one, and its own code is used
        with pytest.raises(ConfigError, match="custom code"):
            price(str(folder))
    else:
        assert price(str(folder), length=8).macs > 0
    assert not made.exists()


@pytest.mark.usefixtures("silent")
def test_pickled_weights_of_a_model_folder_are_not_read(tmp_path: Path, made: Path) -> None:
    folder = folder_with_code(tmp_path / "model", made, "gpt2")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"wte": Payload(made)}))
    with pytest.raises(ModelError, match=r"safetensors"):
        load_pretrained(folder)
    assert not made.exists()


# ---- names in files


@pytest.mark.parametrize(
    "line",
    [
        'task = "os:getcwd"', 'searcher = "os.path:join"', 'baselines = ["uniform", "os:listdir"]',
        'baselines = "uniform,os:listdir"',
    ],
)  # fmt: skip
def test_a_config_file_names_no_code(tmp_path: Path, line: str) -> None:
    file = tmp_path / "theirs.toml"
    file.write_text(line)
    with pytest.raises(ConfigError, match=r"names code to run.*on the command line"):
        parse(RunConfig, ["--config", str(file)])
    key = line.split()[0]
    said = parse(RunConfig, ["--config", str(file), f"--{key}", "mine:own"])
    assert "mine:own" in str(getattr(said, key))


def test_a_config_file_may_hold_colons(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text('units = "2:4+block:16"\nweights = "C:/net.pt"')
    assert parse(RunConfig, ["--config", str(tmp_path / "ours.toml")]).units == "2:4+block:16"


# ---- policies that are not what they say


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("policies")
    for name in ("ppo", "sac"):
        run_search(toy_task(budget=0.6), name, 8, 0, base / name)
    return {name: base / name / POLICY for name in ("ppo", "sac")}


Change = Callable[[dict[str, Any], dict[str, Any]], object]


def rewritten(path: Path, to: Path, change: Change) -> Path:
    """A policy with other facts or weights, and a digest that fits them."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["policy"])
    change(facts, weights)
    return save_tensors(to, weights, {"policy": json.dumps(facts)})


def _drop(part: str) -> Change:
    def change(facts: dict[str, Any], weights: dict[str, Any]) -> None:
        for name in [name for name in weights if part in name]:
            del weights[name]

    return change


CHANGES: dict[str, Change] = {
    "no facts": lambda facts, weights: facts.clear(),
    "other facts": lambda facts, weights: facts.update(policy_class="os.system"),
    "huge": lambda facts, weights: facts.update(seen=10**12),
    "negative": lambda facts, weights: facts.update(acted=-1),
    "text": lambda facts, weights: facts.update(steps="many"),
    "other size": lambda facts, weights: facts.update(seen=facts["seen"] + 1),
    "no network": _drop("policy/"),
    "half an optimiser": _drop("exp_avg_sq"),
    "not a number": lambda facts, weights: [w.fill_(float("nan")) for w in weights.values()],
    "half precision": lambda facts, weights: weights.update(
        {name: value.half() for name, value in weights.items()}
    ),
    "a stranger": lambda facts, weights: weights.update({"replay_buffer/x": torch.zeros(1)}),
    "no parameter": lambda facts, weights: weights.update(
        {f"{name.partition('/')[0]}/99/step": torch.zeros(()) for name in weights if "step" in name}
    ),
    "a state of another shape": lambda facts, weights: weights.update(
        {name: torch.zeros(3, 5, 7) for name in weights if "exp_avg" in name}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_a_policy_that_does_not_fit_its_facts_is_refused(
    policies: dict[str, Path], tmp_path: Path, name: str, change: str
) -> None:
    path = rewritten(policies[name], tmp_path / "p.safetensors", CHANGES[change])
    with pytest.raises(ConfigError, match="holds no policy"):
        load_policy(name, path)


def test_a_policy_is_kept_to_the_bit(policies: dict[str, Path], tmp_path: Path) -> None:
    from prune_env.agents.policy import write_policy

    for name, path in policies.items():
        write_policy(tmp_path / POLICY, name, load_policy(name, path))
        before, after = read_policy(path), read_policy(tmp_path / POLICY)
        assert (before.agent, before.steps, before.updates) == (name, after.steps, after.updates)
        assert before.weights.keys() == after.weights.keys()
        assert all(torch.equal(value, after.weights[key]) for key, value in before.weights.items())


def test_a_changed_byte_is_seen(policies: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray(policies["ppo"].read_bytes())
    content[-9] ^= 1
    (tmp_path / POLICY).write_bytes(content)
    with pytest.raises(ConfigError, match="a byte has changed"):
        read_policy(tmp_path / POLICY)
    with pytest.raises(ConfigError, match="holds no policy"):
        read_policy(tmp_path / "absent")
    with pytest.raises(RunError):
        load_tensors(tmp_path / POLICY)
