"""What discovery finds in architectures that nobody here wrote, and whether the laws hold there.

    python -m experiments.bench_discovery --only tv- --out experiments/results/discovery_vision

Random weights, two small random images. "Seen alike" is law 7: the same groups for contiguous and
channels_last input and weights, eval and train mode, one batch and two, and every parameter in a
group. Then half of every group goes: masked equals compact (law 1), and the small network runs in
train mode, auxiliary heads included. Networks whose library is missing are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prune_env.experiments.benches.harness import BenchFlags, bench
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import markdown, note

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prune_env.structure.groups import PrunableGroup


@dataclass(frozen=True)
class DiscoveryConfig(BenchFlags):
    """Find the groups of other people's networks, cut them, run what is left."""

    only: tuple[str, ...] = option(
        (), "names of experiments/networks/zoo.py that contain one of these"
    )


def measure(config: DiscoveryConfig) -> dict[str, Any]:
    """The figures of every network."""
    from prune_env.experiments.networks.zoo import ZOO

    rows = []
    for name in ZOO:
        if not config.only or any(part in name for part in config.only):
            rows.append({"name": name, **examined(name)})
            note(f"{name}: {rows[-1]}")
    return {"rows": rows}


def failed(figures: Mapping[str, Any]) -> bool:
    """Whether a law is broken, or discovery crashed."""
    rows = [row for row in figures["rows"] if "skipped" not in row]
    return any("error" in row or not laws_hold(row) for row in rows)


def examined(name: str) -> dict[str, Any]:
    """The figures of one network; an error or the reason why it was left out instead."""
    import torch

    from prune_env.errors import ConfigError
    from prune_env.experiments.networks.zoo import ZOO

    try:
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)
            model, inputs = ZOO[name]()
    except ConfigError as error:
        return {"skipped": str(error)}
    try:
        return figures_of(model.eval(), inputs)
    except Exception as error:  # whatever it is, the other networks are examined too
        return {"error": f"{type(error).__name__}: {error}"}


def figures_of(model: nn.Module, images: Any) -> dict[str, Any]:
    """Groups, their share, and what laws 1 and 7 say of them."""
    import time

    from prune_env.costs.model import CostModel
    from prune_env.structure.coverage import NOT_FOLLOWED
    from prune_env.structure.discover import find_groups

    start = time.process_time()
    groups = find_groups(model, images)
    seconds = time.process_time() - start
    live = [group for group in groups if not group.frozen]
    costs = CostModel.of(model, images, live)
    return {
        "live": len(live),
        "frozen": len(groups) - len(live),
        "not_followed": sum(group.frozen.startswith(NOT_FOLLOWED) for group in groups),
        "reasons": reasons_of(groups),
        "parameters": int(costs.dense[1]),
        "share": round(1.0 - float(costs.fixed_M[1] / costs.dense[1]), 4),
        "macs_share": round(1.0 - float(costs.fixed_M[0] / costs.dense[0]), 4),
        "seen_alike": seen_alike(model, images, groups),
        "seconds": round(seconds, 1),
        **cut_figures(model, images, live),
    }


def reasons_of(groups: Sequence[PrunableGroup]) -> dict[str, int]:
    """How often each kind of reason is given, without the place."""
    from collections import Counter

    return dict(Counter(g.frozen.partition(" in '")[0] for g in groups if g.frozen))


def seen_alike(model: nn.Module, images: Tensor, groups: tuple[PrunableGroup, ...]) -> bool:
    """Law 7."""
    import copy

    import torch

    from prune_env.structure.discover import find_groups
    from prune_env.structure.rewrite import tensors_of

    last = torch.channels_last
    other = copy.deepcopy(model).train().to(memory_format=last)  # type: ignore[call-overload]
    again = find_groups(other, images.contiguous(memory_format=last), more_inputs=[images.flip(0)])
    tensors = tensors_of(model)
    held = {id(tensors[axis.tensor]) for g in groups for axis in g.axes if axis.tensor in tensors}
    return again == groups and all(id(parameter) in held for parameter in model.parameters())


def cut_figures(model: nn.Module, images: Tensor, live: Sequence[PrunableGroup]) -> dict[str, Any]:
    """Law 1 in float64 with half of every group gone, and whether the rest runs in train mode."""
    import torch

    from prune_env.plan.cut import compact, masked
    from prune_env.plan.plan import PruningPlan
    from prune_env.structure.inputs import call_model
    from prune_env.structure.trace import tensors_in

    if not live:
        return {}
    model, images = model.double(), images.double()
    plan = PruningPlan.uniform(model, live, 0.5)
    small = compact(model, plan)
    with torch.no_grad(), masked(model, plan):
        zeroed = tensors_in(call_model(model, images))
    with torch.no_grad():
        pairs = list(zip(zeroed, tensors_in(call_model(small, images)), strict=True))
    difference = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)
    trained = tensors_in(call_model(small.train(), images))
    torch.stack([tensor.square().mean() for tensor in trained]).sum().backward()
    left = sum(parameter.numel() for parameter in small.parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    return {"difference": difference, "left": round(left / whole, 4), "trains": True}


def laws_hold(row: Mapping[str, Any]) -> bool:
    """Laws 1 and 7 of one row."""
    return bool(row["seen_alike"]) and row.get("difference", 0.0) <= 1e-6


def page(figures: Mapping[str, Any]) -> str:
    """The table, and what is frozen and why."""
    heads = [
        "network", "groups that go", "left alone", "not followed", "parameters in them", "MACs",
        "seen alike", "masked = compact", "left at half", "trains", "CPU s",
    ]  # fmt: skip
    lines, reasons = [], []
    for row in figures["rows"]:
        if "skipped" in row:
            continue
        if "error" in row:
            lines.append([row["name"], row["error"], *[""] * 9])
            continue
        cut = ["", "", ""]
        if "difference" in row:
            cut = [f"{row['difference']:.0e}", f"{row['left']:.1%}", "yes" * row["trains"]]
        lines.append([
            row["name"], str(row["live"]), str(row["frozen"]), str(row["not_followed"]),
            f"{row['share']:.1%}", f"{row['macs_share']:.1%}",
            "yes" if row["seen_alike"] else "NO", *cut, f"{row['seconds']:.1f}",
        ])  # fmt: skip
        told = ", ".join(f"{count} x {reason}" for reason, count in row["reasons"].items())
        reasons.append(f"- {row['name']}: {told}")
    text = (__doc__ or "").partition("\n\n    python")[0]
    more = (__doc__ or "").rpartition("discovery_vision\n\n")[2]
    parts = ["# Discovery on networks of torchvision, timm and transformers", text, more.strip()]
    return "\n\n".join([*parts, markdown(heads, lines), "What is left alone:", "\n".join(reasons)])


main = bench("bench_discovery", DiscoveryConfig, measure, page, failed)

if __name__ == "__main__":
    sys.exit(main(None))
