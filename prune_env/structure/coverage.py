"""Parameters that no group holds: what was not followed, why, and what would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from prune_env.structure.groups import Axis, PrunableGroup, Span
from prune_env.structure.rewrite import tensors_of
from prune_env.structure.trace import Trace

NOT_FOLLOWED = "not followed: "
"""How the reason of a group begins that holds what is in no other."""

UNREACHED = "no example reaches, in eval or train mode, what is"
SINGLE = "a single value, for all units alike,"
COMPUTED = "weights computed on the fly"
CURES = {
    UNREACHED: "give an example that does, or remove it; what it would read may become narrower",
    COMPUTED: "make them plain first, as torch.nn.utils.parametrize.remove_parametrizations does",
    "unknown op": "it stays as it is, and so does what it reads; the layers beside it can go",
}
"""What helps, by how the reason begins."""


def not_followed(
    model: nn.Module, groups: Sequence[PrunableGroup], trace: Trace
) -> tuple[PrunableGroup, ...]:
    """The parameters that are in none of `groups`, as frozen groups: one per module and reason.

    A reason names the op that used them, the module with its type, and the cure.

    Args:
        model: the model that was traced.
        groups: what its trace gave, frozen ones included.
        trace: its finished trace.
    """
    tensors = tensors_of(model)
    held = {id(tensors[a.tensor]) for g in groups for a in g.axes if a.tensor in tensors}
    parameters = {id(parameter) for parameter in model.parameters()} - held
    aliases: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if id(tensor) in parameters:
            aliases.setdefault(id(tensor), []).append(name)
    reasons = _Reasons(trace)
    left: dict[tuple[str, str], list[str]] = {}
    for names in aliases.values():
        reason = SINGLE if tensors[names[0]].numel() == 1 else reasons.of(names)
        left.setdefault((names[0].rpartition(".")[0], reason), []).append(names[0])
    taken = {group.name for group in groups}
    found = []
    for (path, reason), names in left.items():
        name = path or names[0]
        while name in taken:
            name += " (rest)"
        taken.add(name)
        kind = type(model.get_submodule(path)).__name__
        cure = next((cure for start, cure in CURES.items() if reason.startswith(start)), "")
        place = f"in '{path}' ({kind})" if path else f"in {kind}"
        text = reason if " in '" in reason else f"{reason} {place}"
        frozen = f"{NOT_FOLLOWED}{text}{f'; {cure}' * bool(cure)}"
        found.append(PrunableGroup(name, (1,), _axes(names, tensors), frozen=frozen))
    return tuple(found)


def _axes(names: Sequence[str], tensors: Mapping[str, Tensor]) -> tuple[Axis, ...]:
    """Each tensor as a whole, in one unit."""
    shapes = {name: tuple(tensors[name].shape[:1]) for name in names}
    return tuple(
        Axis(name, tuple(range(len(size))), tuple(Span(0, n) for n in size), size)
        for name, size in shapes.items()
    )


class _Reasons:
    """Why parameters are in no group, from what a trace noted."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._roots = trace.book.roots()
        self._frozen = trace.book.reasons(self._roots)

    def of(self, names: Sequence[str]) -> str:
        """The reason for a tensor, which tied modules hold under several names."""
        for name in names:
            if name in self._trace.closed:
                return self._trace.closed[name]
        used = next((name for name in names if name in self._trace.used), "")
        if not used:
            return UNREACHED
        for (tensor, _), slot in self._trace.slots.items():
            for root in self._roots[slot.labels.numpy()].reshape(-1)[:1] if tensor == used else ():
                if int(root) in self._frozen:
                    return self._frozen[int(root)]
        return f"op {self._trace.used[used]} makes no units of it"
