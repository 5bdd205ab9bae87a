"""Files that are read: damaged by a disk, edited by hand, or made by somebody else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from prune_env import PruningPlan, apply, find_groups, finetune, load, save
from prune_env.criteria.elementwise import score_units
from prune_env.experiments.benches.fuzz_inputs import (
    Attempt,
    Door,
    Random,
    as_text,
    damaged,
    edited,
    odd,
    require,
)
from prune_env.experiments.benches.fuzz_values import network, samples
from prune_env.experiments.data.splits import load_splits
from prune_env.experiments.data.tokens import load_tokens
from prune_env.experiments.networks.models import load_weights
from prune_env.experiments.networks.pretrained import load_pretrained
from prune_env.pipeline.once import once
from prune_env.plan.ladder_file import load_ladders, save_ladders
from prune_env.quality.batches import take_batches
from prune_env.recovery.finetune import FinetuneSettings
from prune_env.repair.build import build_ladders
from prune_env.search.baselines import random as random_search
from prune_env.search.ledger import Ledger
from prune_env.storage import SEAL, seal
from prune_env.tasks.cache import cached_tensors
from prune_env.testing import toy_task

Edit = Callable[[Random, bytes], tuple[bytes, bool]]
"""New bytes, and whether they are a well-formed file of its kind, which may mean something else."""


def file_door(path: Path, read: Callable[[], Any], edit: Edit | None, sealed: bool) -> Attempt:
    """Damages the file as it is now. `sealed`: what means something else must be refused."""
    original, meant = path.read_bytes(), read()

    def attempt(random: Random) -> str:
        legitimate = not sealed
        if edit is not None and random.random() < 0.6:
            data, well_formed = edit(random, original)
            legitimate = legitimate or well_formed
        else:
            data = damaged(random, original)
        path.write_bytes(data)
        try:
            found = read()
        finally:
            path.write_bytes(original)
        if found == meant:
            return "same"
        require(legitimate, "a damaged file was taken, and means something else")
        return "valid"

    return attempt


def edit_json(random: Random, data: bytes, required: bool = True) -> tuple[bytes, bool]:
    """A document edited by hand: its seal as it was, made anew, or taken out."""
    content = json.loads(data)
    how = int(random.integers(3))
    if how == 0:
        changed = edited(random, content)
        free = not required and isinstance(changed, dict) and SEAL not in changed
        return as_text(random, changed).encode(), free
    content.pop(SEAL, None)
    changed = edited(random, content)
    if not isinstance(changed, dict):
        return as_text(random, changed).encode(), False
    if how == 1 and not required:
        return as_text(random, changed).encode(), True
    return seal(changed, indent=1).encode(), True


def edit_tensors(random: Random, data: bytes) -> tuple[bytes, bool]:
    """A safetensors file with another header, most often sealed again."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    described = header.get("__metadata__", {})
    inner = [name for name, text in described.items() if text[:1] == "{"]
    if inner and random.random() < 0.7:
        name = inner[random.integers(len(inner))]
        content = json.loads(described[name])
        content.pop(SEAL, None)
        described[name] = json.dumps(edited(random, content))
    else:
        header = edited(random, header)
    text = json.dumps(header).encode()
    built = len(text).to_bytes(8, "little") + text + data[8 + size :]
    return (resealed(built), True) if random.random() < 0.8 else (built, False)


def resealed(data: bytes) -> bytes:
    """The file with the digest that it should have, where it has a place for one."""
    found = re.search(rb'"sha256": ?"([0-9a-f]{64})"', data)
    if found is None:
        return data
    start, stop = found.span(1)
    blank = data[:start] + b"0" * 64 + data[stop:]
    return data[:start] + hashlib.sha256(blank).hexdigest().encode() + data[stop:]


def contents(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors as something that can be compared to the bit."""
    return {
        name: (str(t.dtype), tuple(t.shape), t.detach().contiguous().reshape(-1).view(torch.uint8)
               .numpy().tobytes() if t.numel() else b"")
        for name, t in tensors.items()
    }  # fmt: skip


def plan_of(model: nn.Module) -> PruningPlan:
    inputs = samples(1)[0][0]
    return PruningPlan.uniform(model, find_groups(model, inputs), 0.5)


def _plan(folder: Path) -> Attempt:
    path = plan_of(network()).save(folder / "plan.json")

    def read() -> Any:
        plan = PruningPlan.load(path)
        return plan.groups, {name: tuple(units) for name, units in plan.kept.items()}, plan.notes

    return file_door(path, read, partial(edit_json, required=False), sealed=True)


def _journal(folder: Path) -> Attempt:
    """A finished search read from its journal again must be what it was."""
    path, task = folder / "journal.jsonl", toy_task(budget=0.6)

    def read() -> Any:
        ledger = Ledger(task, 6, path)
        ledger.run(random_search, 0)
        return [(o.kept, o.metrics, dict(o.terms), o.eligible) for o in ledger.history]

    read()

    def edit(random: Random, data: bytes) -> tuple[bytes, bool]:
        lines = data.splitlines(keepends=True)
        number = int(random.integers(len(lines)))
        how = int(random.integers(4))
        if how == 0:  # lines in another order, fewer, or one twice
            order = random.permutation(len(lines))[: random.integers(1, len(lines) + 1)]
            return b"".join([lines[k] for k in order]), False
        lines[number], well_formed = edit_json(random, lines[number])
        lines[number] = lines[number].replace(b"\n", b" ") + b"\n"
        return b"".join(lines), well_formed

    return file_door(path, read, edit, sealed=True)


def _bundle(folder: Path) -> Attempt:
    model = network()
    plan = plan_of(model)
    save(folder, apply(plan, model, samples()), plan, {"note": 1})
    path = folder / "model.safetensors"
    read = lambda: contents(load(folder, network).state_dict())  # noqa: E731
    return file_door(path, read, edit_tensors, sealed=True)


def _checkpoint(folder: Path) -> Attempt:
    """A tuned network continued from a checkpoint must be that of the whole run."""
    path, data = folder / "tuned.ckpt", samples(2)
    settings = FinetuneSettings(epochs=1)
    model = network()

    def read() -> Any:
        result = finetune(model, data, data, settings=settings, checkpoint=path)
        return contents(result.model.state_dict())

    read()
    return file_door(path, read, None, sealed=True)


def _ladders(folder: Path) -> Attempt:
    path, model = folder / "ladders.safetensors", network()
    groups = [g for g in find_groups(model, samples(1)[0][0]) if not g.frozen]
    score = lambda portion, statistics: score_units(model, portion, "l1")  # noqa: E731
    save_ladders(build_ladders(model, take_batches(samples(), 20), groups, score).ladders, path)

    def read() -> Any:
        ladders = load_ladders(path, model)
        losses = {name: ladders.predicted_loss(name, 3) for name in ladders.groups}
        return losses, contents(ladders.orders)

    return file_door(path, read, edit_tensors, sealed=True)


def _cache(folder: Path) -> Attempt:
    """A damaged cache must never be used."""
    path = folder / "cache.safetensors"
    made = {"x": torch.arange(12.0).reshape(3, 4), "y": torch.arange(3)}
    read = lambda: contents(cached_tensors(path, lambda: made, lambda t: set(t) == {"x", "y"}))  # noqa: E731
    read()
    return file_door(path, read, None, sealed=True)


def _weights(folder: Path) -> Attempt:
    """Weights of anybody: no seal, so what fits and is finite is taken."""
    state = network().state_dict()
    first, second = folder / "w.safetensors", folder / "w.pt"
    first.write_bytes(safetensors.torch.save(state))
    torch.save(state, second)
    doors = [
        file_door(p, partial(_loaded, p), e, sealed=False)
        for p, e in ((first, edit_tensors), (second, None))
    ]
    return lambda random: doors[random.integers(2)](random)


def _loaded(path: Path) -> dict[str, Any]:
    return contents(load_weights(network(), path).state_dict())


def _model_folder(folder: Path) -> Attempt:
    """A folder as the transformers library writes it."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "vocab_size": 16,
    }
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    read = lambda: contents(load_pretrained(folder).state_dict())  # noqa: E731
    plain = lambda random, data: (as_text(random, edited(random, json.loads(data))).encode(), True)  # noqa: E731
    doors = [
        file_door(folder / name, read, edit, sealed=False)
        for name, edit in (("config.json", plain), ("model.safetensors", edit_tensors))
    ]
    return lambda random: doors[int(random.random() < 0.3)](random)


def odd_array(random: Random, like: Any) -> Any:
    """An array like another, but of another type, shape or range."""
    how = int(random.integers(6))
    if how == 0:
        kinds = ("u1", "i8", "f4", "f8", "?", "c8", "U3", "M8[s]", "f2", "u8")
        return like.astype(np.dtype(kinds[random.integers(len(kinds))]), casting="unsafe")
    if how == 1:
        return like[: random.integers(len(like) + 1)]
    if how == 2:
        return like.reshape(-1)[: random.integers(like.size + 1)].reshape(-1, 1)
    if how == 3 and like.dtype.kind in "iu":
        changed = like.astype(np.int64)
        extremes = (-1, 10**9, 2**40, -(2**40), 300)
        changed.reshape(-1)[random.integers(like.size)] = extremes[random.integers(5)]
        return changed
    if how == 4:
        return np.full((2, 3, 4, 4), np.nan if random.random() < 0.5 else 0.5)
    try:
        return np.array(odd(random))
    except ValueError:
        return np.zeros(0)


def zipped(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: a for name, a in arrays.items() if a.dtype != object})
    return buffer.getvalue()


def edit_arrays(arrays: dict[str, Any], random: Random, data: bytes) -> tuple[bytes, bool]:
    """Another npz file, of odd arrays or under odd names."""
    changed = dict(arrays)
    names = list(changed)
    name = names[random.integers(len(names))]
    if random.random() < 0.2:
        changed[("images", "labels", "x", "train")[random.integers(4)]] = changed.pop(name)
    else:
        changed[name] = odd_array(random, changed[name])
    return zipped(changed), True


def _pictures(count: int = 12) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "images": random.integers(0, 255, (count, 8, 8), dtype=np.uint8),
        "labels": np.arange(count) % 2,
    }


def _split_contents(path: Path) -> Any:
    splits = load_splits(path, seed=0)
    parts = {n: getattr(splits, n) for n in ("train", "val", "test")}
    for part in parts.values():
        require(len(part.images) == len(part.labels), "images and labels differ in number")
        require(int(part.labels.max()) < len(splits.classes) < 10**6, "labels without a class")
    return {n: contents(part._asdict()) for n, part in parts.items()}, splits.classes


def _npz(folder: Path) -> Attempt:
    path, arrays = folder / "data.npz", _pictures()
    path.write_bytes(zipped(arrays))
    read = partial(_split_contents, path)
    return file_door(path, read, partial(edit_arrays, arrays), sealed=True)


def _uncached(folder: Path, attempt: Attempt) -> Attempt:
    """The same without what earlier inputs left in the cache of decoded images."""
    cache = folder / "cache"
    os.environ["PRUNE_ENV_CACHE"] = str(cache)

    def cleared(random: Random) -> str:
        shutil.rmtree(cache, ignore_errors=True)
        return attempt(random)

    return cleared


def _pngs(folder: Path) -> Attempt:
    import PIL.Image

    os.environ["PRUNE_ENV_CACHE"] = str(folder / "cache")
    root, arrays = folder / "pictures", _pictures()
    for number, (pixels, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
        file = root / str(label) / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(file)
    read = partial(_split_contents, root)
    return _uncached(folder, file_door(root / "0" / "00.png", read, None, sealed=False))


def _parquet(folder: Path) -> Attempt:
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    os.environ["PRUNE_ENV_CACHE"] = str(folder / "cache")
    import PIL.Image
    import pyarrow
    import pyarrow.parquet

    path, arrays, encoded = folder / "train.parquet", _pictures(), []
    for pixels in arrays["images"]:
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    labels = arrays["labels"].tolist()

    def written(columns: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
        return buffer.getvalue()

    def edit(random: Random, data: bytes) -> tuple[bytes, bool]:
        columns: dict[str, Any] = {"image": list(encoded), "label": list(labels)}
        name = ("image", "label")[random.integers(2)]
        place = int(random.integers(len(labels)))
        columns[name][place] = (None, b"", b"x", -1, 10**9, 2**40)[random.integers(6)]
        if random.random() < 0.3:
            columns["more"] = [odd(random)] * len(labels)
        try:
            return written(columns), True
        except (pyarrow.ArrowException, OverflowError):  # no parquet can hold it
            return damaged(random, data), False

    path.write_bytes(written({"image": encoded, "label": labels}))
    read = partial(_split_contents, folder / "train.parquet")
    return _uncached(folder, file_door(path, read, edit, sealed=False))


def _tokens(folder: Path) -> Attempt:
    ids = np.random.default_rng(0).integers(0, 50, (12, 8))
    arrays = {"train": ids, "val": ids[:2], "test": ids[2:4]}
    paths = [folder / f"t{suffix}" for suffix in (".npz", ".npy", ".txt", ".bin")]
    paths[0].write_bytes(zipped(arrays))
    np.save(paths[1], ids)
    paths[2].write_text(" ".join(map(str, ids.reshape(-1).tolist())), encoding="utf-8")
    ids.astype("<u2").tofile(paths[3])

    def read(path: Path) -> Any:
        splits = load_tokens(path, length=8)
        parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
        require(all(int(p.min()) >= 0 for p in parts.values()), "an id below 0")
        return contents(parts)

    edits: tuple[Edit | None, ...] = (partial(edit_arrays, arrays), None, None, None)
    doors = [
        file_door(path, partial(read, path), edit, sealed=path.suffix == ".npz")
        for path, edit in zip(paths, edits, strict=True)
    ]
    return lambda random: doors[random.integers(4)](random)


def _policy(folder: Path) -> Attempt:
    """A trained agent, rebuilt from its file."""
    from prune_env.agents.sb3 import learn, load_policy

    ledger = Ledger(toy_task(budget=0.6, length=2), 8, folder / "journal.jsonl")
    ledger.run(partial(learn, "a2c"), 0)
    path = folder / "policy.safetensors"

    def read() -> Any:
        agent = load_policy("a2c", path)
        return contents(agent.policy.state_dict()), agent.num_timesteps

    return file_door(path, read, edit_tensors, sealed=True)


def _stage(folder: Path) -> Attempt:
    """What a stage of a run found, kept for the next call."""
    path = folder / "stage.json"
    made_of = {"data": "0123", "options": "4567"}
    read = lambda: once(path, made_of, lambda: {"accuracy": 0.5, "plan": [1, 2]})  # noqa: E731
    read()
    return file_door(path, read, edit_json, sealed=True)


FILES = (
    Door("plan", "`plan.json`: bytes, fields, sealed again or not", 14, _plan),
    Door("journal", "a search's journal, then the search again", 8, _journal),
    Door("bundle", "a saved network: bytes, header, plan and description in it", 5, _bundle),
    Door("checkpoint", "of fine-tuning, then the run again", 2, _checkpoint),
    Door("ladders", "a file of ladders: bytes and header", 4, _ladders),
    Door("cache", "cached tensors", 8, _cache),
    Door("stage", "what a stage of a run keeps", 8, _stage),
    Door("policy", "a trained policy, then the agent", 0.8, _policy),
    Door("weights", "`--weights` of anybody, safetensors and torch.save", 5, _weights),
    Door("hf", "folders of the transformers library: config and weights", 0.8, _model_folder),
    Door("npz", "images as npz: bytes, arrays, labels", 6, _npz),
    Door("images", "a folder of PNG files", 2, _pngs),
    Door("parquet", "images as parquet", 3, _parquet),
    Door("tokens", "token ids as npz, npy, text and raw", 8, _tokens),
)
