"""Options at the border: whatever is given, it is taken as meant or refused by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from prune_env.checks import check_fields, whole
from prune_env.errors import BudgetError, ConfigError, GroupError, PruneEnvError
from prune_env.mdp.candidates import TaskOptions
from prune_env.mdp.options import CHECKS, ELSEWHERE
from prune_env.repair.repairs import Repair

FIELDS = [field.name for field in dataclasses.fields(TaskOptions)]
WRONG: list[Any] = [
    None, True, -1, -0.5, "0.5x", "", b"kl", math.nan, math.inf, -math.inf, [None], [1, -1],
    {1: 0.5}, {"a": math.nan}, {"a": None}, object(), 2**70, 1j, np.array([0.5, 0.5]),
]  # fmt: skip
"""Wrong for every option, but for a name or glob, which may be any text, and a part's number."""


@pytest.mark.parametrize("name", FIELDS)
def test_what_no_option_can_be_is_refused_and_named(name: str) -> None:
    for value in WRONG:
        if name == "ignore" and isinstance(value, str) and value:
            continue
        if name == "batch" and value is None:
            continue
        if name == "output" and type(value) in (str, int):
            continue
        with pytest.raises(PruneEnvError, match=name) as caught:
            TaskOptions(**{name: value})
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"budget": "0.5"}, BudgetError, r"budget is '0.5'; give a fraction of the dense cost in"),
        ({"budget": 50}, BudgetError, r"budget is 50; give a fraction"),
        ({"on": "flops"}, BudgetError, "on is 'flops'; give one of macs, params, bytes"),
        ({"calibration_samples": 0}, ConfigError, "calibration_samples is 0; .*1 or more"),
        ({"calibration_samples": 500.0}, ConfigError, "calibration_samples is 500.0; give a whole"),
        ({"reward_samples": 0}, ConfigError, "reward_samples is 0; give a whole number, 1 or more"),
        ({"stages": 100}, ConfigError, "stages is 100; give numbers of samples"),
        ({"stages": (0,)}, ConfigError, r"stages\[0\] is 0"),
        ({"ignore": [object()]}, GroupError, r"ignore\[0\] is <object.*layer name or glob"),
        ({"max_sparsity": [0.1]}, GroupError, r"max_sparsity is \[0.1\]; .* dict of values by"),
        ({"max_sparsity": {"a": 2}}, GroupError, r"max_sparsity\['a'\] is 2; give a fraction"),
        ({"multiple_of": {"a": 0.5}}, GroupError, r"multiple_of\['a'\] is 0.5; give a whole"),
        ({"units": "heads"}, GroupError, "no kind of weight group 'heads'.*structured"),
        ({"units": "structured+3:2"}, GroupError, "'3:2'"),
        ({"criterion": "l3"}, ConfigError, "no criterion 'l3'"),
        ({"criterion": 3}, ConfigError, "criterion is 3; give one of l1"),
        ({"seed": 0.5}, ConfigError, "seed is 0.5"),
    ],
)
def test_a_refusal_says_what_was_found_and_what_to_give(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        TaskOptions(**options)


def test_what_can_be_is_taken() -> None:
    TaskOptions()
    TaskOptions(budget=1, seed=np.int64(3), max_sparsity=np.float32(0.5), stages=[4, 8])
    TaskOptions(units="structured + sublayers", ignore="head", multiple_of={"a.*": 8})
    TaskOptions(reward=lambda outcome: {}, repair=Repair(), min_sparsity={}, batch_size=0)


def test_every_option_has_a_check() -> None:
    assert set(CHECKS) == set(FIELDS)
    assert not set(ELSEWHERE) & set(FIELDS)
    with pytest.raises(AssertionError):
        check_fields(TaskOptions(), {"budget": whole(0)})


@pytest.mark.parametrize("word", sorted(ELSEWHERE))
def test_words_of_other_tools_name_ours(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TaskOptions.of({word: 0.5})
    assert any(name in str(caught.value) for name in FIELDS)
