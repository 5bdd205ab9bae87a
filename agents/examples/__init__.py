"""Agents of your own on the shipped ids, a page each: `python -m agents.examples.sb3_ppo`.

Every one ends with `env.unwrapped.best`, the best plan that any episode found.
"""
