"""The built-in data and network: fixed, disjoint, well trained, cached without risk."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env.recovery import evaluate
from prune_env.tasks import cache, digits
from prune_env.tasks.cache import cache_folder, cached_tensors
from prune_env.tasks.digits import DigitsNet, dense_digits, load_digits, stratified_order

TENSORS = {"x": torch.arange(3)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DigitsNet]:
    folder = tmp_path_factory.mktemp("cache")
    return folder, dense_digits(folder)


def test_every_image_is_in_exactly_one_part() -> None:
    parts = digits.split_digits()
    everything = torch.cat(list(parts.values()))
    assert torch.equal(everything.sort().values, torch.arange(1797))
    assert {name: len(index) for name, index in parts.items()} == {
        "train": 1097,
        "val": 300,
        "test": 400,
    }


def test_the_parts_hold_each_class_in_its_share() -> None:
    labels = digits.raw_digits()[1]
    for part in load_digits():
        share = part.labels.bincount() / len(part.labels)
        overall = labels.bincount() / len(labels)
        assert float((share - overall).abs().max()) <= 1 / len(part.labels) + 1e-6


def test_images_are_normalised_and_typed() -> None:
    train, _, test = load_digits()
    assert train.images.shape == (1097, 1, 8, 8)
    assert train.images.dtype == torch.float32
    assert train.labels.dtype == torch.int64
    assert abs(float(train.images.mean())) < 0.01
    assert abs(float(train.images.std()) - 1) < 0.01
    assert set(test.labels.tolist()) == set(range(10))


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=80), cut=st.floats(0, 1))
def test_every_prefix_of_a_stratified_order_is_stratified(labels: list[int], cut: float) -> None:
    given_labels = torch.tensor(labels)
    order = stratified_order(given_labels, seed=1)
    assert sorted(order.tolist()) == list(range(len(labels)))
    count = int(cut * len(labels))
    prefix = given_labels[order[:count]]
    for label in set(labels):
        due = count * labels.count(label) / len(labels)
        assert abs(int((prefix == label).sum()) - due) <= 1 + len(set(labels)) / 2


def test_the_order_follows_its_seed() -> None:
    labels = torch.arange(200) % 5
    assert torch.equal(stratified_order(labels, 3), stratified_order(labels, 3))
    assert not torch.equal(stratified_order(labels, 3), stratified_order(labels, 4))


@pytest.mark.long
def test_the_dense_network_is_good_and_in_eval_mode(trained: tuple[Path, DigitsNet]) -> None:
    net = trained[1]
    assert not any(module.training for module in net.modules())
    assert evaluate(net, [load_digits().test]).figure >= 0.97


@pytest.mark.long
def test_the_second_call_reads_the_file(
    trained: tuple[Path, DigitsNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, net = trained

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(digits, "_train_dense", fail)
    again = dense_digits(folder)
    assert again is not net
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_changing_the_result_leaves_the_cache_alone(trained: tuple[Path, DigitsNet]) -> None:
    folder, net = trained
    with torch.no_grad():
        dense_digits(folder).linear.weight.zero_()
    assert torch.equal(dense_digits(folder).linear.weight, net.linear.weight)


def test_a_damaged_file_is_replaced(
    trained: tuple[Path, DigitsNet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained[1].state_dict()
    monkeypatch.setattr(digits, "_train_dense", lambda _: state)
    (file,) = trained[0].iterdir()
    for content in (b"", b"junk", file.read_bytes()[:-100]):
        (tmp_path / file.name).write_bytes(content)
        dense_digits(tmp_path)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_training_leaves_the_global_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.random.get_rng_state()
    digits._train_dense(digits.FinetuneSettings(epochs=0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_net_runs_at_other_sizes_and_widths() -> None:
    net = DigitsNet(4, (3, 5), 1)
    assert net(torch.zeros(2, 1, 12, 12)).shape == (2, 4)


def test_an_unwritable_cache_costs_one_warning_and_one_making(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "x.safetensors"
    made: list[int] = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return TENSORS

    with pytest.warns(RuntimeWarning, match="PRUNE_ENV_CACHE"):
        cached_tensors(path, make, lambda _: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cached_tensors(path, make, lambda _: True)["x"], TENSORS["x"])
    assert made == [1]
    del cache._UNSAVED[path]


def test_tensors_that_do_not_fit_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.safetensors"
    cached_tensors(path, lambda: {"old": torch.zeros(1)}, lambda _: True)
    found = cached_tensors(path, lambda: TENSORS, lambda tensors: "x" in tensors)
    assert torch.equal(found["x"], TENSORS["x"])
    assert "x" in cached_tensors(path, dict, lambda tensors: "x" in tensors)


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PRUNE_ENV_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "prune_env")
