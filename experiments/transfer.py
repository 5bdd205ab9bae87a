"""A policy run where it was not trained: on another network, or under another budget.

    python -m experiments.transfer --from resnet20_cifar10 --to resnet56_cifar10 --agent ppo \\
        --budget 0.5 --evaluations 200 --out experiments/results/transfer_resnet56
    python -m experiments.transfer --from stories260K --to stories260K --from-budget 0.6515 \\
        --budget 0.5644

Observations have no unit and actions are offsets from a prior, so nothing is trained on the target.
With --continue N, a search of N evaluations that goes on from the policy is run there beside one
that starts afresh. The same command goes on where it was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prune_env.experiments.config.cli import invoked
from prune_env.experiments.config.run import main_guard, parse
from prune_env.experiments.config.transfer import TransferConfig, named_in_full
from prune_env.experiments.report.publishing import command_of, publish


@main_guard
def main(argv: Sequence[str]) -> int:
    """Run what is missing, write the page and print its figures; returns the exit status."""
    command = command_of("transfer", argv)
    config = parse(TransferConfig, named_in_full(argv), prog=invoked("transfer"))
    # torch comes with these; --help must not wait for that
    from prune_env.experiments.report.comparison import markdown_of
    from prune_env.experiments.report.page import Code, write_page
    from prune_env.experiments.sweeps.transfer_page import blocks_of

    results = compared(config, command)
    title, blocks = f"A policy moved to {results['title']}", blocks_of(results)
    page = write_page(config.target().folder, "transfer", title, [*blocks, Code(command)])
    print(f"page: {page}\n")
    shown = {key: value for key, value in results.items() if key != "command"}
    publish(config.out, command, markdown_of(title, blocks), shown)
    return 0


def compared(config: TransferConfig, command: str) -> dict[str, Any]:
    """The source's searches, the target's plans, and what they say together.

    Raises:
        PruneEnvError: an unknown task or searcher, an unreachable budget, a policy that does not
            fit, or a search that fails.
    """
    from prune_env.experiments.pareto import require_found
    from prune_env.experiments.sweeps.checks import check_comparison
    from prune_env.experiments.sweeps.compare_job import run_job
    from prune_env.experiments.sweeps.compare_task import facts_of
    from prune_env.experiments.sweeps.parallel import mapped
    from prune_env.experiments.sweeps.transfer_page import rows_of, verdict
    from prune_env.experiments.sweeps.transferred import Transfer, policy_of, run_transfer

    target, agent = config.target(), config.agent
    check_comparison(config, agent)
    if config.source:
        check_comparison(config.origin, agent)
        facts_of(config.origin)
    facts = facts_of(target)  # before anything is searched
    sources = _sources(config)
    require_found(dict(zip(sources, mapped(run_job, sources, config.processes), strict=True)))
    transfers = [
        Transfer(target, agent, policy_of(job) if job else Path(config.init_policy), budget, job)
        for budget in config.budgets
        for job in sources or [None]
    ]
    moved = mapped(run_transfer, transfers, config.processes)
    jobs = _searches(config, [str(each.policy) for each in transfers])
    runs = dict(zip(jobs, mapped(run_job, jobs, config.processes), strict=True))
    require_found(runs)
    rows = rows_of(config, facts["quality"], runs, moved)
    return {
        **facts,
        "source": config.source or config.init_policy,
        "verdict": [verdict(config, each) for each in rows],
        "budgets": rows,
        "settings": config.settings,
        "command": command,
    }


def _sources(config: TransferConfig) -> list[Any]:
    """The searches that make the policies; none where one is given."""
    from prune_env.experiments.sweeps.compare_job import Job

    if not config.source:
        return []
    origin = config.origin
    return [
        Job(origin, budget, config.agent, seed)
        for budget in origin.budgets
        for seed in range(config.seeds)
    ]


def _searches(config: TransferConfig, policies: Sequence[str]) -> list[Any]:
    """What is run on the target beside the policies: those that go on from them come last."""
    from prune_env.experiments.sweeps.compare_job import Job

    target, seeds = config.target(), range(config.seeds if config.further else 0)
    afresh = [Job(target, b, config.agent, seed) for b in config.budgets for seed in seeds]
    return [
        *(Job(target, b, name, 0) for b in config.budgets for name in config.searchers),
        *afresh,
        *(replace(j, config=config.target(policies[j.seed % len(policies)])) for j in afresh),
    ]


if __name__ == "__main__":
    sys.exit(main(None))
