"""What could be pruned in a network, and why the rest could not.

python -m experiments.inspect                       (all of experiments/networks/models.py)
python -m experiments.inspect --model resnet20,vgg16_bn
python -m experiments.inspect --task mypackage.mymodule:make_task
python -m experiments.inspect --zoo                 (of transformers and torchvision, if there)
python -m experiments.inspect --hf-config mistral   (the price of a config, without weights)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from prune_env.experiments.config.cli import invoked, main_guard, parse
from prune_env.experiments.config.run import option


@dataclass(frozen=True)
class InspectConfig:
    """Print the groups of networks: units, share of MACs, and the reason of what is frozen."""

    model: tuple[str, ...] = option((), "networks of experiments/networks/models.py, or all")
    task: str = option("", "a task by name, or package.module:make_task")
    zoo: bool = option(False, "architectures of transformers and torchvision, random weights")
    only: str = option("", "of these, only names that contain this")
    classes: int = option(10, "outputs of the networks")
    hf_config: str = option(
        "", "price an architecture of transformers, a config.json or its folder"
    )
    length: int = option(2048, "tokens that --hf-config is priced at")
    dtype: str = option("bfloat16", "of weights, keys and values for --hf-config")
    tables: bool = option(True, "print the table of groups of every network")


@main_guard
def main(argv: Sequence[str]) -> int:
    """Print the tables, one line per network, and one JSON object; 1 if discovery crashed."""
    config = parse(InspectConfig, argv, prog=invoked("inspect"))
    if config.hf_config:
        return _price(config)
    from prune_env.experiments.benches.discovery import (  # torch comes with it
        found_line,
        inspect_all,
    )

    found = []
    for entry in inspect_all(config):
        found.append(entry)
        if config.tables and entry.table:
            print(f"{entry.name}\n{entry.table}\n", flush=True)
    width = max((len(entry.name) for entry in found), default=0)
    for entry in found:
        print(found_line(entry, width))
    figures = {entry.name: entry.figures for entry in found}
    settings = {"model": config.model, "task": config.task, "zoo": config.zoo, "only": config.only}
    print(json.dumps({"models": figures, "settings": settings}))
    return int(any(entry.crashed for entry in found))


def _price(config: InspectConfig) -> int:
    from prune_env.experiments.networks.pricing import price, price_text

    found = price(config.hf_config, length=config.length, dtype=config.dtype)
    print(price_text(found))
    print("groups are found by running the network, which needs its weights: --task or find_groups")
    settings = {"hf_config": config.hf_config, "length": config.length, "dtype": config.dtype}
    print(json.dumps({"price": found.figures, "settings": settings}))
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
