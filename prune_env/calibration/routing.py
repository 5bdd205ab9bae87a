"""What the experts behind a router do with data: how often each is chosen and how loud it is.

Legend: U experts, N tokens, k experts chosen for each token, S = N k pairs of a token and an expert
chosen for it, H width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prune_env.errors import DataError, ModelError
from prune_env.quality.batches import Batch
from prune_env.quality.padding import Positions, data_rows
from prune_env.structure.inputs import call_model, eval_mode, map_tensors


@dataclass(frozen=True, eq=False)
class Routing:
    """What one module of experts did on the calibration data, float64 on the CPU.

    Attributes:
        chosen_U: how many tokens were routed to each expert.
        weighted_U: sum over them of its gate value times the L2 norm of its output.
        tokens: how many tokens there were.
    """

    chosen_U: Tensor
    weighted_U: Tensor
    tokens: int


def measure_routing(
    model: nn.Module, batches: Sequence[Batch], experts: Mapping[str, int]
) -> dict[str, Routing]:
    """Run the network once and watch its experts; filled-up positions do not count.

    The module of the experts is called a second time on the pairs of a token and an expert, as if
    each were a token with one expert of weight 1: the output is that of the expert alone, computed
    by the module's own code (eager or grouped, with biases or without), at the cost of the first
    call. The gate value is the weight that the module is given, renormalised where the model does.

    Args:
        model: the dense network; run in eval mode, left as it was.
        batches: calibration data.
        experts: number of experts by path of the module that holds their parameters. It is called
            with tokens (N, H), the experts chosen for each (N, k), whole numbers, and their weights
            (N, k), in any order but tokens before weights.

    Raises:
        DataError: there are no batches.
        ModelError: a module of experts is called in another way, is not called at all, or its
            experts give NaN or infinite outputs.
    """
    if not batches:
        raise DataError("there are no batches to watch experts on. Is the data set empty?")
    sums = {path: _Sum(path, units) for path, units in experts.items()}
    with ExitStack() as stack:
        for path, total in sums.items():
            module = model.get_submodule(path)
            handle = module.register_forward_pre_hook(total.watch, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.no_grad())
        for batch in batches:
            for total in sums.values():
                total.positions = batch.positions
            call_model(model, batch.inputs)
    return {path: total.finish() for path, total in sums.items()}


class _Sum:
    """Running sums of one module of experts."""

    def __init__(self, path: str, units: int) -> None:
        self._path, self._units, self._tokens = path, units, 0
        self._chosen_U = torch.zeros(units, dtype=torch.float64)
        self._weighted_U = torch.zeros(units, dtype=torch.float64)
        self.positions: Positions = ()

    def watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook: add what this call does."""
        call = _call_of(args, kwargs)
        if call is None:
            raise ModelError(
                f"'{self._path}' is not called with tokens (N, H), chosen experts (N, k) and their "
                f"weights (N, k), but with {_shapes(args, kwargs)}, so its experts cannot be told "
                "apart. Use a criterion of the weights, such as 'l2'."
            )
        index_S, gate_S = call.index_Nk.flatten(), call.weights_Nk.flatten()
        given = call.alone(args, kwargs)
        output_SH = module.forward(*given[0], **given[1])
        loud_S = gate_S.double() * output_SH.double().norm(dim=-1)
        rows_N = data_rows(self.positions, call.tokens_NH.shape)
        if rows_N is not None:
            data_S = rows_N.to(loud_S.device).repeat_interleave(call.index_Nk.shape[1])
            index_S, loud_S = index_S[data_S], loud_S[data_S]
        if not bool(torch.isfinite(loud_S).all()):
            raise ModelError(
                f"the experts of '{self._path}' give NaN or infinite outputs on the calibration "
                "data. Check the inputs and the layers before them."
            )
        self._chosen_U += self._by_expert(index_S, torch.ones_like(loud_S))
        self._weighted_U += self._by_expert(index_S, loud_S)
        self._tokens += len(call.index_Nk) if rows_N is None else int(rows_N.sum())

    def _by_expert(self, index_S: Tensor, values_S: Tensor) -> Tensor:
        # Expert parallelism gives the index U to pairs that another process computes.
        return torch.bincount(index_S, values_S, self._units)[: self._units].cpu()

    def finish(self) -> Routing:
        """The sums, once all batches were seen."""
        if not self._tokens:
            raise ModelError(
                f"'{self._path}' was not called on the calibration data, so nothing is known about "
                "its experts. Leave its layer out with `ignore`, or use criterion 'l2'."
            )
        return Routing(self._chosen_U, self._weighted_U, self._tokens)


class _Call(NamedTuple):
    """The three tensors that a module of experts is called with."""

    tokens_NH: Tensor
    index_Nk: Tensor
    weights_Nk: Tensor

    def alone(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same arguments with a token for every pair, its expert chosen with weight 1."""
        chosen = self.index_Nk.shape[1]
        swapped = {
            id(self.tokens_NH): self.tokens_NH.repeat_interleave(chosen, 0),
            id(self.index_Nk): self.index_Nk.reshape(-1, 1),
            id(self.weights_Nk): torch.ones_like(self.weights_Nk).reshape(-1, 1),
        }

        def swap(tensor: Tensor) -> Tensor:
            return swapped.get(id(tensor), tensor)

        return map_tensors(swap, args), map_tensors(swap, kwargs)


def _call_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
    """The tensors by what they must be, not by name; None where one is missing."""
    flat = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    whole = [t for t in flat if t.ndim == 2 and t.dtype in (torch.int64, torch.int32)]
    if not whole:
        return None
    index_Nk = whole[0]
    real = [t for t in flat if t.ndim == 2 and t.is_floating_point() and len(t) == len(index_Nk)]
    weights = [tensor for tensor in real[1:] if tensor.shape == index_Nk.shape]
    return _Call(real[0], index_Nk, weights[0]) if weights else None


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    flat = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    found = [f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in flat]
    return ", ".join(found) or "no tensor"
