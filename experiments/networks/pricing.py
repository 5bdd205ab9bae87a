"""What a network of the transformers library costs, from its config alone: nothing is computed.

The network is built on torch's meta device, where tensors have shapes and no values, so a model of
many billions of parameters is priced in about a second on any machine. Attention is counted as
plain matrix products (the math backend); element-wise work is not counted.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prune_env.errors import ConfigError, ModelError
from prune_env.experiments.networks.pretrained import first_line
from prune_env.experiments.report.page import Cell, Table
from prune_env.pipeline.formats import percent, scaled
from prune_env.structure.skip import is_cache

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADS = ("ForMaskedLM", "ForCausalLM", "ForImageClassification", "")
"""What the library calls a model with an output layer, in the order they are tried
where the config names no class."""
EXPERTS = "batched_mm"
"""How routed experts are run: as one product, since which expert gets what is not known."""


@dataclass(frozen=True)
class Part:
    """Modules of the same place in every layer.

    Attributes:
        name: their path, the number of the layer written as *.
        count: how many there are.
        params: elements of all of them; a tied tensor counts where it is met first.
        macs: of all of them without the modules inside, for one sample; where there are no params,
            products of activations (queries with keys).
    """

    name: str
    count: int
    params: int
    macs: int


@dataclass(frozen=True)
class Price:
    """What a config costs, for one sample.

    Attributes:
        name: class of the network.
        params: its parameters, tied ones once.
        bytes: what they take in the precision asked for.
        length: tokens of the sample (None for images).
        macs: of a forward pass over the sample: prefill, for a language model.
        decode_macs: of one more token, with the keys and values of `length` tokens at hand.
        cache_bytes: what those keys and values take.
        seconds: it took to find out.
        peak_bytes: most memory the process has held so far, imports included.
        parts: where parameters and MACs are.
    """

    name: str
    params: int
    bytes: int
    length: int | None
    macs: int
    decode_macs: int | None
    cache_bytes: int | None
    seconds: float
    peak_bytes: int
    parts: tuple[Part, ...]

    @property
    def figures(self) -> dict[str, Any]:
        """Everything but the parts, JSON-able."""
        return {key: value for key, value in asdict(self).items() if key != "parts"}


def price(name: str, *, length: int = 2048, dtype: str = "bfloat16") -> Price:
    """Price a config.

    Args:
        name: an architecture of the library ("mistral": its default config), a config.json, or a
            folder that holds one.
        length: tokens of the sample; images have the size that the config says.
        dtype: of parameters, keys and values; a name in `DTYPES`.

    Raises:
        ConfigError: the library is not installed or knows no such config, or an option is out of
            range.
        ModelError: the network cannot be run without values.
    """
    library = _library()
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is '{dtype}'; choose of {', '.join(DTYPES)}.")
    if length < 1:
        raise ConfigError(f"length is {length}; at least one token is needed.")
    config = _config(library, name)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ConfigError(f"length is {length}, but '{name}' has {positions} positions.")
    kind = _class_of(library, config, name)
    start = time.perf_counter()
    with _meta(DTYPES[dtype]):
        model = _built(kind, config)
        inputs = _inputs(model, length)
        prefill, cache = _count(model, inputs, name)
        held = None if cache is None else _bytes_of(cache)
        again = None if cache is None else _decode(model, cache, name)
    seconds = time.perf_counter() - start
    parameters = list(model.parameters())
    text = "input_ids" in inputs
    return Price(
        name=type(model).__name__,
        params=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        length=length if text else None,
        macs=prefill.get_total_flops() // 2,
        decode_macs=again,
        cache_bytes=held,
        seconds=seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        parts=tuple(_parts(model, prefill)),
    )


def _library() -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("transformers is not installed. Try: pip install transformers")
    return importlib.import_module("transformers")


def _config(library: Any, name: str) -> Any:
    path = Path(name).expanduser()
    try:
        if path.exists():
            return library.AutoConfig.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        return library.AutoConfig.for_model(name)
    except Exception as error:  # the library lets through whatever a damaged config runs into
        raise ConfigError(
            f"there is no config '{name}': {first_line(error)} Give the name of an architecture, "
            "as in mistral, a config.json, or a folder with one."
        ) from error


def _built(kind: Any, config: Any) -> nn.Module:
    config._experts_implementation = EXPERTS
    config.use_cache = True  # some folders say no; how one decodes is priced here
    with torch.random.fork_rng([]):
        model: nn.Module = kind(config)
    return model.eval()


def _class_of(library: Any, config: Any, name: str) -> Any:
    for named in config.architectures or ():  # from a file: anything of the library but a network
        kind = getattr(library, str(named), None)
        if isinstance(kind, type) and issubclass(kind, library.PreTrainedModel):
            return kind
    for head in HEADS:
        auto = getattr(library, f"AutoModel{head}")
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise ConfigError(f"the library makes no network from '{name}' ({type(config).__name__}).")


@contextmanager
def _meta(dtype: torch.dtype) -> Iterator[None]:
    """Tensors are made without values, in `dtype`; attention is matrix products."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_default_dtype(before)


def _inputs(model: Any, length: int) -> dict[str, Tensor]:
    if model.main_input_name == "pixel_values":
        config, size = model.config, model.config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": torch.empty(1, config.num_channels, height, width)}
    return {"input_ids": torch.empty(1, length, dtype=torch.int64)}


def _count(model: nn.Module, inputs: Mapping[str, Any], name: str) -> tuple[FlopCounterMode, Any]:
    """What a pass costs, and the keys and values that it leaves, if any."""
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            output = model(**inputs)
    except Exception as error:  # whatever a network does with values that are not there
        raise ModelError(
            f"the network of '{name}' cannot be run without values: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:200]}"
        ) from error
    return counter, next(filter(is_cache, output.values()), None)


def _decode(model: nn.Module, cache: Any, name: str) -> int:
    # transformers 5.24 renamed the argument.
    known = inspect.signature(model.forward).parameters
    word = "cache" if "cache" in known else "past_key_values"
    step = {"input_ids": torch.empty(1, 1, dtype=torch.int64), word: cache}
    counter, _ = _count(model, step, name)
    return int(counter.get_total_flops()) // 2


def _bytes_of(cache: Any) -> int:
    """What the keys and values of all layers take."""
    total = 0
    for layer in cache.layers:
        for held in (layer.keys, layer.values):
            total += held.numel() * held.element_size()
    return total


def _parts(model: nn.Module, counter: FlopCounterMode) -> Iterator[Part]:
    """Modules with parameters of their own, those of all layers together."""
    flops = counter.get_flop_counts()
    root, seen = type(model).__name__, set[int]()
    found: dict[str, list[tuple[int, int]]] = {}
    for path, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        full = f"{root}.{path}" if path else root
        macs = (_total(flops, full, module) - _inside(flops, full, module)) // 2
        if own or macs > 0:
            star = re.sub(r"\.\d+(?=\.|$)", ".*", path)
            found.setdefault(star, []).append((sum(p.numel() for p in own), macs))
    for name, entries in found.items():
        params, macs = (sum(column) for column in zip(*entries, strict=True))
        yield Part(name, len(entries), params, macs)


def _total(flops: Mapping[str, Mapping[Any, int]], path: str, module: nn.Module) -> int:
    """FLOPs of a module; a list of modules is not called itself and has those of its items."""
    return sum(flops[path].values()) if path in flops else _inside(flops, path, module)


def _inside(flops: Mapping[str, Mapping[Any, int]], path: str, module: nn.Module) -> int:
    return sum(_total(flops, f"{path}.{leaf}", child) for leaf, child in module.named_children())


def price_text(found: Price) -> str:
    """The price as a table and one line for each figure."""
    lines = tuple(
        (
            Cell(part.name), Cell(str(part.count)), Cell(scaled(part.params)),
            Cell(percent(part.params / max(1, found.params), 1)), Cell(scaled(part.macs)),
            Cell(percent(part.macs / max(1, found.macs), 1)),
        )
        for part in found.parts
    )  # fmt: skip
    columns = ("modules", "count", "parameters", "share", "MACs", "share of MACs")
    sample = "an image" if found.length is None else f"{found.length:,} tokens"
    facts = [
        f"parameters {scaled(found.params)} ({scaled(found.bytes, 'B')})",
        f"MACs of {sample} {scaled(found.macs)}",
    ]
    if found.decode_macs is not None:
        facts.append(f"one more token {scaled(found.decode_macs)}")
        facts.append(f"keys and values {scaled(found.cache_bytes, 'B')}")
    facts.append(f"{found.seconds:.2f} s, peak memory {scaled(found.peak_bytes, 'B')}")
    return f"{Table(columns, lines).plain()}\n{found.name}: {'; '.join(facts)}"
