"""PPO in one page, as CleanRL writes it, on the vector environment.

    python -m agents.examples.cleanrl_ppo

All episodes end in the same step, so a rollout is one round of whole episodes and returns need no
bootstrapping: the return of every step is what its episode is paid from there on.
Legend: N episodes, T steps, F features.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from torch import nn
from torch.distributions import Normal

from prune_env.mdp.best import Best
from prune_env.mdp.vector_wrappers import ResidualAction, ShapedReward

CLIP, EPOCHS, RATE = 0.2, 4, 3e-3


def main(task: str = "digits", rounds: int = 20, envs: int = 16, seed: int = 0) -> Best:
    """Learn for some rounds of `envs` episodes each; the best plan."""
    torch.manual_seed(seed)
    plain: Any = gymnasium.make_vec("PruneEnv/Layerwise-v0", num_envs=envs, task=task)
    env = ResidualAction(ShapedReward(plain))
    features = env.single_observation_space.shape[0]  # type: ignore[index]
    actor = nn.Sequential(nn.Linear(features, 32), nn.Tanh(), nn.Linear(32, 1))
    log_std = nn.Parameter(torch.full((1,), -2.0))
    critic = nn.Sequential(nn.Linear(features, 32), nn.Tanh(), nn.Linear(32, 1))
    parameters = [*actor.parameters(), *critic.parameters(), log_std]
    optimizer = torch.optim.Adam(parameters, RATE)
    seen, _ = env.reset(seed=seed)
    for _ in range(rounds):
        rows: list[tuple[torch.Tensor, ...]] = []
        over = False
        while not over:
            seen_NF = torch.as_tensor(seen)
            with torch.no_grad():
                policy = Normal(actor(seen_NF), log_std.exp())
                action_N1 = policy.sample()
            seen, reward_N, ended_N, _, _ = env.step(action_N1.numpy())
            logged = policy.log_prob(action_N1).detach()
            rows.append((seen_NF, action_N1, logged, torch.as_tensor(reward_N)))
            over = bool(ended_N.all())
        seen_TNF, action, before, paid = (torch.stack(part) for part in zip(*rows, strict=True))
        returns = paid.flip(0).cumsum(0).flip(0).float()[..., None]
        for _ in range(EPOCHS):
            value = critic(seen_TNF)
            advantage = (returns - value).detach()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            policy = Normal(actor(seen_TNF), log_std.exp())
            ratio = (policy.log_prob(action) - before).exp()
            gain = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            loss = (value - returns).square().mean() - gain.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    best: Best = plain.unwrapped.best
    return best


if __name__ == "__main__":
    print(main())
