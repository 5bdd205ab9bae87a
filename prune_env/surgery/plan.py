"""The pruning plan: which units of every group stay. Pure data, kept as JSON."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prune_env.checks import real, whole
from prune_env.errors import GroupError, PlanError
from prune_env.storage import write_text
from prune_env.structure.groups import Axis, PrunableGroup, Span, Table
from prune_env.structure.patterns import PATTERNS
from prune_env.structure.rewrite import require_tensors
from prune_env.surgery.criteria import Criterion, score_units
from prune_env.surgery.recipe import Recipe
from prune_env.surgery.rounds import in_dense_terms

FORMAT = 2

LISTED = 4096
"""A grid of more units is written as a bit per unit, not as a list of the kept."""


@dataclass(frozen=True)
class PruningPlan:
    """The only thing handed over between deciding and doing.

    A plan carries the groups it speaks of, so it can be applied to the dense network, and refused
    for any other, without a new discovery.

    Attributes:
        groups: the groups that were decided on.
        kept: flat indices of the units that stay, ascending, per group name.
        notes: anything JSON-able worth keeping (budget, searcher, seed, reward).
        recipe: what the network that was measured is made with, for `apply`; None: its defaults.
        rounds: the plans that this one does one after the other, see `then`; none for a single one.
    """

    groups: tuple[PrunableGroup, ...]
    kept: Mapping[str, tuple[int, ...]]
    notes: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    rounds: tuple[PruningPlan, ...] = ()

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if set(names) != set(self.kept):
            missing, extra = set(names) - set(self.kept), set(self.kept) - set(names)
            raise PlanError(
                f"plan and groups differ: no units for {sorted(missing) or 'none'}, unknown groups "
                f"{sorted(extra) or 'none'}. Was it made for another model?"
            )
        for group in self.groups:
            _require_units(group, self.kept[group.name])

    @staticmethod
    def of_levels(
        groups: Sequence[PrunableGroup], levels: Sequence[int], orders: Mapping[str, Tensor]
    ) -> PruningPlan:
        """Keep the first `levels[g]` units of each group's order.

        Args:
            groups: live groups.
            levels: number of kept units, one per group.
            orders: flat unit indices by group name, the last to be removed first.

        Raises:
            PlanError: not one whole number of units per group.
        """
        if len(levels) != len(groups):
            raise PlanError(f"{len(levels)} numbers of kept units for {len(groups)} groups.")
        for group, level in zip(groups, levels, strict=True):
            whole(0, group.units, PlanError)(f"number of units of group '{group.name}'", level)
        kept = {
            group.name: tuple(sorted(orders[group.name][:level].tolist()))
            for group, level in zip(groups, levels, strict=True)
        }
        return PruningPlan(tuple(groups), kept)

    @staticmethod
    def uniform(
        model: nn.Module,
        groups: Sequence[PrunableGroup],
        sparsity: float,
        criterion: str | Criterion = "l1",
    ) -> PruningPlan:
        """The same sparsity for every prunable group, each at its nearest level.

        Raises:
            PlanError: the sparsity is no number in [0, 1].
        """
        real("a fraction in [0, 1]", lambda x: 0 <= x <= 1, PlanError)("sparsity", sparsity)
        live = [group for group in groups if not group.frozen]
        orders = rank_units(model, live, criterion)
        levels = [group.nearest_level((1 - sparsity) * group.units) for group in live]
        return PruningPlan.of_levels(live, levels, orders)

    @property
    def levels(self) -> dict[str, int]:
        """Number of kept units per group."""
        return {name: len(units) for name, units in self.kept.items()}

    @property
    def sparsity(self) -> dict[str, float]:
        """Fraction of units removed per group."""
        return {group.name: 1 - len(self.kept[group.name]) / group.units for group in self.groups}

    def indices(self) -> dict[str, Tensor]:
        """Kept units as int64 tensors."""
        return {name: torch.tensor(units, dtype=torch.int64) for name, units in self.kept.items()}

    def then(self, later: PruningPlan) -> PruningPlan:
        """This plan and `later`, which was made on the network that this one cuts, as one.

        It is a plan of the dense network: `compact` cuts in one go what two cuts would leave, and
        `load` takes a factory of the dense network. Groups of the second round whose names are
        taken get a number. `apply` repairs round by round.

        Raises:
            PlanError: `later` was made on another network.
        """
        rounds = (*(self.rounds or (self,)), *(later.rounds or (later,)))
        names = {name: f"{name} (round {len(rounds)})" if name in self.kept else name
                 for name in later.kept}  # fmt: skip
        moved = in_dense_terms(self.groups, self.indices(), later.groups)
        groups = (*self.groups, *(dataclasses.replace(g, name=names[g.name]) for g in moved))
        kept = {**self.kept, **{names[name]: units for name, units in later.kept.items()}}
        return PruningPlan(groups, kept, {**self.notes, **later.notes}, rounds=rounds)

    def check(self, model: nn.Module) -> None:
        """Check that the plan was made for a network like `model`.

        Raises:
            PlanError: says which group and tensor differ, and how.
        """
        try:
            require_tensors(model, self.groups)
        except GroupError as error:
            raise PlanError(f"this plan does not fit {type(model).__name__}: {error}") from error

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps({"format": FORMAT, **_content_of(self)}, indent=1)

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """Read what `to_json` wrote.

        Raises:
            PlanError: not JSON, another format, or fields missing or malformed.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise PlanError(
                    f"the plan has format {content['format']!r}, this version reads {FORMAT}. "
                    "Make it again, or use the version of prune_env that wrote it."
                )
            return _plan_of(content)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise PlanError(
                f"this is not a pruning plan ({type(error).__name__}: {error}). Give a plan.json "
                "that PruningPlan.save wrote."
            ) from error

    def save(self, path: str | Path) -> Path:
        """Write the plan to `path`, atomically."""
        return write_text(path, self.to_json())

    @staticmethod
    def load(path: str | Path) -> PruningPlan:
        """Read a plan.

        Raises:
            PlanError: the file is missing or is not a plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read the plan '{path}': {error}.") from error
        return PruningPlan.from_json(text)


def rank_units(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    criterion: str | Criterion = "l1",
    *,
    gradients: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Units of every group in the order its pattern gives them up, the last to go first."""
    scores = score_units(model, groups, criterion, gradients=gradients, seed=seed)
    return {group.name: group.pattern.order(scores[group.name]) for group in groups}


def _require_units(group: PrunableGroup, units: Sequence[int]) -> None:
    whole = all(isinstance(unit, int) and 0 <= unit < group.cells for unit in units)
    if not (whole and list(units) == sorted(set(units))):
        raise PlanError(
            f"units of group '{group.name}' must be integers, distinct, ascending and below "
            f"{group.cells}; "
            f"the plan has {list(units)[:8]}{'...' if len(units) > 8 else ''}."
        )
    if len(units) < group.min_keep:
        raise PlanError(
            f"group '{group.name}' keeps {len(units)} of {group.units} units, but at least "
            f"{group.min_keep} must stay. Lower its sparsity."
        )


def _written(units: Sequence[int], count: int) -> Any:
    """Kept units as JSON has them: a list, or base64 of a bit for each of `count` units."""
    if count <= LISTED:
        return list(units)
    mask = np.zeros(count, dtype=bool)
    mask[list(units)] = True
    return {"bits": base64.b64encode(np.packbits(mask).tobytes()).decode()}


def _read(units: Any, count: int) -> tuple[int, ...]:
    """What `_written` wrote of `count` units."""
    if not isinstance(units, Mapping):
        return tuple(units)
    packed = np.frombuffer(base64.b64decode(units["bits"], validate=True), dtype=np.uint8)
    if len(packed) != (count + 7) // 8:
        raise ValueError(f"{8 * len(packed)} bits for {count} units")
    return tuple(np.unpackbits(packed).nonzero()[0].tolist())


def _content_of(plan: PruningPlan) -> dict[str, Any]:
    """A plan as JSON has it; of several rounds each is written, the whole follows from them."""
    summary = {g.name: f"{len(plan.kept[g.name])} of {g.units}" for g in plan.groups}
    shown = {"notes": dict(plan.notes), "summary": summary}
    if plan.rounds:
        return {**shown, "rounds": [_content_of(one) for one in plan.rounds]}
    groups = []
    for group in plan.groups:
        entry = dataclasses.asdict(group)
        entry["pattern"] = {"kind": type(group.pattern).__name__, **entry["pattern"]}
        entry["axes"] = [_axis_to_dict(axis) for axis in group.axes]
        groups.append(entry)
    return {
        **shown,
        "recipe": None if plan.recipe is None else dataclasses.asdict(plan.recipe),
        "kept": {g.name: _written(plan.kept[g.name], g.cells) for g in plan.groups},
        "groups": groups,
    }


def _plan_of(content: Mapping[str, Any]) -> PruningPlan:
    notes = dict(content["notes"])
    if "rounds" in content:
        first, *others = [_plan_of(one) for one in content["rounds"]]
        return dataclasses.replace(reduce(PruningPlan.then, others, first), notes=notes)
    groups = tuple(_group_of(entry) for entry in content["groups"])
    counts = {group.name: group.cells for group in groups}
    kept = {str(name): _read(us, counts[name]) for name, us in content["kept"].items()}
    recipe = None if content["recipe"] is None else Recipe.of(content["recipe"])
    return PruningPlan(groups, kept, notes, recipe)


def _axis_to_dict(axis: Axis) -> dict[str, Any]:
    index = [
        [i.start, i.width] if isinstance(i, Span) else {"rows": [list(row) for row in i.rows]}
        for i in axis.index
    ]
    return {**dataclasses.asdict(axis), "index": index}


def _group_of(entry: dict[str, Any]) -> PrunableGroup:
    axes = []
    for axis in entry["axes"]:
        index = tuple(
            Table(tuple(tuple(row) for row in i["rows"])) if isinstance(i, dict) else Span(*i)
            for i in axis["index"]
        )
        dims, sizes = tuple(axis["dims"]), tuple(axis["sizes"])
        if not (isinstance(axis["tensor"], str) and all(isinstance(n, int) for n in dims + sizes)):
            raise TypeError(f"an axis of '{entry['name']}' is malformed")
        axes.append(Axis(axis["tensor"], dims, index, sizes, axis["role"]))
    pattern = dict(entry["pattern"])
    kind = PATTERNS[pattern.pop("kind")]
    fields = {
        **entry,
        "grid": tuple(entry["grid"]),
        "axes": tuple(axes),
        "pattern": kind(**pattern),
    }
    group = PrunableGroup(**fields)
    for place in group.axes:
        place.owners(group.grid)  # an index that does not fit its grid and sizes fails here
    return group
