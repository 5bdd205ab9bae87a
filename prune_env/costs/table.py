"""The groups of a network as a table to print."""

from __future__ import annotations

from collections.abc import Sequence

from prune_env.costs.model import CostModel
from prune_env.structure.groups import PrunableGroup


def prunable_share(costs: CostModel) -> float:
    """Fraction of the MACs spent in tensors that some group can shrink."""
    return 1.0 - float(costs.fixed_M[0] / costs.dense[0]) if costs.dense[0] else 0.0


def format_groups(groups: Sequence[PrunableGroup], costs: CostModel | None = None) -> str:
    """One line per group: units, share of MACs that goes with it, places it lives in, state.

    Args:
        groups: what `find_groups` returned, frozen ones included.
        costs: over the groups that are not frozen; without it the shares are left out.
    """
    shares = {} if costs is None else {n: costs.share(k) for k, n in enumerate(costs.names)}
    width = max([5, *(len(group.name) for group in groups)])
    lines = [f"{'group':<{width}}  {'units':>5}  {'MACs':>6}  {'places':>6}  state"]
    for group in groups:
        state = f"frozen: {group.frozen}" if group.frozen else "verified" * group.verified
        share = f"{shares[group.name]:.1%}" if group.name in shares else ""
        places = len(group.axes)
        row = f"{group.name:<{width}}  {group.units:>5}  {share:>6}  {places:>6}  {state}"
        lines.append(row.rstrip())
    live = sum(not group.frozen for group in groups)
    lines.append(f"{live} of {len(groups)} groups prunable" + _totals(costs))
    return "\n".join(lines)


def _totals(costs: CostModel | None) -> str:
    if costs is None:
        return ""
    macs, params, _ = costs.dense
    return (
        f", in tensors with {prunable_share(costs):.1%} of {macs / 1e6:.2f} M MACs; "
        f"{params / 1e6:.3f} M parameters in all"
    )
