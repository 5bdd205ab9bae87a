"""A network of a finished run as .pt2, .onnx or a folder for the transformers library.

    prune-env export runs/digits-0.5-0123456789 --to pruned.onnx

What is written is run beside the network first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from prune_env.experiments.config.cli import invoked, main_guard, parse
from prune_env.experiments.config.delivered import ExportConfig, run_first


@main_guard
def main(argv: Sequence[str]) -> int:
    """Write the file and print one JSON object."""
    config = parse(ExportConfig, run_first(argv), prog=invoked("export"), description=__doc__ or "")
    from prune_env.deploy.export import export
    from prune_env.experiments.stages.delivered import Delivered
    from prune_env.quality.batches import take_batches
    from prune_env.structure.inputs import device_of

    delivered = Delivered(config)
    name = config.searcher or delivered.config.searcher
    delivered.require(name)
    network, project = delivered.network(name), delivered.project
    example = take_batches(project.val, 2)[0].to(device_of(project.dense)).inputs
    path = export(network, delivered.plan(name), config.to, example)
    print(json.dumps({"written": str(path), "searcher": name, "run": str(config.run)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
