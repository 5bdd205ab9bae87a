"""Language models in Hugging Face's format: any folder with a config, and a file of token ids.

    python -m experiments.run --model path/to/model --data tokens.npz

Nothing is downloaded.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prune_env import PruningTask
from prune_env.errors import DataError, ModelError, look_up
from prune_env.experiments.data.images import import_extra
from prune_env.experiments.data.places import locate
from prune_env.experiments.data.splits import AUTO
from prune_env.experiments.data.tokens import TokenBatches, TokenSplits, load_tokens
from prune_env.experiments.networks.chosen import preferred
from prune_env.experiments.networks.own_text import own_text
from prune_env.mdp.candidates import TaskOptions, outline
from prune_env.pipeline.project import Project
from prune_env.recovery.epoch import evaluate

CONFIG = "config.json"
ROWS = 8
"""Rows of tokens in a batch."""
ENOUGH = 128
"""Rows to calibrate and pay by; what is missing of them the model writes itself."""
RECIPE = {"optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.01, "clip_norm": 1.0}
"""Of fine-tuning; the rate of SGD on images would wreck a transformer."""


def is_pretrained(name: str) -> bool:
    """Whether `name` is a folder with a model's config in it."""
    return (Path(name).expanduser() / CONFIG).is_file()


def load_pretrained(path: str | Path) -> nn.Module:
    """The causal language model in a folder, in eval mode, without a cache of keys and values.

    Weights are read from safetensors only, and no code that comes with a folder is run.

    Raises:
        ModelError: the folder holds no model that transformers can read.
        DataError: transformers is not installed.
    """
    library = import_extra("transformers")
    library.utils.logging.disable_progress_bar()  # a bar for every load is no progress
    try:
        model = library.AutoModelForCausalLM.from_pretrained(
            Path(path), local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # the library lets through whatever a damaged folder runs into
        raise ModelError(
            f"'{path}' holds no causal language model: {first_line(error)} Give a folder that "
            "save_pretrained wrote, of an architecture of the library, with safetensors in it."
        ) from error
    return without_cache(model)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def without_cache(model: nn.Module) -> nn.Module:
    """`model` in eval mode, set to keep no keys and values: scoring whole rows needs none."""
    config: Any = model.config
    config.use_cache = False
    return model.eval()


def fresh(config: Any) -> nn.Module:
    """A causal language model of this config with any weights."""
    library = import_extra("transformers")
    chosen = copy.deepcopy(config)
    made = library.AutoModelForCausalLM.from_config(chosen, trust_remote_code=False)
    return without_cache(made)


def require_tokens(model: nn.Module, rows_NT: Tensor) -> None:
    """Check, before anything is computed, that a model can read these tokens.

    Raises:
        DataError: an id outside its vocabulary, or rows longer than its positions.
    """
    config: Any = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    positions = getattr(config, "max_position_embeddings", None)
    largest, length = int(rows_NT.max()), rows_NT.shape[1]
    if vocabulary is not None and largest >= vocabulary:
        raise DataError(
            f"the tokens hold the id {largest}, but {type(model).__name__} has a vocabulary of "
            f"{vocabulary}. Use the tokenizer that the model was trained with."
        )
    if positions is not None and length > positions:
        raise DataError(
            f"rows of {length} tokens are longer than the {positions} positions of "
            f"{type(model).__name__}. Cut them into shorter rows."
        )


class TokenQuality(NamedTuple):
    """What a language model is worth on some tokens.

    Attributes:
        perplexity: e to the mean cross-entropy of all predicted tokens.
        error: its standard error, as if tokens were independent.
        accuracy: fraction of next tokens guessed right.
        tokens: how many were predicted.
    """

    perplexity: float
    error: float
    accuracy: float
    tokens: int


def eval_tokens(model: nn.Module, batches: Iterable[Any]) -> TokenQuality:
    """Perplexity of `model` on batches of next-token prediction, each row on its own.

    Args:
        model: anything that gives logits (B, T, K).
        batches: any loader of dicts with "labels" (B, T), one step ahead and -100 where there is
            nothing to predict; see `TokenBatches`.

    Raises:
        DataError: the loader is empty or malformed.
        ModelError: the model cannot run a batch, or gives NaN or infinite outputs.
    """
    found = evaluate(model, batches)
    perplexity = math.exp(found.loss)
    return TokenQuality(perplexity, perplexity * found.loss_error, found.figure, found.samples)


def pretrained_project(model: str | Path, data: str | Path, **options: Any) -> Project:
    """The project of pruning the language model in a folder, measured on a file of token ids.

    Args:
        model: a folder in Hugging Face's format.
        data: token ids, see `load_tokens`.
        options: of `TaskOptions`.

    Raises:
        DataError, ModelError: see `load_tokens` and `load_pretrained`.
    """
    folder, splits = locate(model, "models"), load_tokens(locate(data))
    return token_project(folder.name, load_pretrained(folder), splits, **options)


def token_project(
    name: str, dense: nn.Module, splits: TokenSplits, *, sample_kind: str = AUTO, **options: Any
) -> Project:
    """The project of pruning a trained language model.

    Three quarters of the rows calibrate and the rest pay the reward, where the options leave the
    numbers of samples at their default.

    Args:
        name: for titles.
        dense: a causal model of transformers.
        splits: its tokens.
        sample_kind: what calibrates and pays: the "given" rows of train, the model's "own" text, or
            "auto": the given rows and, where they are fewer than `ENOUGH`, its own text up to that.
        options: of `TaskOptions`.

    Raises:
        ConfigError: there are no such samples.
        DataError, ModelError: the tokens do not fit the model; it cannot write.
    """
    for rows_NT in (splits.train, splits.val, splits.test):
        require_tokens(dense, rows_NT)
    wanted = sum(options.get(key, 0) for key in ("calibration_samples", "reward_samples"))
    kinds = {AUTO: max(0, ENOUGH - len(splits.train)), "given": 0, "own": max(ENOUGH, wanted)}
    written, seed = look_up("kind of samples", sample_kind, kinds), options.get("seed", 0)
    rows_NT = splits.train
    if written:
        outline(dense, [rows_NT[:2]], TaskOptions.of(options))
        first_N = rows_NT[torch.arange(written) % len(rows_NT), 0]
        own_NT = own_text(dense, first_N, rows_NT.shape[1], seed)
        rows_NT = own_NT if sample_kind == "own" else torch.cat([rows_NT, own_NT])
    calibration, rewarding = shares(len(rows_NT))
    chosen = preferred(options, calibration_samples=calibration, reward_samples=rewarding)
    task = PruningTask.from_model(
        dense, TokenBatches(rows_NT, ROWS, shuffle=True, seed=seed), name=name, **chosen
    )
    config: Any = dense.config
    return Project(
        name=name,
        dense=dense,
        task=task,
        train=TokenBatches(splits.train, ROWS, shuffle=True),
        val=TokenBatches(splits.val, ROWS),
        test=TokenBatches(splits.test, ROWS),
        factory=partial(fresh, config),
        quality="perplexity",
        recipe=RECIPE,
        note=_note(splits, chosen, written),
    )


def _note(splits: TokenSplits, chosen: dict[str, Any], written: int) -> str:
    calibration, rewarding = chosen["calibration_samples"], chosen["reward_samples"]
    own = f" and {written} that the dense model wrote" if written else ""
    return (
        f"Rows of {splits.train.shape[1]} tokens: of {len(splits.train)} training rows{own} "
        f"{calibration} calibrate and {rewarding} pay the reward (at most); {len(splits.val)} rows "
        f"select epochs, {len(splits.test)} are the test."
    )


def shares(rows: int) -> tuple[int, int]:
    """How many of the rows calibrate, and how many pay the reward: 3 to 1, and 500 at most."""
    calibration = max(1, min(500, 3 * rows // 4))
    return calibration, max(1, min(250, rows - calibration))


def tokens_beside(folder: Path) -> Path:
    """The one file of token ids in a model's folder.

    Raises:
        DataError: there is none, or there are several.
    """
    found = sorted(folder.glob("*.npz"))
    if len(found) != 1:
        raise DataError(f"'{folder}' holds {len(found)} npz files of token ids; name one.")
    return found[0]
