"""The pruning plan: which units of every group stay. Pure data, kept as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.checks import real, whole
from prune_env.criteria.elementwise import Criterion, score_units
from prune_env.errors import GroupError, PlanError
from prune_env.plan.recipe import Recipe
from prune_env.plan.rounds import in_dense_terms
from prune_env.plan.written import group_content, kept_content, read_group, read_kept
from prune_env.records import read_record
from prune_env.storage import Unreadable, seal, unseal, write_text
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.rewrite import require_tensors

FORMAT = 2


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

    def __repr__(self) -> str:
        shown = [f"{g.name} {len(self.kept[g.name])}/{g.units}" for g in self.groups[:4]]
        more = ["..."] * (len(self.groups) > 4)
        rounds = f", {len(self.rounds)} rounds" if self.rounds else ""
        return f"PruningPlan({len(self.groups)} groups: {', '.join(shown + more)}{rounds})"

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
        """The plan as JSON text, sealed by a digest of its content.

        Raises:
            PlanError: the notes cannot be JSON.
        """
        try:
            return seal({"format": FORMAT, **_content_of(self)}, indent=1)
        except (TypeError, ValueError) as error:
            raise PlanError(f"a plan's notes must be JSON: {error}. Leave that out.") from error

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """Read what `to_json` wrote.

        A plan may be written or edited by hand: without "sha256" its content is checked alone.

        Raises:
            PlanError: not JSON, damaged, another format, or fields missing or malformed.
        """
        try:
            content = unseal(text, required=False)
            found = content.pop("format", None)
            if found != FORMAT:
                raise PlanError(
                    f"the plan has format {found!r}, this version reads {FORMAT}. Make it again, "
                    "or use the version of prune_env that wrote it."
                )
            return _plan_of(content, "")
        except (Unreadable, RecursionError) as error:
            raise PlanError(
                f"this is not a pruning plan ({error}). Give a plan.json that PruningPlan.save "
                'wrote; to edit one by hand, take its "sha256" out.'
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
        except (OSError, ValueError) as error:
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


def _content_of(plan: PruningPlan) -> dict[str, Any]:
    """A plan as JSON has it; of several rounds each is written, the whole follows from them."""
    summary = {g.name: f"{len(plan.kept[g.name])} of {g.units}" for g in plan.groups}
    shown = {"notes": dict(plan.notes), "summary": summary}
    if plan.rounds:
        return {**shown, "rounds": [_content_of(one) for one in plan.rounds]}
    return {
        **shown,
        "recipe": None if plan.recipe is None else dataclasses.asdict(plan.recipe),
        "kept": {g.name: kept_content(plan.kept[g.name], g.cells) for g in plan.groups},
        "groups": [group_content(group) for group in plan.groups],
    }


@dataclass(frozen=True)
class _One:
    """The fields of a plan of one round."""

    notes: dict[str, Any]
    summary: dict[str, str]
    recipe: Recipe | None
    kept: dict[str, Any]
    groups: tuple[PrunableGroup, ...]


@dataclass(frozen=True)
class _Several:
    """The fields of a plan of several rounds."""

    notes: dict[str, Any]
    summary: dict[str, str]
    rounds: tuple[Any, ...]


def _plan_of(content: Any, place: str) -> PruningPlan:
    if isinstance(content, Mapping) and "rounds" in content:
        several = read_record(_Several, content, place)
        plans = [_plan_of(one, f"{place}rounds[{n}]") for n, one in enumerate(several.rounds)]
        if len(plans) < 2:
            raise Unreadable(f"{place}rounds are {len(plans)}, not two or more")
        try:
            return dataclasses.replace(reduce(PruningPlan.then, plans), notes=several.notes)
        except (RuntimeError, MemoryError) as error:  # sizes that no network has
            raise Unreadable(f"{place}rounds do not fit each other: {error}") from error
    one = read_record(_One, content, place, {PrunableGroup: read_group})
    cells = {group.name: group.cells for group in one.groups}
    unknown = sorted(set(one.kept) - set(cells))
    if unknown or len(cells) != len(one.groups):
        named = unknown or [group.name for group in one.groups]
        raise Unreadable(f"kept and groups differ, or a name is there twice: {named[:3]}")
    kept = {n: read_kept(units, cells[n], f"kept['{n}']") for n, units in one.kept.items()}
    return PruningPlan(one.groups, kept, one.notes, one.recipe)
