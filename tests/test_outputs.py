"""Outputs and targets: what is read is what is meant, or it is refused with the cure."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prune_env import FinetuneSettings, PruningTask, finetune
from prune_env.calibration.gradients import loss_gradients
from prune_env.errors import ConfigError, DataError, ModelError, PruneEnvError
from prune_env.quality.batches import Batch
from prune_env.quality.evaluators import Evaluator, Metrics
from prune_env.quality.outputs import LOGITS, Output
from prune_env.quality.shift import one_ahead
from prune_env.recovery.epoch import evaluate
from prune_env.testing import toy_inputs, toy_model

NAMES = ("chain", "residual", "grouped")
ONE = FinetuneSettings(epochs=1, warmup=0.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(model: nn.Module, inputs: Any, seed: int = 0) -> Batch:
    """Samples with a class each."""
    classes = model.eval()(inputs).shape[-1]
    size = len(inputs)
    return Batch(inputs, torch.randint(0, classes, (size,), generator=seeded(seed)))


def close(one: Metrics, other: Metrics, tolerance: float = 1e-4) -> bool:
    return all(
        vars(one)[name] == pytest.approx(vars(other)[name], rel=tolerance, abs=tolerance)
        for name in ("figure", "loss", "divergence", "samples")
    )


class Wrapped(nn.Module):
    """A network whose outputs are made into something else."""

    def __init__(self, body: nn.Module, wrap: Any) -> None:
        super().__init__()
        self.body, self.wrap = body, wrap

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrap(self.body(*args, **kwargs))


def boxes_first(scores: Tensor) -> tuple[Tensor, Tensor]:
    return scores[..., :4] * 0 + 1, scores


CHANGES = {
    "softmax": lambda z: z.softmax(-1),
    "log_softmax": lambda z: z.log_softmax(-1),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_probabilities_measure_what_their_logits_do(
    name: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics of another network, the gradient of the loss and its descent are alike."""
    body = toy_model(name).eval()
    other = toy_model(name, 1).eval()
    data = [numbers(body, toy_inputs(name, 1, 12))]
    wrapped = Wrapped(body, CHANGES[change])
    plain, read = (Evaluator.of(model, data) for model in (body, wrapped))
    assert close(read(Wrapped(other, CHANGES[change])), plain(other))
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == (change == "softmax")
    ours, theirs = (
        loss_gradients(model, data, evaluator.objective)
        for model, evaluator in ((wrapped, read), (body, plain))
    )
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[f"body.{key}"], gradient, rtol=1e-3, atol=1e-5)
    assert evaluate(wrapped, data).loss == pytest.approx(evaluate(body, data).loss, rel=1e-4)


def test_tuning_descends_the_loss_of_probabilities() -> None:
    torch.manual_seed(0)
    body = nn.Linear(5, 4)
    data = [(torch.randn(32, 5), torch.arange(32) % 4)]
    plain = finetune(body, data, data, settings=ONE, teacher=body).history
    read = Wrapped(body, CHANGES["softmax"])
    found = finetune(read, data, data, settings=ONE, teacher=read).history
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=1e-4)


@given(seed=st.integers(0, 999), classes=st.integers(2, 9))
def test_what_lies_between_0_and_1_is_no_probability_by_that_alone(seed: int, classes: int) -> None:
    logits = torch.rand(6, classes, generator=seeded(seed)) / classes
    data = [Batch(logits, torch.arange(6) % classes)]
    assert Evaluator.of(nn.Identity(), data).objective.output == LOGITS
    with pytest.raises(ModelError, match=r"ends in a sigmoid.*before the sigmoid.*Output\(\)"):
        Evaluator.of(nn.Sigmoid(), data)
    known = Evaluator.of(nn.Sigmoid(), data, output=LOGITS)
    assert close(known(nn.Sigmoid()), known.of(nn.Identity(), _through(data))(nn.Identity()))


def _through(data: list[Batch]) -> list[Batch]:
    return [Batch(batch.inputs.sigmoid(), batch.targets) for batch in data]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_several_parts_that_fit_ask_for_output(name: str) -> None:
    """Not the first: a regressor of boxes was measured as a classifier."""
    body, other = toy_model(name), toy_model(name, 1)
    data = [numbers(body, toy_inputs(name, 1, 8))]
    detector = Wrapped(body, boxes_first)
    for refused in (
        lambda: Evaluator.of(detector, data),
        lambda: evaluate(detector, data),
        lambda: finetune(detector, data, data, settings=ONE),
    ):
        with pytest.raises(ModelError, match="output=0 or output=1"):
            refused()
    read = Evaluator.of(detector, data, output=1)
    assert read(Wrapped(other, boxes_first)) == Evaluator.of(body, data)(other)
    found = finetune(detector, data, data, settings=ONE, output=1, teacher=detector).history
    assert found == finetune(body, data, data, settings=ONE, teacher=body).history


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda z: (z.mean(), z), "auto"),  # a loss, then logits
        (lambda z: (z[:, None, None], z), "auto"),  # only one has the shape of the targets
        (lambda z: {"a": [z[:, :2], z]}, "a.1"),
        (lambda z: {"scores": z, "boxes": z * 0}, "scores"),
        (lambda z: {"logits": z, "scores": z * 0}, "auto"),
        (lambda z: [z], 0),
        (lambda z: z, 0),
    ],
)
def test_the_part_that_is_meant_is_read(wrap: Any, said: str | int) -> None:
    data = [Batch(torch.randn(6, 4, generator=seeded(0)), torch.arange(6) % 4)]
    plain = Evaluator.of(nn.Identity(), data)(nn.Identity())
    model = Wrapped(nn.Identity(), wrap)
    assert Evaluator.of(model, data, output=said)(model) == plain


@pytest.mark.parametrize(
    ("wrap", "said", "error", "says"),
    [
        (boxes_first, 7, ModelError, r"no '7' in what the model returned: a tuple of 0 \(6, 4\)"),
        (lambda z: {"a": z}, "b", ModelError, r"no 'b'.*dict of a \(6, 5\)"),
        (lambda z: z, "scores", ModelError, "returns one tensor"),
        (lambda z: (z[0], z[0]), "auto", ModelError, "none of them may be the logits"),
        (lambda z: z, True, ConfigError, "output is True"),
        (lambda z: z, 1.5, ConfigError, "output is 1.5"),
        (lambda z: z, "", ConfigError, "output is ''"),
        (lambda z: z[:, :3], "auto", DataError, "targets run from 0 to 4, but the model has 3"),
        (lambda z: z[:, :1], "auto", DataError, "whole numbers.*objective='regression'"),
        (lambda z: z[:, 0], "auto", DataError, "whole numbers.*objective='regression'"),
    ],
)
def test_what_is_not_there_is_refused(wrap: Any, said: Any, error: Any, says: str) -> None:
    data = [Batch(torch.randn(6, 5, generator=seeded(0)), torch.arange(6) % 5)]
    for measure in (Evaluator.of, evaluate):
        with pytest.raises(error, match=says):
            measure(Wrapped(nn.Identity(), wrap), data, output=said)  # type: ignore[operator]


def test_a_task_and_tuning_read_alike() -> None:
    """`output` is an option of the task, and the task says how it was understood."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    model = Wrapped(body, boxes_first)
    data = [(torch.randn(8, 6), torch.arange(8) % 5) for _ in range(4)]
    options = {"calibration_samples": 16, "reward_samples": 16, "criterion": "taylor"}
    with pytest.raises(ModelError, match="output=1"):
        PruningTask.from_model(model, data, **options)
    task = PruningTask.from_model(model, data, output=1, **options)
    plain = PruningTask.from_model(body, data, **options)
    assert task.objective.output == Output("1")
    assert task.dense == plain.dense
    for ours, theirs in zip(task.scores.values(), plain.scores.values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    finetune(task.network([8]), data, data, settings=ONE, objective=task.objective)
    with pytest.raises(ConfigError, match=r"output is \[1\]"):
        PruningTask.from_model(model, data, output=[1], **options)


class Segmenter(nn.Module):
    """Logits of images, their classes on the second dimension or the last."""

    def __init__(self, classes: int, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, classes, 1)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.first(x).relu())
        return z.permute(0, 2, 3, 1) if self.last else z  # type: ignore[no-any-return]


@pytest.mark.parametrize(("classes", "last"), [(4, False), (6, False), (4, True)])
def test_pixels_are_classified_as_cross_entropy_has_them(classes: int, last: bool) -> None:
    """With as many classes as rows and columns too, where both readings fit."""
    model, images = Segmenter(classes, last), torch.randn(5, 3, 6, 6, generator=seeded(0))
    targets = torch.randint(0, classes, (5, 6, 6), generator=seeded(1))
    targets[:, 0] = -100
    data = [Batch(images, targets)]
    with torch.no_grad():
        logits = Segmenter(classes)(images)
    expected = float(F.cross_entropy(logits, targets))
    right = (logits.argmax(1) == targets)[targets != -100].float().mean()
    metrics = Evaluator.of(model, data)(model)
    assert metrics.loss == pytest.approx(expected, rel=1e-5)
    assert metrics.more["accuracy"] == pytest.approx(float(right))
    assert metrics.samples == 5 * 30
    history = finetune(model, data, data, settings=ONE, teacher=model).history
    assert history[0].val_loss == pytest.approx(expected, rel=1e-5)


def test_as_many_classes_as_positions_is_refused_unless_said() -> None:
    logits = torch.randn(4, 5, 5, generator=seeded(0))
    data = [Batch(logits, torch.randint(0, 5, (4, 5), generator=seeded(1)))]
    with pytest.raises(DataError, match="go together in two ways"):
        Evaluator.of(nn.Identity(), data)
    last, second = (
        Evaluator.of(nn.Identity(), data, output=Output(classes=dim))(nn.Identity()).loss
        for dim in (-1, 1)
    )
    assert second == pytest.approx(float(F.cross_entropy(logits, data[0].targets)), rel=1e-5)
    assert last == pytest.approx(float(F.cross_entropy(logits.mT, data[0].targets)), rel=1e-5)
    shorter = Batch(logits[:, :3], data[0].targets[:, :3])
    assert Evaluator.of(nn.Identity(), [*data, shorter]).objective.output == LOGITS


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.uint16, torch.int64])
def test_class_156_counts_in_every_type(kind: torch.dtype) -> None:
    """It is -100 in eight bits without a sign."""
    logits = torch.randn(8, 200, generator=seeded(0))
    targets = torch.tensor([156, 0, 156, 3, 199, 156, 1, 2])
    ours, theirs = Batch(logits, targets.to(kind)), Batch(logits, targets)
    assert torch.equal(ours.targets, targets)
    assert ours.targets.dtype == torch.int64
    model = nn.Identity()
    assert Evaluator.of(model, [ours]).samples == 8
    assert evaluate(model, [(logits, ours.targets)]) == evaluate(model, [theirs])


def test_one_sample_too_few_for_a_norm_names_the_cure() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    data = [(torch.randn(size, 4), torch.arange(size) % 3) for size in (8, 1)]
    with pytest.raises(ModelError, match=r"train, epoch 1, step 1.*drop_last=True"):
        finetune(model, data, data, settings=ONE)
    assert evaluate(model, data).samples == 9


class Language(nn.Module):
    """A causal model of another library: no loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.tokens(input_ids))  # type: ignore[no-any-return]


def test_targets_that_are_the_tokens_read_need_a_loss_to_compare_with() -> None:
    ids = torch.randint(0, 16, (4, 6), generator=seeded(0))
    model = Language()
    for item in ((ids, ids), {"input_ids": ids, "labels": ids}):
        with pytest.raises(DataError, match=r"100% of the targets are the token.*follows"):
            evaluate(model, [item])
    with torch.no_grad():
        logits = model(ids)
    ahead = evaluate(model, [(ids, one_ahead(ids))]).loss
    assert ahead == pytest.approx(float(F.cross_entropy(logits[:, :-1].mT, ids[:, 1:])), rel=1e-5)
    here = evaluate(model, [(ids, ids)], output=Output()).loss
    assert here == pytest.approx(float(F.cross_entropy(logits.mT, ids)), rel=1e-5)


transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
CAUSAL = {
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "mixtral": ("Mixtral", {"num_key_value_heads": 2, "num_local_experts": 4}),
    "gpt_neox": ("GPTNeoX", {}),
}


def causal(name: str, **other: Any) -> nn.Module:
    kind, options = CAUSAL[name]
    sizes = {**SIZES, **options, **other, "use_cache": False}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def rows(count: int = 12, length: int = 10, seed: int = 0) -> list[Tensor]:
    return list(torch.randint(1, 64, (count, length), generator=seeded(seed)).split(4))


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(CAUSAL))
def test_labels_that_the_model_moves_are_read_as_it_does(name: str) -> None:
    """Its own loss, and the very task of batches whose labels are one ahead already."""
    model = causal(name)
    as_it_takes = [{"input_ids": x, "labels": x.clone()} for x in rows()]
    prompt = copy.deepcopy(as_it_takes)
    for batch in prompt:
        batch["labels"][:, :4] = -100
    for data in (as_it_takes, prompt):
        with torch.no_grad():
            own = sum(float(model(**batch).loss) for batch in data) / len(data)
        assert evaluate(model, data).loss == pytest.approx(own, rel=1e-4)
    tuned = finetune(model, as_it_takes, as_it_takes, settings=ONE).history
    ready = [({"input_ids": x}, one_ahead(x)) for x in rows()]
    assert tuned == finetune(model, ready, ready, settings=ONE).history
    options: dict[str, Any] = {
        "criterion": "taylor", "budget": 0.9, "calibration_samples": 4, "reward_samples": 8
    }  # fmt: skip
    ours, theirs = (PruningTask.from_model(model, d, **options) for d in (as_it_takes, ready))
    assert (ours.objective.output.ahead, theirs.objective.output.ahead) == (True, False)
    assert ours.dense == theirs.dense
    assert all(torch.equal(ours.scores[key], theirs.scores[key]) for key in theirs.scores)


def test_a_model_that_does_not_move_labels_is_read_as_they_stand() -> None:
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).eval()
    data = [{"input_ids": x, "labels": x} for x in rows()]
    with torch.no_grad():
        own = sum(float(model(**batch).loss) for batch in data) / len(data)
    assert evaluate(model, data).loss == pytest.approx(own, rel=1e-4)


def test_one_hot_targets_could_be_meant_in_two_ways() -> None:
    data = [Batch(torch.randn(6, 5), torch.eye(5)[torch.arange(6) % 5])]
    with pytest.raises(PruneEnvError, match=r"argmax\(-1\).*objective='multilabel'"):
        Evaluator.of(nn.Identity(), data)
    assert Evaluator.of(nn.Identity(), data, objective="multilabel").objective.name == "multilabel"
