"""Thinned and cut networks, and a fine-tuning that is watched at every step."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn
from toys import Toy

from prune_env.errors import GroupError
from prune_env.plan.cut import compact
from prune_env.plan.plan import PruningPlan
from prune_env.quality.outputs import AUTO, Output
from prune_env.recovery import FinetuneSettings, finetune
from prune_env.structure.inputs import Inputs, call_model
from prune_env.structure.weights import weight_groups

THIN = ("unstructured", "per_row", "2:4", "1:2", "block:2")
"""Kinds of unit that set weights to zero."""
OPTIMISERS = {
    "sgd": FinetuneSettings(epochs=2, learning_rate=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": FinetuneSettings(
        epochs=2, optimizer="adamw", learning_rate=0.01, weight_decay=0.1, clip_norm=1.0
    ),
}


def thinned(model: nn.Module, kind: str) -> nn.Module:
    """Half the weights of every matrix that this kind fits are zero, the output head's too."""
    groups = []
    for layer in (group.name for group in weight_groups(model, heads=())):
        with suppress(GroupError):  # sizes that the kind does not divide
            groups += weight_groups(model, kind, layers=(layer,), heads=())
    live = [group for group in groups if not group.frozen]
    return compact(model, PruningPlan.uniform(model, live, 0.5, "random"))


def cut(case: Toy) -> nn.Module:
    """Two fifths of the channels are gone."""
    return compact(case.model, PruningPlan.uniform(case.model, case.live, 0.4, "random"))


def zeros_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() == 0 for name, p in model.named_parameters() if p.ndim > 1}


def tuned_under_watch(
    model: nn.Module, inputs: Inputs, chosen: FinetuneSettings, part: str = ""
) -> nn.Module:
    """Fine-tuned; at every forward pass, so after every step, the zeros that came in are there."""
    before, seen = zeros_of(model), []

    def look(network: nn.Module, *args: object) -> None:
        seen.append(all(bool((zeros_of(network)[n] >= z).all()) for n, z in before.items()))

    labels = Output(part).logits(call_model(model, inputs)).detach().argmin(-1)
    batch = (inputs, labels)
    with model.register_forward_pre_hook(look):
        result = finetune(model, [batch] * 2, [batch], settings=chosen, output=part or AUTO)
    assert len(seen) >= chosen.epochs * 3 + 1  # two steps and val, for every epoch
    assert all(seen)
    assert all(bool((zeros_of(result.model)[name] >= z).all()) for name, z in before.items())
    assert not all(
        torch.equal(p, result.last[n]) for n, p in model.named_parameters()
    )  # it trained
    return result.model
