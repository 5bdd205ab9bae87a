"""A pruned network as one sealed safetensors file, with the plan and all that `load` needs in it.

One file is replaced at once, so a folder holds the old network or the new one, whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.deploy.configs import config_of, model_from_config
from prune_env.errors import ModelError, PlanError, PruneEnvError, RunError
from prune_env.plan.cut import compact
from prune_env.plan.plan import PruningPlan
from prune_env.records import read_record
from prune_env.recovery.masks import KeepMasks, require_masks
from prune_env.storage import Unreadable, load_described, parse, save_tensors, write_json
from prune_env.structure.entry import require_loaded
from prune_env.structure.rewrite import Layout, tensors_of

WEIGHTS, PLAN, METADATA = "model.safetensors", "plan.json", "metadata.json"
"""What `load` reads, and copies of two parts of it for people and other programs."""
MASK = "keep mask: "
"""Before the names of tensors that are no weights but say which single weights stay."""
FORMAT = 2
Factory = Callable[[], nn.Module]


@dataclass(frozen=True)
class Description:
    """What a saved network says of itself.

    Attributes:
        format: of the file.
        class_name: of the network.
        parameters: of the small network.
        dtype: of its first parameter.
        torch: version that wrote it.
        config: of the transformers library, where it makes the dense network again.
        metadata: what the user gave to keep.
    """

    format: int
    class_name: str
    parameters: int
    dtype: str
    torch: str
    config: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def save(
    folder: str | Path,
    model: nn.Module,
    plan: PruningPlan,
    metadata: Mapping[str, Any] | None = None,
    masks: KeepMasks | None = None,
) -> Path:
    """Write a pruned network to `folder`, for `load`.

    Tied tensors are written once. A network that a config of the transformers library describes
    has it in the file, so that `load` needs no factory.

    Args:
        folder: made if missing; a network that it holds is replaced at once.
        model: the small network that `compact` or `apply` returned, fine-tuned or not.
        plan: the plan that cuts the dense network to it.
        metadata: anything JSON-able worth keeping (accuracy, data, commands).
        masks: which weights stay when the network is tuned on; None: those that the plan leaves
            and that are not zero.

    Raises:
        PlanError: `model` was not made with `plan`; names the tensor that differs.
        RunError: the folder cannot be written, or `metadata` cannot be JSON.
        ModelError: it is no network, or holds state that is not in tensors.
    """
    _require_made_with(plan, model)
    folder, config = Path(folder), config_of(model)
    if masks is None:
        masks = KeepMasks.of_plan(plan, model) & KeepMasks.of_network(model)
    masks = require_masks(masks)
    described = Description(
        format=FORMAT,
        class_name=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(next((p.dtype for p in model.parameters()), torch.float32)),
        torch=torch.__version__,
        config=None if config is None else json.loads(config.to_json_string(use_diff=False)),
        metadata=_plain(metadata or {}),
    )
    if config is not None and not _makes(described, plan, model):
        described = Description(**{**vars(described), "config": None})
    parts = {"description": json.dumps(asdict(described)), "plan": plan.to_json()}
    for copy in (PLAN, METADATA):  # never those of another network
        _remove(folder / copy)
    packed = {MASK + name: tensor for name, tensor in masks.packed().items()}
    save_tensors(folder / WEIGHTS, {**distinct(model), **packed}, parts)
    plan.save(folder / PLAN)
    write_json(folder / METADATA, asdict(described))
    return folder


def load(folder: str | Path, factory: Factory | None = None) -> nn.Module:
    """Rebuild the pruned network from its folder.

    Args:
        folder: what `save` wrote.
        factory: makes the *dense* network (any weights); it is cut to the plan's shape. None:
            made from the config of the transformers library that `save` kept.

    Returns:
        The small network in eval mode, on the CPU, to the bit what was saved.

    Raises:
        RunError: the folder is missing, incomplete or damaged, or has no config and no factory
            was given.
        PlanError: the factory makes another network than the plan was made for.
        ModelError: the stored weights do not fit the cut network.
    """
    stored = _Stored.read(folder)
    dense = factory() if factory else model_from_config(folder, stored.described)
    if not isinstance(dense, nn.Module):
        raise ModelError(f"the factory made a {type(dense).__name__}, not an nn.Module.")
    try:
        small = compact(dense, stored.plan)
    except PlanError as error:
        raise PlanError(
            f"the factory does not make the dense network of '{folder}': {error}"
        ) from error
    _put(small, stored.tensors, folder)
    for name in stored.masks.emptied:  # nothing is left there to train
        small.get_parameter(name).requires_grad_(False)
    return small.eval()


def load_masks(folder: str | Path) -> KeepMasks:
    """Which weights stay when the network in `folder` is tuned on.

    Raises:
        RunError: there is no network, or it is damaged.
    """
    return _Stored.read(folder).masks


def load_weights_into(model: nn.Module, folder: str | Path) -> None:
    """Put the weights that `save` wrote into a network of the same shapes.

    Raises:
        RunError: there are none, or they are damaged.
        ModelError: they do not fit.
    """
    _put(model, _Stored.read(folder).tensors, folder)


def size_on_disk(folder: str | Path) -> int:
    """Bytes of the stored weights, what lies beside them (plan, masks, description) left out."""
    stored = _Stored.read(folder)
    return (Path(folder) / WEIGHTS).stat().st_size - stored.words


@dataclass(frozen=True, eq=False)
class _Stored:
    """What a folder holds; `words` are the bytes in its file that are no weights."""

    tensors: Mapping[str, Tensor]
    masks: KeepMasks
    described: Description
    plan: PruningPlan
    words: int

    @staticmethod
    def read(folder: str | Path) -> _Stored:
        path = Path(folder) / WEIGHTS
        if not path.is_file():
            raise RunError(f"'{folder}' is not a complete pruned model: {WEIGHTS} missing.")
        tensors, parts = load_described(path)
        try:
            if set(parts) != {"description", "plan"}:
                raise Unreadable("it has no description and plan")
            found = parse(parts["description"])
            if found.get("format") != FORMAT:
                raise Unreadable(f"format {found.get('format')!r}, this version reads {FORMAT}")
            description = read_record(Description, found)
            plan = PruningPlan.from_json(parts["plan"])
            packed = {n.removeprefix(MASK): t for n, t in tensors.items() if n.startswith(MASK)}
            masks = KeepMasks.of_packed(packed)
        except (Unreadable, PlanError) as error:
            raise RunError(f"'{path}' holds no pruned model ({error}). Save it again.") from error
        weights = {name: t for name, t in tensors.items() if not name.startswith(MASK)}
        words = sum(len(json.dumps(text)) for text in parts.values())
        words += sum(tensor.nbytes for tensor in packed.values())
        return _Stored(weights, masks, description, plan, words)


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `model`, tied ones under their first name only."""
    tensors = tensors_of(model)
    return {name: tensors[name] for name, first in _first_names(tensors).items() if name == first}


def _put(model: nn.Module, tensors: Mapping[str, Tensor], folder: str | Path) -> None:
    """Stored values into a network, which takes their types too."""
    own, stored = tensors_of(model), dict(tensors)
    tied = {n: first for n, first in _first_names(own).items() if n != first}
    stored |= {name: stored[first] for name, first in tied.items() if first in stored}
    for name, value in stored.items():
        if name in own and own[name].dtype != value.dtype:
            own[name].data = own[name].data.to(value.dtype)
    try:
        model.load_state_dict(stored)
    except RuntimeError as error:
        raise ModelError(f"the weights in '{folder}' do not fit: {error}") from error


def _first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For every name, the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


def _require_made_with(plan: PruningPlan, model: nn.Module) -> None:
    """Check that `model` has the shapes that `plan` leaves, and nothing but tensors."""
    require_loaded(model)
    tensors = tensors_of(model)
    for (name, dim), size in Layout(plan.groups).lengths(plan.indices()).items():
        shape = tuple(tensors[name].shape) if name in tensors else ()
        if len(shape) <= dim or shape[dim] != size:
            raise PlanError(
                f"this network was not made with this plan: the plan leaves {size} along dim {dim} "
                f"of '{name}', the network has shape {shape or 'no such tensor'}. Save it with the "
                "plan that cuts the dense network to it (plan.then joins two rounds)."
            )
    others = sorted(set(model.state_dict()) - set(tensors))
    if others:
        raise ModelError(
            f"'{others[0]}' in the state of {type(model).__name__} is no parameter or buffer, so "
            "it would be lost. Keep it in a buffer, or save the network yourself."
        )


def _makes(described: Description, plan: PruningPlan, model: nn.Module) -> bool:
    """Whether a network made from the config, cut to the plan, has the tensors of `model`."""
    try:
        with torch.device("meta"):
            dense = model_from_config("", described)
        plan.check(dense)
    except PruneEnvError:
        return False
    lengths = Layout(plan.groups).lengths(plan.indices())
    cut = {
        name: tuple(lengths.get((name, dim), size) for dim, size in enumerate(tensor.shape))
        for name, tensor in tensors_of(dense).items()
    }
    return cut == {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return parse(json.dumps(dict(metadata)))
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(
            f"the metadata cannot be written as JSON: {error}. Leave that out."
        ) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot write '{path}': {error.strerror or error}. Choose a folder you may write to."
        ) from error
