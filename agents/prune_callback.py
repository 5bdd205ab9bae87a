"""For a stable-baselines3 agent of your own on our environments: its log, and the best plan."""

from __future__ import annotations

from numbers import Real
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from prune_env.mdp.best import Best


class PruneCallback(BaseCallback):
    """What finished episodes ended with goes to SB3's log, and the best plan to a file.

    PPO("MlpPolicy", env, tensorboard_log="runs").learn(2000, callback=PruneCallback("best"))

    The log has the means of quality and cost between two of SB3's own entries (`prune/accuracy`,
    `prune/flops_ratio`, ...) and the best reward so far (`prune/best_reward`).

    Args:
        folder: gets plan.json as soon as a better plan is found; None: nothing is written.
    """

    def __init__(self, folder: str | Path | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.folder = None if folder is None else Path(folder)
        self.best: Best | None = None

    def _on_step(self) -> bool:
        ended = [
            info
            for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True)
            if done and "flops_ratio" in info
        ]
        for info in ended:
            for name, value in info.items():
                if isinstance(value, Real) and not isinstance(value, bool):
                    self.logger.record_mean(f"prune/{name}", float(value))
        if ended:
            self._keep(max(self.training_env.get_attr("best"), key=lambda best: best.outcome.rank))
        return True

    def _keep(self, found: Best) -> None:
        if self.best is None or found.outcome.rank > self.best.outcome.rank:
            self.best = found
            if self.folder is not None:
                found.plan.save(self.folder / "plan.json")
        self.logger.record("prune/best_reward", self.best.outcome.reward)
