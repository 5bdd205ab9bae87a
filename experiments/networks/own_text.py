"""Text that a language model writes itself: what to calibrate and pay by where tokens are few.

Statistics of two dozen rows say less of a model than what it writes on its own, of which there is
as much as one likes (Williams, Chrysostomou and Aletras 2024, "Self-calibration for Language Model
Quantization and Pruning"; `experiments/results/calibration_stories260K.md`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import ModelError
from prune_env.fingerprint import fingerprint, identity_of, joined_identity
from prune_env.progress import progress
from prune_env.tasks.cache import Tensors, cache_folder, cached_tensors

AT_ONCE = 64
"""Rows that are written side by side."""
ROWS = "rows"


def own_text(model: nn.Module, first_N: Tensor, length: int, seed: int) -> Tensor:
    """Rows of tokens that a causal model of transformers writes, int64 (N, length).

    Every token is drawn from what the model expects (temperature 1, all tokens but the one that
    would end the row early). Written once, then kept in the cache folder.

    Args:
        model: in eval mode; its settings stay as they are.
        first_N: the first token of every row.
        length: of a row; that of the longest that the model takes at most.
        seed: of the draws.

    Raises:
        ModelError: the model cannot write.
    """
    made_of = identity_of(model=fingerprint(model), first=first_N, length=length, seed=seed)
    shape = (len(first_N), length)

    def make() -> Tensors:
        parts = first_N.split(AT_ONCE)
        with progress("write own text", len(parts), "batches", passing=True) as bar:
            rows = []
            for number, part_B in enumerate(parts):
                rows.append(_written(model, part_B, length, seed + number))
                bar.step()
        return {ROWS: torch.cat(rows)}

    def fits(tensors: Tensors) -> bool:
        return ROWS in tensors and tuple(tensors[ROWS].shape) == shape

    path = cache_folder() / f"text-{joined_identity(made_of)}.safetensors"
    return cached_tensors(path, make, fits)[ROWS]


def _written(model: Any, first_B: Tensor, length: int, seed: int) -> Tensor:
    start_B1 = first_B[:, None].to(next(model.parameters()).device)
    try:
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            written_BT: Tensor = model.generate(
                start_B1, attention_mask=torch.ones_like(start_B1), do_sample=True, top_k=0,
                top_p=1.0, temperature=1.0, min_new_tokens=length - 1, max_new_tokens=length - 1,
                use_cache=True, pad_token_id=0,
            )  # fmt: skip
    except Exception as error:  # whatever a model's forward raises
        said = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{type(model).__name__} cannot write text of its own: {type(error).__name__}: {said}. "
            "Give more rows of tokens, or sample_kind='given'."
        ) from error
    return written_BT.clone().cpu()  # no inference tensor, which gradients could not use
