"""What a transfer is; imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from prune_env.experiments.config.cli import config_error, parse
from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.config.run import option

SHORT = {
    "--from": "--source", "--to": "--task", "--budget": "--budgets", "--continue": "--further",
}  # fmt: skip
"""Options as they are written beside the names of their fields (`from` is a word of Python)."""


def named_in_full(argv: Sequence[str]) -> list[str]:
    """A command line with the names of fields in place of the short ones."""
    pairs = (word.partition("=") for word in argv)
    return ["".join((SHORT.get(name, name), equals, value)) for name, equals, value in pairs]


@dataclass(frozen=True)
class TransferConfig(CompareConfig):
    """The policy of one task run on another without training; other options are the target's."""

    source: str = option(
        "", "task that the policy is trained on, with --evaluations; short: --from", identity=False
    )
    task: str = option("digits", "task that it is run on; short: --to")
    agent: str = option("ppo", "agent that is trained", identity=False)
    from_budget: float = option(
        0.0, "budget that it is trained under; 0: the first of --budgets", identity=False
    )
    from_options: str = option(
        "",
        "options of the source that differ from the target's, as 'reward-samples=200 units=2:4'",
        identity=False,
    )
    further: int = option(
        0,
        "evaluations of searches on the target, with the policy and without; 0: none; short: "
        "--continue",
        identity=False,
    )
    searchers: tuple[str, ...] = option(
        ("uniform", "global", "sensitivity"),
        "searchers shown beside it, comma separated",
        identity=False,
    )
    seeds: int = option(1, "policies, trained with seeds 0, 1, ...", identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.source) == bool(self.init_policy):
            raise config_error(
                "give either --from, the task that the policy is trained on, or --init-policy, a "
                "policy.safetensors that is there."
            )
        if self.further < 0:
            raise config_error(f"--continue is {self.further}; it must be at least 0.")
        if self.source:
            self.origin  # noqa: B018 (it says what is wrong)

    @property
    def origin(self) -> CompareConfig:
        """The comparison that the policy's search belongs to."""
        words = [f"--{pair}" for pair in self.from_options.split()]
        given = parse(CompareConfig, words, prog="--from-options")
        names = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words}
        ours = {"task": self.source, "budgets": (self.from_budget or self.budgets[0],)}
        chosen = {name: getattr(given, name) for name in names}
        return CompareConfig(**{**self._common, "init_policy": "", **ours, **chosen})

    def target(self, policy: str = "") -> CompareConfig:
        """The comparison on the target, whose agents go on from a policy if one is given.

        As long as the searches there, if there are any.
        """
        evaluations = self.further or self.evaluations
        return CompareConfig(**{**self._common, "init_policy": policy, "evaluations": evaluations})

    @property
    def _common(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(CompareConfig)}
