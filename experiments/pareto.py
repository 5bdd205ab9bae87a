"""One policy for many budgets: its front beside that of a search for each budget.

    python -m experiments.pareto --task resnet20_cifar10 --agent ppo --budgets 0.7,0.5,0.3 \\
        --front 0.3,0.36,0.42,0.5,0.56,0.62,0.7,0.8 --evaluations 200 --seeds 1 \\
        --out experiments/results/pareto_resnet20

The single searches, and what is shown beside them, are those of `experiments.compare`, in the same
folders: nothing is run twice. The same command goes on where it was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prune_env.experiments.config.cli import invoked
from prune_env.experiments.config.pareto import ParetoConfig
from prune_env.experiments.config.run import main_guard, parse
from prune_env.experiments.report.publishing import command_of, publish, write_csv

PAGE = "pareto"


@main_guard
def main(argv: Sequence[str]) -> int:
    """Run what is missing, write the page and print its figures; returns the exit status."""
    config = parse(ParetoConfig, argv, prog=invoked("pareto"))
    # torch comes with these; --help must not wait for that
    from prune_env.experiments.report.comparison import markdown_of
    from prune_env.experiments.report.page import Code, write_page, write_pictures
    from prune_env.experiments.sweeps.front import blocks_of, seed_by_seed

    command = command_of("pareto", argv)
    results = compared(config, command)
    title, name = f"Many budgets on {results['title']}", Path(config.out or PAGE).name
    blocks = blocks_of(results, name)
    page = write_page(config.folder / "many", PAGE, title, [*blocks, Code(command)])
    flat = seed_by_seed(results["rows"])
    write_csv(page.with_suffix(".csv"), flat)
    print(f"page: {page}\n")
    if config.out:
        write_csv(f"{config.out}.csv", flat)
        write_pictures(blocks, Path(config.out).parent)
    shown = {key: value for key, value in results.items() if key not in ("measured", "command")}
    publish(config.out, command, markdown_of(title, blocks), shown)
    return 0


def compared(config: ParetoConfig, command: str) -> dict[str, Any]:
    """All searches, and what they say together.

    Raises:
        PruneEnvError: an unknown task or searcher, an unreachable budget, or a search that fails.
    """
    from prune_env.experiments.sweeps.checks import check_comparison
    from prune_env.experiments.sweeps.compare_job import Job, run_job
    from prune_env.experiments.sweeps.compare_task import facts_of
    from prune_env.experiments.sweeps.front import MANY, POLICY, SINGLE, ratios, rows_of, verdict
    from prune_env.experiments.sweeps.many import Many, run_many
    from prune_env.experiments.sweeps.parallel import mapped

    check_comparison(config, *({config.agent} - {"surrogate"}))
    wide = config.wide
    facts = facts_of(wide)
    single = [Job(wide, b, config.agent, s) for b in config.budgets for s in range(config.seeds)]
    others = [Job(wide, b, name, 0) for name in config.searchers for b in config.asked]
    jobs = [*dict.fromkeys([*single, *others])]
    runs = dict(zip(jobs, mapped(run_job, jobs, config.processes), strict=True))
    require_found(runs)
    manys = [Many(wide, config.charge, seed) for seed in range(config.seeds)]
    found = mapped(run_many, manys, config.processes)
    rows = rows_of(config, facts["quality"], runs, found)
    kept = ("cost", "kl", facts["quality"])
    return {
        **facts,
        "verdict": verdict(rows),
        "ratios": {f"{budget:g}": vars(ratio) for budget, ratio in ratios(rows).items()},
        "rows": rows,
        "series": [*config.searchers, POLICY, MANY, SINGLE],
        "seconds": {
            "many": sum(many["seconds"] for many in found) / len(found),
            "single": sum(runs[job]["seconds"] for job in single) / config.seeds,
        },
        "measured": [{key: many[key] for key in kept} for many in found],
        "settings": config.settings,
        "command": command,
    }


def require_found(runs: Mapping[Any, Mapping[str, Any]]) -> None:
    """Check that every search could be run.

    Raises:
        RunError: one could not; says why.
    """
    from prune_env.errors import RunError

    for run in runs.values():
        if "refused" in run:
            raise RunError(f"{run['searcher']} at {run['budget']:g}: {run['refused']}")


if __name__ == "__main__":
    sys.exit(main(None))
