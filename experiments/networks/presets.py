"""Projects by name: a trained network and its data, ready for `--task`.

The first use of one that is trained here takes minutes; its network is then kept in the cache
folder, and a killed training goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from prune_env import PruningTask, register_task
from prune_env.errors import ConfigError
from prune_env.experiments.data.images import import_extra
from prune_env.experiments.data.places import locate
from prune_env.experiments.data.splits import CropFlip, load_splits, loader
from prune_env.experiments.data.texts import (
    PAD,
    SentenceBatches,
    Words,
    load_characters,
    load_sentences,
)
from prune_env.experiments.data.tokens import TokenBatches
from prune_env.experiments.networks.chosen import without_samples
from prune_env.experiments.networks.cifar import image_project
from prune_env.experiments.networks.dense import trained
from prune_env.experiments.networks.pretrained import (
    RECIPE,
    pretrained_project,
    token_project,
    tokens_beside,
    without_cache,
)
from prune_env.mdp.registry import resolve_factory
from prune_env.pipeline.project import Project
from prune_env.recovery.finetune import FinetuneSettings
from prune_env.recovery.training import Tuning
from prune_env.tasks import builtin
from prune_env.tasks.digits import DigitsNet

PRESETS = {
    "resnet20_cifar10": "prune_env.experiments.networks.cifar:resnet20_cifar10",
    "resnet56_cifar10": "prune_env.experiments.networks.cifar:resnet56_cifar10",
    "mobilenetv2_cifar10": "prune_env.experiments.networks.cifar:mobilenetv2_cifar10",
    "stories260K": "prune_env.experiments.networks.presets:stories260K",
    "mistral_shakespeare": "prune_env.experiments.networks.presets:mistral_shakespeare",
    "mixtral_shakespeare": "prune_env.experiments.networks.presets:mixtral_shakespeare",
    "vit_cifar10": "prune_env.experiments.networks.presets:vit_cifar10",
    "bert_sst2": "prune_env.experiments.networks.presets:bert_sst2",
}
"""Name -> factory of a `Project`. Add one here."""
WHOLE = {"digits": "prune_env.experiments.networks.presets:digits"}
"""The same for tasks that the package registers itself, without val and test."""

DECODER: Mapping[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 256,
    "sliding_window": None, "tie_word_embeddings": True,
}  # fmt: skip
"""The config of small language models of characters."""
ENCODER: Mapping[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256,
}  # fmt: skip
"""The config of a small encoder of text."""
VISION: Mapping[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
    "patch_size": 8,
}  # fmt: skip
"""The config of a small encoder of images; patches of 4 would train four times as long."""
CHARACTERS = 128
"""Characters in a row."""
TRAINING = FinetuneSettings(
    epochs=3, learning_rate=3e-3, optimizer="adamw", weight_decay=0.05, clip_norm=1.0
)
"""Of a small language model of characters."""
READING = FinetuneSettings(
    epochs=6, learning_rate=5e-4, optimizer="adamw", weight_decay=0.05, clip_norm=1.0
)
"""Of a small classifier of sentences."""
LOOKING = FinetuneSettings(
    epochs=12, learning_rate=2e-3, optimizer="adamw", weight_decay=0.05, label_smoothing=0.05,
    clip_norm=1.0,
)  # fmt: skip
"""Of a small vision transformer."""


def open_named(name: str, **options: Any) -> Project | PruningTask:
    """What a preset, a registered task or "package.module:function" makes of these options.

    Raises:
        ConfigError: there is no such name, or its function returns something else.
    """
    for preset, target in PRESETS.items():
        register_task(preset, target)
    made: Any = resolve_factory(WHOLE.get(name, name))(**options)
    if not isinstance(made, (Project, PruningTask)):
        raise ConfigError(
            f"'{name}' returned a {type(made).__name__}. Return a PruningTask (search only) "
            "or an experiments.project.Project (search, fine-tuning, test accuracy)."
        )
    if isinstance(made, Project):
        made = made.tuned_by(Tuning(FinetuneSettings(**made.recipe)))
    return made


def digits(**options: Any) -> Project:
    """The task that comes with the package, and the images it leaves alone."""
    splits = load_splits("digits", seed=0)
    batches = partial(loader, mean=splits.mean, std=splits.std)
    dense = builtin.digits_net(**options)
    task = builtin.digits_task(dense, **options)
    return Project(
        name=task.name,
        dense=dense,
        task=task,
        train=batches(splits.train, batch_size=64, shuffle=True),
        val=batches(splits.val, batch_size=250),
        test=batches(splits.test, batch_size=250),
        factory=DigitsNet,
    )


def stories260K(**options: Any) -> Project:
    """A 260,000-parameter Mistral that tells children's stories; see the shared models' README.

    Raises:
        DataError: the model's folder is in none of the known places.
    """
    folder = locate("stories260K", "models")
    return pretrained_project(folder, tokens_beside(folder), **options)


def mistral_shakespeare(**options: Any) -> Project:
    """A small Mistral of characters, trained on Shakespeare here.

    Raises:
        DataError: tinyshakespeare is in none of the known places.
    """
    return _shakespeare("Mistral", {"intermediate_size": 172}, options)


def mixtral_shakespeare(**options: Any) -> Project:
    """The same with eight experts in place of each MLP, two of them for every character.

    Raises:
        DataError: tinyshakespeare is in none of the known places.
    """
    experts = {"intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2}
    return _shakespeare("Mixtral", experts, options)


def _shakespeare(architecture: str, differences: Mapping[str, Any], options: Any) -> Project:
    splits, alphabet = load_characters(locate("tinyshakespeare") / "input.txt", length=CHARACTERS)
    config = {**DECODER, **differences, "vocab_size": len(alphabet)}
    name = f"{architecture.lower()}_shakespeare"
    factory = partial(_made, f"{architecture}ForCausalLM", f"{architecture}Config", config)
    loaders = TokenBatches(splits.train, 32, shuffle=True), TokenBatches(splits.val, 64)
    dense = trained(name, factory, loaders, TRAINING, options)
    return token_project(name, dense, splits, **options)


def vit_cifar10(**options: Any) -> Project:
    """A small vision transformer, trained on CIFAR-10 here.

    Raises:
        DataError: cifar10_jpeg is in none of the known places.
    """
    splits = load_splits(locate("cifar10_jpeg"), seed=0)
    config = {**VISION, "image_size": splits.train.images.shape[-1]}
    config |= {"num_labels": len(splits.classes), "num_channels": splits.train.images.shape[1]}
    factory = partial(_made, "ViTForImageClassification", "ViTConfig", config)
    batches = partial(loader, mean=splits.mean, std=splits.std)
    train = batches(splits.train, batch_size=128, augment=CropFlip(4), shuffle=True)
    val = batches(splits.val, batch_size=250)
    dense = trained("vit_cifar10", factory, (train, val), LOOKING, without_samples(options))
    return image_project("vit_cifar10", dense, splits, factory, recipe=RECIPE, **options)


def bert_sst2(**options: Any) -> Project:
    """A small BERT of whole words, trained on SST-2 here.

    Raises:
        DataError: sst2 is in none of the known places.
    """
    return sentence_project("bert_sst2", load_sentences(locate("sst2")), ENCODER, **options)


def sentence_project(
    name: str,
    words: Words,
    config: Mapping[str, Any],
    *,
    settings: FinetuneSettings = READING,
    **options: Any,
) -> Project:
    """The project of pruning a BERT that is trained on labelled sentences.

    Args:
        name: of the project and of the file its network is kept in.
        words: the sentences.
        config: what its config differs in.
        settings: of the dense training.
        options: of `TaskOptions`.
    """
    whole = {
        **config, "vocab_size": words.vocabulary, "pad_token_id": PAD,
        "num_labels": int(words.train.labels_N.max()) + 1,
        "max_position_embeddings": words.train.ids_NT.shape[1],
    }  # fmt: skip
    factory = partial(_made, "BertForSequenceClassification", "BertConfig", whole)
    train, val = SentenceBatches(words.train, 32, shuffle=True), SentenceBatches(words.val, 125)
    dense = trained(name, factory, (train, val), settings, options)
    plain = SentenceBatches(words.train, 50, shuffle=True, seed=options.get("seed", 0))
    return Project(
        name=name,
        dense=dense,
        task=PruningTask.from_model(dense, plain, name=name, **options),
        train=train,
        val=val,
        test=SentenceBatches(words.test, 125),
        factory=factory,
        recipe=RECIPE,
    )


def _made(kind: str, config: str, values: Mapping[str, Any]) -> nn.Module:
    """A network of the transformers library, with weights drawn from torch's generator."""
    library = import_extra("transformers")
    return without_cache(getattr(library, kind)(getattr(library, config)(**values)))
