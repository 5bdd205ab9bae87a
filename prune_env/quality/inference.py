"""The same network, faster to run: BatchNorm folded into the layer before it, bfloat16 products.

A candidate is measured once and thrown away, so whatever does not move the ranking of candidates
may be saved: normalisation that a scale of the weights does as well, and half the bits.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from prune_env.errors import ConfigError
from prune_env.quality.batches import Batch
from prune_env.quality.norms import norms_behind
from prune_env.quality.objectives import OUTPUTS, Objective, floating
from prune_env.structure.inputs import Inputs, batch_size, call_model, eval_mode

PRECISIONS = ("auto", "float32", "bfloat16")
AGREEMENT = 1e-3
"""Mean divergence (KL in nats) that bfloat16 may put between the dense network and itself:
candidates worth telling apart differ by more."""
CACHE = 3.2e6
"""Bytes the largest activation of a batch may take, about what stays in a core's cache. Batches of
500 CIFAR images cost a ResNet-20 half as much again per image as batches of 50."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Inference:
    """How networks of one architecture are run, whatever their widths.

    Attributes:
        folds: path of the BatchNorm that a layer's weights absorb, by path of the layer.
        bfloat16: products are taken in bfloat16, sums in float32.
    """

    folds: Mapping[str, str] = field(default_factory=dict)
    bfloat16: bool = False

    @staticmethod
    def of(
        dense: nn.Module,
        batch: Batch,
        precision: str = "auto",
        objective: Objective = OUTPUTS,
    ) -> Inference:
        """The fastest way that agrees with the plain one on `batch`.

        What is folded, and whether bfloat16 is used, is decided by structure, hardware and
        agreement, never by the clock: every run on one machine decides alike. A network that is
        measured by a function of the user's is run as PyTorch runs it.

        Args:
            dense: the network, in eval mode; not changed.
            batch: one of the size that will be run.
            precision: one of `PRECISIONS`; "auto" is bfloat16 where the processor multiplies it
                natively and the outputs agree.
            objective: whose predictions must agree.

        Raises:
            ConfigError: no such precision, or the network does not run in the one asked for.
        """
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is '{precision}'; choose of {', '.join(PRECISIONS)}.")
        if objective.evaluate is not None:
            return PLAIN

        def said(way: Inference) -> Any:
            with way.ready(dense) as fast:
                return objective.read(call_model(fast, batch.inputs), batch)[0]

        wanted = said(PLAIN)
        folding = Inference(_folds(dense, batch.inputs))
        if not _close(said(folding), wanted):
            _log.info("%s: folding its BatchNorm changes outputs; it is not folded.", _name(dense))
            folding = PLAIN
        if precision == "float32" or (precision == "auto" and not native_bfloat16(_device(dense))):
            return folding
        halved = Inference(folding.folds, bfloat16=True)
        try:
            found = said(halved)
        except Exception as error:  # whatever the user's forward raises on another dtype
            if precision == "bfloat16":
                raise ConfigError(
                    f"precision is 'bfloat16', and {_name(dense)} does not run in it: {error}. "
                    "Give precision='float32'."
                ) from error
            _log.info("%s does not run in bfloat16; float32 is used.", _name(dense))
            return folding
        apart = float(objective.divergence(found, wanted).detach().double().mean())
        if precision == "bfloat16" or apart < AGREEMENT:
            return halved
        _log.info("%s in bfloat16 strays from float32; float32 is used.", _name(dense))
        return folding

    @contextmanager
    def ready(self, model: nn.Module) -> Iterator[nn.Module]:
        """`model`, as it runs fastest, inside the `with` block, where gradients are off.

        The model itself stays as it is; tensors are shared.
        """
        fast = folded(model, self.folds) if self.folds else model
        with eval_mode(fast), torch.inference_mode(), self.precision(fast):
            yield fast

    def precision(self, model: nn.Module) -> torch.autocast:
        """The context in which products are taken in the precision chosen."""
        return torch.autocast(_device(model), torch.bfloat16, enabled=self.bfloat16)


PLAIN = Inference()
"""As PyTorch runs it."""


def folded(model: nn.Module, folds: Mapping[str, str]) -> nn.Module:
    """`model` without the BatchNorms of `folds`; tensors that stay as they are, are shared."""
    fast = _twin(model, {})
    for path, norm_path in folds.items():
        layer: Any = fast.get_submodule(path)
        norm: Any = fast.get_submodule(norm_path)
        fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        with torch.no_grad():
            layer.weight, layer.bias = fuse(
                layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias,
            )  # fmt: skip
        parent, _, leaf = norm_path.rpartition(".")
        setattr(fast.get_submodule(parent), leaf, nn.Identity())
    return fast


def _twin(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """Modules of their own that share every tensor: hundreds of times cheaper than a deep copy."""
    if module not in made:
        # Not copy.copy: parametrised modules refuse it, for fear of being saved.
        made[module] = twin = object.__new__(type(module))
        twin.__dict__ = dict(module.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[name] = dict(module.__dict__[name])
        for name, child in module._modules.items():
            twin._modules[name] = None if child is None else _twin(child, made)
    return made[module]


def _folds(dense: nn.Module, inputs: Inputs) -> dict[str, str]:
    """Layers with nothing but a BatchNorm behind them, both with the forward of torch."""
    modules = dict(dense.named_modules())
    layers = [path for path, m in modules.items() if type(m) in (*_CONVOLUTIONS, nn.Linear)]
    norms = {path for path, m in modules.items() if type(m) in _NORMS}
    if not norms:
        return {}
    pairs = norms_behind(copy.deepcopy(dense), layers, inputs)
    return {layer: norm for layer, norm in pairs.items() if norm in norms}


def native_bfloat16(device: str) -> bool:
    """Whether a processor ("cpu" or "cuda") multiplies bfloat16 without a detour."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _supported("_is_avx512_bf16_supported") or _supported("_is_amx_tile_supported")


def _device(model: nn.Module) -> str:
    return next((parameter.device.type for parameter in model.parameters()), "cpu")


def _supported(probe: str) -> bool:
    """What `torch.cpu` knows of the processor; these probes have no public name yet."""
    return bool(getattr(torch.cpu, probe, lambda: False)())


def _close(predictions: Any, wanted: Any) -> bool:
    """Whether two networks say the same, but for rounding."""
    return all(
        torch.allclose(
            a, b, rtol=1e-3, atol=1e-3 * float(b.detach().abs().max()) if b.numel() else 0.0
        )
        for a, b in zip(floating(predictions), floating(wanted), strict=True)
    )


def _name(model: nn.Module) -> str:
    return type(model).__name__


def fitting_batch(model: nn.Module, example: Inputs) -> int:
    """Samples per batch whose largest activation fits the cache, between 8 and 250.

    Computed, not timed, so that every run of a search sums in the same order.
    """
    largest = 1.0

    def note(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with eval_mode(model), torch.no_grad():
            call_model(model, example)
    except Exception:  # reported, with its cause, when the data are measured
        return 125
    finally:
        for handle in handles:
            handle.remove()
    return int(min(250, max(8, CACHE * batch_size(example) / largest)))
