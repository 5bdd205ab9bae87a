"""Language models and text through the same run and comparison as images; prices of configs."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prune_env.costs.model import CostModel
from prune_env.errors import ConfigError, DataError, ModelError
from prune_env.experiments import compare, inspect, perplexity, run
from prune_env.experiments.data import tokens
from prune_env.experiments.data.texts import (
    END,
    PAD,
    START,
    UNKNOWN,
    load_characters,
    load_sentences,
)
from prune_env.experiments.data.tokens import (
    TokenBatches,
    TokenSplits,
    load_tokens,
    next_tokens,
    read_tokens,
)
from prune_env.experiments.networks import presets, pretrained, pricing
from prune_env.experiments.networks.chosen import preferred
from prune_env.experiments.networks.dense import trained
from prune_env.experiments.networks.own_text import own_text
from prune_env.experiments.networks.presets import PRESETS, open_named, sentence_project
from prune_env.experiments.networks.pretrained import (
    ENOUGH,
    eval_tokens,
    fresh,
    load_pretrained,
    pretrained_project,
    require_tokens,
    shares,
    token_project,
)
from prune_env.experiments.report.findings import verdict
from prune_env.experiments.report.report import format_table
from prune_env.experiments.report.summaries import summarise, summary_table
from prune_env.experiments.stages.stages import tuning_settings
from prune_env.pipeline.yardstick import ACCURACY, PERPLEXITY, yardstick_for
from prune_env.quality.objectives import TOKENS
from prune_env.recovery.epoch import evaluate
from prune_env.recovery.finetune import FinetuneSettings, finetune

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

CONFIG = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "sliding_window": None,
}  # fmt: skip
QUICK = ["--budget", "0.9", "--evaluations", "4", "--threads", "1", "--no-progress"]


def tiny() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return fresh(transformers.MistralConfig(**CONFIG))


def rows(count: int, length: int = 16) -> Tensor:
    """Rows that count upwards, each from a start of its own: something to learn."""
    start = torch.randperm(64, generator=torch.Generator().manual_seed(count))[:count]
    return (start[:, None] + torch.arange(length)) % 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in Hugging Face's format, with a file of tokens beside it."""
    path = tmp_path_factory.mktemp("hub") / "tiny"
    tiny().save_pretrained(path)
    np.savez(path / "tokens.npz", calibration=rows(24).numpy(), evaluation=rows(6).numpy())
    return path


def test_labels_are_the_ids_one_step_ahead() -> None:
    (batch,) = TokenBatches(rows(3), 8)
    assert torch.equal(batch["labels"][:, :-1], batch["input_ids"][:, 1:])
    assert (batch["labels"][:, -1] == -100).all()


def test_perplexity_is_that_of_the_library() -> None:
    """transformers shifts the labels itself: an independent count of the same mean."""
    model, ids = tiny(), rows(5)
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=ids).loss)
    found = eval_tokens(model, TokenBatches(ids, 2))
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert found.tokens == 5 * 15


def test_the_error_of_perplexity_follows_from_the_spread_of_losses() -> None:
    model, ids = tiny(), rows(5)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    losses = F.cross_entropy(logits.flatten(0, 1), next_tokens(ids).flatten(), reduction="none")
    counted = losses.reshape(5, 16)[:, :-1].double()
    quality = evaluate(model, TokenBatches(ids, 2))
    spread = float(counted.std()) / math.sqrt(75)
    assert quality.loss_error == pytest.approx(spread, rel=1e-5)
    error = eval_tokens(model, TokenBatches(ids, 2)).error
    assert error == pytest.approx(math.exp(float(counted.mean())) * spread, rel=1e-5)


@given(st.lists(st.integers(0, 60), min_size=40, max_size=90), st.integers(2, 8))
def test_a_line_is_cut_into_rows_and_no_token_is_in_two_parts(ids: list[int], length: int) -> None:
    distinct = np.arange(len(ids))
    path = Path("tokens.npy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            tokens.READERS,
            ".npy",
            lambda path: {"all": distinct},
        )
        splits = load_tokens(path, length=length)
    parts = [part.flatten().tolist() for part in (splits.train, splits.val, splits.test)]
    together = [token for part in parts for token in part]
    assert len(set(together)) == len(together) == len(ids) // length * length
    assert all(part for part in parts)


def test_every_kind_of_file_gives_the_same_tokens(tmp_path: Path) -> None:
    ids = rows(6).flatten().numpy()
    np.save(tmp_path / "a.npy", ids)
    np.savez(tmp_path / "a.npz", all=ids)
    (tmp_path / "a.txt").write_text(" ".join(map(str, ids)))
    ids.astype("<u2").tofile(tmp_path / "a.bin")
    for suffix in ("npy", "npz", "txt", "bin"):
        (found,) = read_tokens(tmp_path / f"a.{suffix}", length=16).values()
        assert torch.equal(found, rows(6))


def test_bad_token_files_are_clear_errors(tmp_path: Path) -> None:
    files: dict[str, tuple[Any, str]] = {
        "floats.npy": (np.zeros(500), "whole numbers"),
        "negative.npy": (np.full(500, -1), "start at 0"),
        "short.npy": (np.zeros(9, dtype=np.int64), "fewer than the 256"),
        "cube.npy": (np.zeros((2, 3, 4), dtype=np.int64), "in rows"),
    }
    for name, (array, words) in files.items():
        np.save(tmp_path / name, array)
        with pytest.raises(DataError, match=words):
            load_tokens(tmp_path / name)
    (tmp_path / "words.txt").write_text("once upon a time")
    for name, words in (("words.txt", "cannot read"), ("none.npz", "cannot read"), ("x.csv", "no")):
        with pytest.raises(DataError, match=words):
            load_tokens(tmp_path / name)
    np.savez(tmp_path / "odd.npz", a=rows(3).numpy(), b=rows(3).numpy())
    with pytest.raises(DataError, match="Name the parts"):
        load_tokens(tmp_path / "odd.npz")


def test_tokens_that_the_model_cannot_read_are_refused_before_it_runs() -> None:
    model = tiny()
    model.forward = None  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"id 64, .*vocabulary of 64"):
        require_tokens(model, torch.full((2, 8), 64))
    with pytest.raises(DataError, match=r"rows of 33 tokens .*32 positions"):
        require_tokens(model, rows(2, 33))
    with pytest.raises(DataError, match="at least one row of two tokens"):
        TokenSplits(rows(2), rows(2), rows(2, 1))


def test_a_folder_without_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no causal language model"):
        load_pretrained(tmp_path)


def test_our_numbers_of_samples_give_way_to_what_was_asked_for() -> None:
    assert preferred({"budget": 0.5, "reward_samples": 1000}, reward_samples=8) == {
        "budget": 0.5, "reward_samples": 8,
    }  # fmt: skip
    assert preferred({"reward_samples": 5}, reward_samples=8)["reward_samples"] == 5
    for count in range(2, 40):
        calibration, rewarding = shares(count)
        assert 1 <= rewarding <= calibration + 1
        assert calibration + rewarding == count


def test_a_project_measures_its_reward_apart_from_its_calibration(folder: Path) -> None:
    project = pretrained_project(folder, folder / "tokens.npz", budget=0.9, sample_kind="given")
    evaluate: Any = project.task.evaluator
    calibrated = torch.cat([batch.inputs["input_ids"] for batch in evaluate.calibration])
    rewarded = torch.cat([batch.inputs["input_ids"] for batch in evaluate.quality.batches])
    kept_apart = torch.cat([batch["input_ids"] for batch in project.val])
    seen = [set(map(tuple, part.tolist())) for part in (calibrated, rewarded, kept_apart)]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    assert len(seen[0] | seen[1] | seen[2]) == 24  # and none is left out
    assert project.yardstick == PERPLEXITY
    assert set(project.factory().state_dict()) == set(project.dense.state_dict())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_model_writes_what_it_expects(cache: Path) -> None:
    model, count = tiny(), 4096
    settings = [str(model.config), str(model.generation_config)]
    first_N = torch.full((count,), 3)
    rows_NT = own_text(model, first_N, 3, seed=0)
    assert rows_NT.shape == (count, 3)
    assert torch.equal(rows_NT[:, 0], first_N)
    with torch.no_grad():
        expected_K = model(torch.tensor([[3]])).logits[0, -1].softmax(-1)
    found_K = torch.bincount(rows_NT[:, 1], minlength=len(expected_K)) / count
    error_K = (expected_K * (1 - expected_K) / count).sqrt()
    ends = model.config.eos_token_id
    beside = [n for n in range(len(expected_K)) if n != ends]
    assert ((found_K - expected_K).abs() < 5 * error_K + 1e-3)[beside].all()
    assert settings == [str(model.config), str(model.generation_config)]
    assert len(list(cache.glob("text-*"))) == 1
    monkeyed: Any = model
    monkeyed.generate = None  # what is written is read
    assert torch.equal(own_text(model, first_N, 3, seed=0), rows_NT)
    monkeyed.generate = type(model).generate.__get__(model)
    assert not torch.equal(own_text(model, first_N, 3, seed=1), rows_NT)


@pytest.mark.parametrize(
    ("samples", "given", "written"), [("given", 16, 0), ("own", 0, ENOUGH), ("auto", 16, ENOUGH)]
)
def test_rows_that_are_missing_are_written(
    samples: str, given: int, written: int, cache: Path
) -> None:
    splits = TokenSplits(rows(16), rows(4), rows(5))
    project = token_project("tiny", tiny(), splits, sample_kind=samples, budget=0.9)
    evaluate: Any = project.task.evaluator
    parts = (evaluate.calibration, evaluate.quality.batches)
    seen = [tuple(row.tolist()) for p in parts for b in p for row in b.inputs["input_ids"]]
    assert len(seen) == max(given, written)
    ours = set(map(tuple, rows(16).tolist()))
    assert len(ours & set(seen)) == given
    assert ("that the dense model wrote" in project.note) == (samples != "given")


def test_unknown_samples_are_refused_and_so_is_a_model_that_cannot_write(cache: Path) -> None:
    splits = TokenSplits(rows(16), rows(4), rows(5))
    with pytest.raises(ConfigError, match=r"no kind of samples 'plain'.*given"):
        token_project("tiny", tiny(), splits, sample_kind="plain")
    dumb: Any = tiny()
    dumb.generate = None
    with pytest.raises(ModelError, match="cannot write text of its own"):
        token_project("tiny", dumb, splits)


def test_fine_tuning_learns_from_tokens_and_a_teacher() -> None:
    train, val = TokenBatches(rows(32), 8, shuffle=True), TokenBatches(rows(7), 8)
    settings = FinetuneSettings(epochs=4, learning_rate=5e-3, optimizer="adamw")
    taught = finetune(tiny(), train, val, settings=settings)
    before, after = taught.history[0].val_loss, taught.history[-1].val_loss
    assert after < before - 1
    pupil = finetune(tiny(), train, val, settings=settings, teacher=taught.model)
    assert pupil.history[-1].val_loss < before - 1


@pytest.mark.long
def test_run_speaks_of_perplexity(folder: Path, tmp_path: Path, capsys: Any) -> None:
    data = str(folder / "tokens.npz")
    arguments = ["--model", str(folder), "--data", data, "--finetune-epochs", "1"]
    arguments += ["--baselines", "uniform", "--searcher", "random", "--no-tensorboard"]
    assert run.main([*QUICK, *arguments, "--name", "r", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    last = json.loads(out.splitlines()[-1])
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    quality = eval_tokens(load_pretrained(folder), TokenBatches(rows(6), 8))
    assert last["dense"]["perplexity_test"] == pytest.approx(quality.perplexity)
    assert last["random"]["perplexity_after"] > 0
    assert results["dense"]["test_samples"] == 6 * 15
    page = (tmp_path / "r" / "report.md").read_text()
    assert "perplexity" in page
    assert "accuracy" not in page
    assert "perplexity after" in format_table(results)
    assert "test tokens" in page
    saved = tmp_path / "r" / "tune" / "random" / "model"
    from prune_env import load

    again = eval_tokens(load(saved), TokenBatches(rows(6), 8)).perplexity
    assert again == pytest.approx(last["random"]["perplexity_after"], rel=1e-5)


def make_tiny(**options: Any) -> Any:
    return token_project("tiny", tiny(), TokenSplits(rows(16), rows(4), rows(5)), **options)


@pytest.mark.long
def test_compare_speaks_of_perplexity(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(PRESETS, "tiny_here", f"{__name__}:make_tiny")
    arguments = ["--task", "tiny_here", "--budget", "0.9", "--evaluations", "3", "--seeds", "2"]
    more = ["--searchers", "uniform,random", "--runs", str(tmp_path)]
    assert compare.main([*arguments, *more]) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out
    assert "accuracy" not in out
    (page,) = tmp_path.glob("*/compare.md")
    assert "dense network has perplexity" in page.read_text()


def test_less_perplexity_is_better() -> None:
    runs = [
        {"searcher": name, "seed": s, "evaluations": 1, "seconds": 1.0, "reward": 0.0, "kl": 1.0,
         "perplexity": value + s / 10}
        for name, value in (("a", 9.0), ("b", 5.0)) for s in range(4)
    ]  # fmt: skip
    table = summary_table(summarise(runs, PERPLEXITY), PERPLEXITY).plain().splitlines()
    assert [line.split()[0] for line in table if "*" in line] == ["b"]


def results_of(values: dict[str, float], spread: float) -> dict[str, Any]:
    shown = [
        {"name": name, "kind": "agent" if name == "ppo" else "baseline", "macs_ratio": 0.5,
         "perplexity_after": value}
        for name, value in values.items()
    ]  # fmt: skip
    dense = {"perplexity_test": 4.0, "test_samples": 10_000, "test_loss_std": spread}
    return {"rows": shown, "dense": dense, "quality": "perplexity"}


def test_the_verdict_knows_which_way_perplexity_goes() -> None:
    assert "ahead of it" in verdict(results_of({"uniform": 9.0, "ppo": 8.0}, 1.5))
    assert "behind it" in verdict(results_of({"uniform": 8.0, "ppo": 9.0}, 1.5))
    assert "+4.000 against the dense" in verdict(results_of({"uniform": 9.0, "ppo": 8.0}, 1.5))
    assert "within noise" in verdict(results_of({"uniform": 8.1, "ppo": 8.0}, 1.5))


def test_an_unknown_figure_of_quality_is_refused() -> None:
    assert yardstick_for(TOKENS, "accuracy") == ACCURACY
    with pytest.raises(ConfigError, match="perplexity"):
        yardstick_for(TOKENS, "bleu")


def test_the_recipe_gives_way_to_the_command_line() -> None:
    project = make_tiny(budget=0.9)
    plain = tuning_settings(run.RunConfig(), project)
    assert (plain.optimizer, plain.learning_rate) == ("adamw", pretrained.RECIPE["learning_rate"])
    asked = tuning_settings(run.RunConfig(learning_rate=0.1), project)
    assert (asked.optimizer, asked.learning_rate) == ("adamw", 0.1)


def test_a_preset_that_returns_something_else_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setitem(PRESETS, "wrong_here", "builtins:dict")
    with pytest.raises(ConfigError, match="returned a dict"):
        open_named("wrong_here")
    with pytest.raises(ConfigError, match="Did you mean 'stories260K'"):
        open_named("stories260k")


def test_a_preset_without_its_data_says_where_it_looked(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("prune_env.experiments.data.places.SHARED", tmp_path / "shared")
    monkeypatch.setenv("PRUNE_ENV_DATA", str(tmp_path))
    for name in PRESETS:
        with pytest.raises(DataError, match=r"nothing at .*PRUNE_ENV_DATA"):
            open_named(name)


def test_characters_of_a_text(tmp_path: Path) -> None:
    text = "to be or not to be " * 30
    (tmp_path / "input.txt").write_text(text)
    splits, alphabet = load_characters(tmp_path / "input.txt", length=10)
    assert alphabet == "".join(sorted(set(text)))
    every = torch.cat([splits.train, splits.val, splits.test]).flatten().tolist()
    assert "".join(alphabet[k] for k in every) == text[: len(every)]
    with pytest.raises(DataError, match="too few"):
        load_characters(tmp_path / "input.txt", length=500)


def write_sentences(folder: Path, count: int = 80) -> None:
    """Good films are good; every third sentence has a word of its own."""
    lines = [
        f"{n % 2} a {'good' if n % 2 else 'bad'} film w{n if n % 3 == 0 else ''}"
        for n in range(count)
    ]
    for part, share in (("train", lines), ("dev", lines[:20]), ("test", lines[20:40])):
        (folder / f"x.{part}").write_text("\n".join(share))


def test_words_of_sentences(tmp_path: Path) -> None:
    write_sentences(tmp_path)
    words = load_sentences(tmp_path, length=8)
    assert words.vocabulary == END + 1 + len({"a", "good", "bad", "film", "w"})
    first = words.train.ids_NT[0].tolist()
    assert first[0] == START
    assert first[4:7] == [UNKNOWN, END, PAD]
    assert words.train.labels_N.tolist() == [n % 2 for n in range(80)]
    (tmp_path / "x.dev").write_text("no label here")
    with pytest.raises(DataError, match="line 1 of"):
        load_sentences(tmp_path)
    (tmp_path / "x.dev").unlink()
    with pytest.raises(DataError, match="0 files"):
        load_sentences(tmp_path)


@pytest.mark.long
def test_a_classifier_of_sentences_is_trained_once_and_searched(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    write_sentences(tmp_path, 160)
    words = load_sentences(tmp_path, length=8)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    small["intermediate_size"] = 48
    settings = FinetuneSettings(epochs=8, learning_rate=1e-2, optimizer="adamw")
    make = partial(
        sentence_project, "s", words, small, settings=settings, budget=0.9,
        calibration_samples=50, reward_samples=100,
    )  # fmt: skip
    project = make()
    assert evaluate(project.dense, project.test).figure == 1.0
    kept = project.task.decode([0.0] * project.task.length)
    assert project.task.outcome(kept).metrics.samples == 100
    monkeypatch.setattr(
        "prune_env.experiments.networks.dense.finetune", None
    )  # a second training would call it
    again = make().dense.state_dict()
    assert all(
        torch.equal(value, again[name]) for name, value in project.dense.state_dict().items()
    )


@pytest.mark.long
def test_other_data_or_settings_are_another_network(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path))
    loaders = TokenBatches(rows(4), 4), TokenBatches(rows(4), 4)
    settings = FinetuneSettings(epochs=1, optimizer="adamw", learning_rate=1e-3)
    for seed, data in ((0, rows(4)), (1, rows(4)), (0, rows(5)), (0, rows(4))):
        chosen = FinetuneSettings(**{**vars(settings), "seed": seed})
        for options in ({"budget": 0.5}, {"budget": 0.6, "criterion": "l1"}):  # of no consequence
            trained("t", tiny, (TokenBatches(data, 4), loaders[1]), chosen, options)
    assert len(list(tmp_path.glob("t-*/model.safetensors"))) == 3
    assert not list(tmp_path.glob("t-*/checkpoint.pt"))


@pytest.mark.long
def test_a_killed_training_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path))
    loaders = TokenBatches(rows(8), 4, shuffle=True), TokenBatches(rows(4), 4)
    settings = FinetuneSettings(epochs=3, optimizer="adamw", learning_rate=1e-3)
    whole = trained("t", tiny, loaders, settings, {}).state_dict()
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)

    class Killed(Exception):
        pass

    def kill(*args: Any, on_epoch: Any, **kwargs: Any) -> Any:
        def die(record: Any) -> None:
            if record.epoch == 2:
                raise Killed

        return finetune(*args, on_epoch=die, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("prune_env.experiments.networks.dense.finetune", kill)
        with pytest.raises(Killed):
            trained("t", tiny, loaders, settings, {})
    assert list(tmp_path.glob("t-*/checkpoint.pt"))
    again = trained("t", tiny, loaders, settings, {}).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_price_without_weights_is_that_of_the_network(folder: Path) -> None:
    """Against the cost model, which runs the network with its weights."""
    found = pricing.price(str(folder), length=16, dtype="float32")
    macs, params, size = CostModel.of(tiny(), {"input_ids": rows(1)}, ()).dense
    assert found.macs == macs
    assert found.params == params
    assert found.bytes == 4 * params <= size
    layers, heads, width = 2, 2, 8
    assert found.cache_bytes == 2 * layers * heads * width * 16 * 4
    assert sum(part.macs for part in found.parts) == found.macs
    assert sum(part.params for part in found.parts) == found.params


def test_a_decoded_token_costs_its_matrices_and_a_row_of_attention(folder: Path) -> None:
    found = pricing.price(str(folder), length=16)
    attention = 2 * 2 * 4 * 8 * 17 * 1  # q k and p v, 2 layers, 4 heads of 8, 17 keys
    products = sum(part.macs for part in found.parts if part.params) // 16
    assert found.decode_macs == products + attention


def test_experts_cost_what_is_routed_to_them(tmp_path: Path) -> None:
    sizes = {k: v for k, v in CONFIG.items() if k != "sliding_window"}
    config = transformers.MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2)
    config.save_pretrained(tmp_path)
    found = pricing.price(str(tmp_path), length=8)
    (experts,) = (part for part in found.parts if part.name.endswith("experts"))
    one = 3 * CONFIG["hidden_size"] * CONFIG["intermediate_size"]
    assert experts.params == 2 * 4 * one
    assert experts.macs == 2 * 8 * 2 * one


@pytest.mark.long
def test_inspect_prices_seven_billion(capsys: Any) -> None:
    assert inspect.main(["--hf-config", "mistral", "--length", "128"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])["price"]
    assert found["params"] == 7_241_732_096
    assert found["cache_bytes"] == 2 * 32 * 8 * 128 * 128 * 2
    assert found["seconds"] < 30  # about one on an idle machine
    assert "model.layers.*.mlp.down_proj" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hf-config", "mistrall"], "no config 'mistrall'"),
        (["--hf-config", "bert", "--length", "4096"], "512 positions"),
        (["--hf-config", "bert", "--length", "0"], "at least one token"),
        (["--hf-config", "bert", "--dtype", "int3"], "bfloat16"),
    ],
)
def test_bad_prices_end_with_status_2(arguments: list[str], words: str, capsys: Any) -> None:
    assert inspect.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_perplexity_by_command(folder: Path, capsys: Any) -> None:
    assert perplexity.main(["--model", str(folder)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["parts"]["test"]["tokens"] == 90
    assert presets.tokens_beside(folder) == folder / "tokens.npz"
