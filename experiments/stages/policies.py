"""Agents among searchers: which names have a policy, and searches that go on from a saved one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from prune_env.errors import ConfigError
from prune_env.search.searchers import Searcher


def is_agent(name: str) -> bool:
    """Whether a searcher has a policy."""
    from prune_env.agents.sb3 import AGENTS

    return name in AGENTS


def require_agent(name: str) -> None:
    """Check that a searcher has a policy.

    Raises:
        ConfigError: it has none.
    """
    from prune_env.agents.sb3 import AGENTS

    if name not in AGENTS:
        raise ConfigError(
            f"searcher '{name}' has no policy. Choose an agent ({', '.join(AGENTS)}), or leave out "
            "what asks for a policy."
        )


def continuing(name: str, policy: str | Path) -> Searcher | None:
    """The agent `name` that goes on from a saved policy; without a policy what its name says.

    Raises:
        ConfigError: `name` is no agent, or the file holds no policy of this agent.
    """
    if not policy:
        return None
    from prune_env.agents.sb3 import (  # only for agents
        Course,
        learn,
        load_policy,
        private_randomness,
    )

    require_agent(name)
    with private_randomness():
        load_policy(name, Path(policy))
    return partial(learn, name, course=Course(policy=Path(policy)))
