"""Perplexity of a language model on a file of token ids.

python -m experiments.perplexity --model path/to/model --data tokens.npz
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from prune_env.experiments.config.cli import invoked, main_guard, parse
from prune_env.experiments.config.run import option
from prune_env.experiments.data.places import locate
from prune_env.experiments.data.tokens import LENGTH, TokenBatches, load_tokens
from prune_env.experiments.networks.pretrained import (
    ROWS,
    eval_tokens,
    load_pretrained,
    require_tokens,
    tokens_beside,
)


@dataclass(frozen=True)
class PerplexityConfig:
    """Perplexity of a language model on a file of token ids."""

    model: str = option("stories260K", "a folder in Hugging Face's format, or a name in models/")
    data: str = option("", "token ids: npz, npy, txt or bin; empty: the npz file of the model")
    length: int = option(LENGTH, "tokens of a row, where the ids are one long line")


@main_guard
def main(argv: Sequence[str]) -> int:
    """Print the perplexity on every part, and one JSON object."""
    config = parse(PerplexityConfig, argv, prog=invoked("perplexity"))
    folder = locate(config.model, "models")
    splits = load_tokens(locate(config.data) if config.data else tokens_beside(folder))
    model, figures = load_pretrained(folder), {}
    for part in ("train", "val", "test"):
        rows_NT = getattr(splits, part)
        require_tokens(model, rows_NT)
        found = eval_tokens(model, TokenBatches(rows_NT, ROWS))
        figures[part] = found._asdict()
        print(f"{part}: perplexity {found.perplexity:.4f} on {found.tokens:,} tokens")
    print(json.dumps({"parts": figures, "settings": vars(config)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
