"""Searchers, what they are charged, and who measures for them."""

from prune_env.search.ledger import Ledger
from prune_env.search.proposals import Proposer, proposing
from prune_env.search.searchers import SEARCHERS, SearchResult, run_search
from prune_env.search.workers import Processes

__all__ = [
    "SEARCHERS",
    "Ledger",
    "Processes",
    "Proposer",
    "SearchResult",
    "proposing",
    "run_search",
]
