"""Does this machine run it? Packages, processor, GPU, both checkers of environments, the cache.

python -m experiments.check

Ends with status 1 if something that is needed does not work; says the cure.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from prune_env.experiments.config.cli import invoked, main_guard, parse

NEEDED = ("torch", "gymnasium", "stable_baselines3", "tensorboard", "numpy", "safetensors")
EXTRAS = {"optuna": "search", "pyarrow": "data", "transformers": "hf", "onnx": "onnx"}
"""Package -> the extra that brings it."""


@dataclass(frozen=True)
class CheckConfig:
    """Check what this machine has, and that the environment works on it."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and whether that will do."""

    name: str
    found: str
    good: bool = True

    def __str__(self) -> str:
        return f"{'ok  ' if self.good else 'BAD '} {self.name:24} {self.found}"


@main_guard
def main(argv: Sequence[str]) -> int:
    """Print a line for everything looked at and one JSON object; 1 if one of them will not do."""
    parse(CheckConfig, argv, prog=invoked("check"))
    found = []
    for finding in findings():
        print(finding, flush=True)
        found.append(finding)
    print(json.dumps({"findings": [vars(finding) for finding in found]}))
    return int(not all(finding.good for finding in found))


def findings() -> Iterator[Finding]:
    """Everything, in the order of what builds on what."""
    yield Finding("python", platform.python_version())
    for package in NEEDED:
        version = _version(package)
        yield Finding(package, version or "missing: pip install prune_env", bool(version))
    for package, extra in EXTRAS.items():
        cure = f"not installed; pip install 'prune_env[{extra}]' brings it"
        yield Finding(f"{package} (optional)", _version(package) or cure)
    yield from _machine()
    yield _tried("both check_env", _check_environments)
    yield _tried("cache", _write_cache)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _machine() -> Iterator[Finding]:
    import torch

    from prune_env.pipeline.rows import processor
    from prune_env.quality.inference import native_bfloat16

    yield Finding(
        "processor", f"{processor()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    )
    native = native_bfloat16("cpu")
    yield Finding(
        "bfloat16",
        "native: --precision auto measures in it" if native
        else "not native: --precision auto measures in float32",
    )  # fmt: skip
    if torch.cuda.is_available():
        yield Finding("GPU", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    else:
        built = "a build without CUDA" if torch.version.cuda is None else "none is visible"
        yield Finding("GPU", f"none ({built}); everything runs on the processor")


def _tried(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, check())
    except Exception as error:  # whatever is wrong is the finding
        return Finding(name, f"{type(error).__name__}: {error}", good=False)


def _check_environments() -> str:
    from prune_env.agents.checkers import check_environments

    return check_environments()


def _write_cache() -> str:
    from prune_env.tasks.cache import cache_folder

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".check-{os.getpid()}"
    probe.write_text("", "utf-8")
    probe.unlink()
    return f"'{folder}' can be written; $PRUNE_ENV_CACHE names another"


if __name__ == "__main__":
    sys.exit(main(None))
