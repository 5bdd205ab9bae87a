"""Where models come in: what cannot be pruned at all is named here, with its true cause."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prune_env.errors import ModelError
from prune_env.structure.inputs import Inputs, tensors_of_inputs

Module = TypeVar("Module", bound=nn.Module)


def _scripted(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        return "is TorchScript, whose layers cannot be cut; give the nn.Module that it was made of"
    return ""


def _still_masked(module: nn.Module) -> str:
    hooks = module._forward_pre_hooks.values()
    found = [hook for hook in hooks if isinstance(hook, prune.BasePruningMethod)]
    names = [str(hook._tensor_name) for hook in found]
    if not names:
        return ""
    return (
        f"still carries masks of torch.nn.utils.prune on '{names[0]}'; make them permanent with "
        f"torch.nn.utils.prune.remove(module, '{names[0]}')"
    )


def _old_norm(module: nn.Module) -> str:
    kinds = {WeightNorm: "weight_norm", SpectralNorm: "spectral_norm"}
    for hook in module._forward_pre_hooks.values():
        if type(hook) in kinds:
            name = kinds[type(hook)]
            return (
                f"has the old {name}, which recomputes its weight; remove it with "
                f"torch.nn.utils.remove_{name}(module), or use torch.nn.utils.parametrizations"
            )
    return ""


def _quantized(module: nn.Module) -> str:
    if ".quantized" in type(module).__module__ and type(module).__module__.startswith("torch."):
        return "is quantized, its weights are packed; prune the network before it is quantized"
    return ""


MODULES: tuple[Callable[[nn.Module], str], ...] = (_scripted, _still_masked, _old_norm, _quantized)
"""What may be wrong with a module; empty when nothing is. Add a kind here."""

TENSORS: tuple[tuple[Callable[[Tensor], bool], str], ...] = (
    (
        lambda tensor: isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer),
        "has no shape yet (a lazy layer); run one batch through the model first",
    ),
    (
        lambda tensor: tensor.layout != torch.strided or tensor.is_quantized,
        "is stored sparse or quantized; make it dense, with tensor.to_dense() or .dequantize()",
    ),
)
"""What may be wrong with a parameter or buffer."""


def require_network(model: object) -> None:
    """Refuse what no part of this package can work with.

    Raises:
        ModelError: it is no `nn.Module`, or a module or tensor of it is of a kind that cannot be
            cut: TorchScript, masks of `torch.nn.utils.prune`, old weight_norm, quantized, lazy,
            sparse. Names the place and the cure.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"{_found(model)} is no network. Give the torch.nn.Module{_cure(model)}.")
    for path, module in model.named_modules():
        for fault in MODULES:
            said = fault(module)
            if said:
                raise ModelError(f"{_place(path, model)} {said}.")
        for name, tensor in _own_tensors(module):
            said = next((text for holds, text in TENSORS if holds(tensor)), "")
            if said:
                raise ModelError(f"'{f'{path}.{name}'.lstrip('.')}' {said}.")


def require_loaded(model: nn.Module) -> None:
    """Refuse a network without numbers: it can be priced, but neither measured nor tuned.

    Raises:
        ModelError: a tensor is on the meta device; names it.
    """
    require_network(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise ModelError(f"'{name}' is on the meta device: load the weights first.")


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield name, tensor


def _found(value: object) -> str:
    kind = type(value).__name__
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object '{kind}'"


def _cure(value: object) -> str:
    if isinstance(value, Mapping):
        return " itself; a state dict is loaded into one with model.load_state_dict(...)"
    if isinstance(value, type):
        return f" itself: {value.__name__}(...)"
    return " itself"


def _place(path: str, model: nn.Module) -> str:
    return f"module '{path}'" if path else f"the model ({type(model).__name__})"


def copy_of(model: Module, shared: Iterable[Tensor] = ()) -> Module:
    """A deep copy, in which only `shared` tensors are those of the model.

    Raises:
        ModelError: see `require_network`; or something in it cannot be copied.
    """
    require_network(model)
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {first.partition('. ')[0]}. Something it "
            "holds beside parameters and buffers (a tensor computed from weights, a lock, an open "
            "file) is the usual cause: make it in forward, or give the class a __deepcopy__."
        ) from error


def why_not(model: nn.Module, inputs: Inputs, otherwise: str) -> str:
    """The likely reason that a model does not run on inputs, with its cure; or `otherwise`."""
    given = [*_floating(inputs)]
    weights = [p for p in model.parameters() if p.is_floating_point()]
    kinds = {p.dtype for p in weights}
    if given and len(kinds) == 1 and given[0].dtype not in kinds:
        own = _word(weights[0].dtype)
        return (
            f"The weights are {own}, the inputs {_word(given[0].dtype)}: call "
            f"model.to(torch.{_word(given[0].dtype)}), or inputs.to(torch.{own})."
        )
    bytes_ = [t for t in tensors_of_inputs(inputs) if t.dtype == torch.uint8 and t.ndim > 2]
    if bytes_ and weights and not given:
        return (
            "The inputs are uint8, as images are stored, and the model does not scale them itself: "
            "batch=lambda item: (item[0].float() / 255, item[1]), with its mean and spread."
        )
    if given and weights and given[0].device != weights[0].device:
        return f"The weights are on {weights[0].device}, the inputs on {given[0].device}: move one."
    if model.training and given and given[0].ndim and given[0].shape[0] == 1:
        return (
            "The batch has one sample, and BatchNorm in training needs two: give the DataLoader "
            "drop_last=True, or another batch size."
        )
    return otherwise


def _floating(inputs: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_of_inputs(inputs) if tensor.is_floating_point()]


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
