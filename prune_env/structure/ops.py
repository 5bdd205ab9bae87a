"""What each op does to labels: one small rule per kind of op, in one table.

Legend: B batch, C channels, I in, O out, N rows of a matrix product, G groups of a convolution.
A rule returns the labels of the op's result, or None when no unit owns it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from prune_env.structure.labels import squash, varies
from prune_env.structure.trace import Call, Rule, Trace

COMPUTED = "weights computed on the fly"


def unknown(trace: Trace, call: Call) -> Tensor | None:
    return trace.give_up(call, f"unknown op {call.name}")


def source(trace: Trace, call: Call) -> Tensor | None:
    """Tensors made from nothing (zeros, arange, random numbers) belong to no unit."""
    return None


def like(trace: Trace, call: Call) -> Tensor | None:
    """Tensors made in the sizes of another (dropout's noise) have its units, where they fit."""
    x, shape = call.args[0], call.out.shape
    if not trace.labelled(x) or x.ndim != len(shape):
        return None
    labels = trace.labels(x)
    for dim, size in enumerate(shape):
        if labels.shape[dim] != size:
            if varies(labels, dim):
                return None
            labels = labels.narrow(dim, 0, 1)
    return labels.expand(shape)


def restrided(trace: Trace, call: Call) -> Tensor | None:
    """as_strided that changes nothing but the order in memory, as pooling does to channels_last."""
    x, out = call.args[0], call.out
    if x.shape == out.shape and torch.equal(x, out):
        return same(trace, call)
    return unknown(trace, call)


def copy(trace: Trace, call: Call) -> Tensor | None:
    """x.copy_(y): ties them, unless x is a part of a tensor, which does not hear of it."""
    x = call.args[0]
    whole = x.untyped_storage().nbytes() == x.numel() * x.element_size()
    return pointwise(trace, call) if whole else unknown(trace, call)


def pointwise(trace: Trace, call: Call) -> Tensor | None:
    """Elementwise arithmetic ties what meets; an operand broadcast over units does not."""
    shape = call.out.shape if isinstance(call.out, Tensor) else None
    if shape is None:
        return unknown(trace, call)
    result: Tensor | None = None
    for tensor in call.tensors:
        if tensor.numel() == 1:
            continue
        labels, seen = trace.labels(tensor).expand(shape), _seen_shape(tensor)
        if result is None:
            result, shape_so_far = labels, seen
            continue
        result = _meet(trace, (result, shape_so_far), (labels, seen))
        shape_so_far = torch.broadcast_shapes(shape_so_far, seen)
    return result


def _seen_shape(tensor: Tensor) -> torch.Size:
    """Sizes before any `expand`: an expanded mask is one that is broadcast."""
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    return torch.Size(1 if stride == 0 else size for size, stride in strides)


def _meet(trace: Trace, a: tuple[Tensor, torch.Size], b: tuple[Tensor, torch.Size]) -> Tensor:
    (first, first_shape), (second, second_shape) = a, b
    if _broadcast_over(second_shape, first):
        trace.book.freeze(second, "broadcast across units")
        if not _broadcast_over(first_shape, second):
            return first
    if _broadcast_over(first_shape, second):
        trace.book.freeze(first, "broadcast across units")
        return second
    trace.book.tie(first, second, "combined with values that no unit owns")
    return torch.where(first > 0, first, second)


def _broadcast_over(shape: torch.Size, other: Tensor) -> bool:
    """Whether a tensor of `shape` is stretched along a dim where `other` has several units."""
    padded = [1] * (other.ndim - len(shape)) + list(shape)
    return any(size == 1 < other.shape[d] and varies(other, d) for d, size in enumerate(padded))


def move(trace: Trace, call: Call) -> Tensor | None:
    """Ops that only move data are run on the labels."""
    replaced = tree_map(lambda v: _movable(trace, v), (call.args, call.kwargs))
    results = call.func(*replaced[0], **replaced[1])
    outs = call.out if isinstance(call.out, (list, tuple)) else [call.out]
    labels = results if isinstance(results, (list, tuple)) else [results]
    for out, label in zip(outs, labels, strict=True):
        trace.remember(out, squash(label))
    return None


def _movable(trace: Trace, value: object) -> object:
    return trace.labels(value).contiguous() if isinstance(value, Tensor) else value


def permute(trace: Trace, call: Call) -> Tensor | None:
    """Transpositions; those of a weight are remembered, so that x @ W.T is recognised."""
    x, order = call.args[0], list(range(call.args[0].ndim))
    if call.name == "t":
        order.reverse()
    elif call.name == "transpose":
        a, b = call.args[1], call.args[2]
        order[a], order[b] = order[b], order[a]
    else:
        order = [dim % x.ndim for dim in call.args[1]]
    if trace.permuted(x, call.out, tuple(order)):
        return None
    return trace.labels(x).permute(order)


def same(trace: Trace, call: Call) -> Tensor | None:
    """Copies and aliases."""
    x = call.args[0]
    if trace.permuted(x, call.out, tuple(range(x.ndim))):
        return None
    return trace.labels(x)


def view(trace: Trace, call: Call) -> Tensor | None:
    """Reshapes; a dim of units cut in factors ties units (see `Reading.factored`)."""
    x = call.args[0]
    labels = trace.labels(x)
    shaped = squash(labels.reshape(call.out.shape))
    for old, new in _blocks(tuple(x.shape), tuple(call.out.shape)):
        moving = [dim for dim in new if varies(shaped, dim)]
        if len(moving) > max(1, sum(varies(labels, dim) for dim in old)):
            trace.ambiguous.add("factored")
            free = moving[FREE[trace.reading.factored]]
            for dim in moving:
                shaped = shaped if dim == free else _tied_along(trace, shaped, dim)
    return shaped


FREE = {"outer": -1, "inner": 0, "middle": -2}
"""Which of the factors of a dim may have another size, by `Reading.factored`."""


def _tied_along(trace: Trace, labels: Tensor, dim: int) -> Tensor:
    """Tie what differs along `dim`; from there on the first label speaks for all."""
    first = labels.narrow(dim, 0, 1).expand(labels.shape)
    trace.book.tie(labels, first)
    return squash(first)


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[range, range]]:
    """The shortest runs of old dims and the runs of new dims that take their place."""
    blocks, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        start_i, start_j, left, right = i, j, old[i], new[j]
        while left != right:
            if left < right:
                i += 1
                left *= old[i]
            else:
                j += 1
                right *= new[j]
        i, j = i + 1, j + 1
        blocks.append((range(start_i, i), range(start_j, j)))
    return blocks


def split(trace: Trace, call: Call) -> Tensor | None:
    """Equal chunks of a dim of units stay equal: units at the same place of each are tied."""
    x, dim = call.args[0], call.argument("dim", 0) % call.args[0].ndim
    labels = trace.labels(x)
    if varies(labels, dim):
        sizes = {out.shape[dim] for out in call.out}
        if len(sizes) > 1:
            trace.book.freeze(labels, "split into unequal parts")
        else:
            _tie_chunks(trace, labels, dim, sizes.pop())
    return move(trace, call)


def _tie_chunks(trace: Trace, labels: Tensor, dim: int, size: int) -> None:
    first = labels.narrow(dim, 0, size)
    for start in range(size, labels.shape[dim], size):
        trace.book.tie(first, labels.narrow(dim, start, size))


def slice_(trace: Trace, call: Call) -> Tensor | None:
    """A cut through a dim of units is either one of its equal chunks or freezes them."""
    x, dim = call.args[0], call.argument("dim", 0) % call.args[0].ndim
    labels, size = trace.labels(x), call.out.shape[dim]
    if varies(labels, dim) and size < x.shape[dim]:
        start = call.argument("start", 0) or 0
        start = start + x.shape[dim] if start < 0 else start
        even = x.shape[dim] % max(size, 1) == 0 and start % max(size, 1) == 0
        if call.argument("step", 1) == 1 and size > 0 and even:
            _tie_chunks(trace, labels, dim, size)
        else:
            trace.book.freeze(labels, "sliced at a fixed place")
    return move(trace, call)


def pick(trace: Trace, call: Call) -> Tensor | None:
    """select and unbind: single units taken by number cannot move."""
    x, dim = call.args[0], call.argument("dim", 0) % call.args[0].ndim
    if x.ndim > 2 and trace.weight(x) is not None and not trace.labelled(x):
        return trace.give_up(call, "one of several matrices")  # of experts, say: large
    if varies(trace.labels(x), dim):
        trace.book.freeze(trace.labels(x), "taken by a fixed number")
    return move(trace, call)


def pad(trace: Trace, call: Call) -> Tensor | None:
    """Padding in space keeps labels; padding units is fixed in the code, so it freezes them."""
    x, amounts = call.args[0], call.args[1]
    labels = trace.labels(x)
    for k in range(len(amounts) // 2):
        if any(amounts[2 * k : 2 * k + 2]) and varies(labels, x.ndim - 1 - k):
            trace.book.freeze(labels, "zero-padded shortcut")
            # What the padded tensor meets is fixed for the same reason, so it gets labels too.
            fixed = trace.book.fresh(call.out.shape[x.ndim - 1 - k])
            trace.book.freeze(fixed, "zero-padded shortcut")
            return fixed.reshape([-1] + [1] * k).expand(call.out.shape)
    return _stretch(labels, call.out.shape)


def local(trace: Trace, call: Call) -> Tensor | None:
    """Pooling and resizing act within a channel."""
    x = call.args[0]
    out = call.out[0] if isinstance(call.out, (list, tuple)) else call.out
    labels = trace.labels(x)
    for dim, (before, after) in enumerate(zip(x.shape, out.shape, strict=True)):
        if (before != after or dim >= 2) and varies(labels, dim):
            return unknown(trace, call)
    return _stretch(labels, out.shape)


def _stretch(labels: Tensor, shape: torch.Size) -> Tensor:
    """Labels for a result whose sizes differ only along dims without units."""
    for dim, size in enumerate(shape):
        labels = labels if labels.shape[dim] == size else labels.narrow(dim, 0, 1)
    return labels.expand(shape)


def _dims(call: Call, ndim: int) -> list[int]:
    dims = call.argument("dim")
    if dims is None or dims == []:
        return list(range(ndim))
    return [d % ndim for d in (dims if isinstance(dims, Iterable) else [dims])]


def reduce(trace: Trace, call: Call) -> Tensor | None:
    """Means, sums and maxima over space keep labels; over units they freeze them."""
    labels = trace.labels(call.args[0])
    dims = _dims(call, labels.ndim)
    if any(varies(labels, dim) for dim in dims):
        trace.doom(call, labels, "reduced across units")
        return None
    out = call.out[0] if isinstance(call.out, (list, tuple)) else call.out
    for dim in sorted(dims, reverse=True):
        labels = labels.narrow(dim, 0, 1) if out.ndim == labels.ndim else labels.select(dim, 0)
    return labels.reshape(out.shape)


def normalise_along(trace: Trace, call: Call) -> Tensor | None:
    """softmax, cumsum, sort: fine along space, not across units."""
    labels = trace.labels(call.args[0])
    if any(varies(labels, dim) for dim in _dims(call, labels.ndim)):
        trace.book.freeze(labels, "normalised across units")
    return labels


def batch_norm(trace: Trace, call: Call) -> Tensor | None:
    x = call.args[0]
    labels = trace.labels(x)
    for position, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
        vector = call.argument(name, call.args[position])
        if isinstance(vector, Tensor):
            role = {"weight": "scale", "bias": "shift"}.get(name, "stat")
            own = trace.labels(vector, role)  # type: ignore[arg-type]
            shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
            trace.book.tie(labels, own.reshape(shape).expand(x.shape), "fixed normalisation")
    return labels


def layer_norm(trace: Trace, call: Call) -> Tensor | None:
    x, shape = call.args[0], call.args[1]
    labels = trace.labels(x)
    if any(varies(labels, x.ndim - 1 - k) for k in range(len(shape))):
        trace.book.freeze(labels, "normalised across units (LayerNorm)")
    _affine(trace, call, labels)
    return labels


def group_norm(trace: Trace, call: Call) -> Tensor | None:
    """Statistics shared by several channels change when one of them goes."""
    labels = trace.labels(call.args[0])
    trace.book.freeze(labels, "normalised across units (GroupNorm)")
    _affine(trace, call, labels.movedim(1, -1))
    return labels


def _affine(trace: Trace, call: Call, labels: Tensor) -> None:
    """Weight and bias of a norm, along the last dims, have the units of what it normalises."""
    for name, role in (("weight", "scale"), ("bias", "shift")):
        vector = call.argument(name)
        if isinstance(vector, Tensor) and trace.weight(vector) is not None:
            own = trace.labels(vector, role)  # type: ignore[arg-type]
            trace.book.tie(labels, own.expand(labels.shape), "fixed normalisation")


def convolution(trace: Trace, call: Call) -> Tensor | None:
    x, kernel, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    weight, labels = trace.weight(kernel), trace.labels(x)
    if weight is None or weight[1] != tuple(range(kernel.ndim)):
        return unknown_weight(trace, call)
    if any(varies(labels, dim) for dim in range(labels.ndim) if dim != 1):
        trace.book.freeze(labels, "channels that vary over space")
        labels = torch.zeros_like(labels)
    read_C = labels.reshape(x.shape[0], x.shape[1], -1)[0, :, 0]
    if groups == 1:
        out_dim, in_dim = (1, 0) if transposed else (0, 1)
        rows_O = trace.rows(weight[0], out_dim, kernel.shape[out_dim])
        trace.bind(weight[0], in_dim, "in", read_C)
    else:
        rows_O = _grouped(trace, weight[0], kernel, read_C, (groups, transposed))
    if isinstance(bias, Tensor):
        _bias(trace, bias, rows_O)
    return rows_O.reshape([-1 if d == 1 else 1 for d in range(call.out.ndim)]).expand(
        call.out.shape
    )


def _grouped(
    trace: Trace, name: str, kernel: Tensor, read_C: Tensor, kind: tuple[int, bool]
) -> Tensor:
    groups, transposed = kind
    read_GC = read_C.reshape(groups, -1)
    if transposed:
        # Rows lie on dim 1, shared by all groups: freeze both sides, nobody asked for it yet.
        trace.book.freeze(read_C, "grouped transposed convolution")
        trace.close(name, "grouped transposed convolution")
        return torch.zeros(groups * kernel.shape[1], dtype=torch.int64)
    rows_O = trace.rows(name, 0, kernel.shape[0])
    rows_GO = rows_O.reshape(groups, -1)
    if read_GC.shape[1] > 1:
        trace.ambiguous.add("grouped")
    if read_GC.shape[1] == 1 or trace.reading.grouped == "groups":
        trace.book.tie(read_GC, rows_GO[:, :1].expand_as(read_GC), "groups of the model's input")
        trace.book.tie(rows_GO, rows_GO[:, :1].expand_as(rows_GO))
        module, _, leaf = name.rpartition(".")
        if leaf == "weight":  # a kernel by another name has no `groups` beside it
            path = f"{module}.groups" if module else "groups"
            trace.bind(path, 0, "count", rows_GO[:, 0])
    else:
        trace.book.tie(read_GC, read_GC[:1].expand_as(read_GC))
        trace.book.tie(rows_GO, rows_GO[:1].expand_as(rows_GO))
        trace.bind(name, 1, "in", read_GC[0])
    return rows_O


def _bias(trace: Trace, bias: Tensor, rows_O: Tensor) -> None:
    weight = trace.weight(bias)
    if weight is None:
        trace.book.freeze(rows_O, COMPUTED)
    else:
        trace.bind(weight[0], 0, "shift", rows_O)


def unknown_weight(trace: Trace, call: Call) -> Tensor | None:
    return trace.give_up(call, COMPUTED)


def matmul(trace: Trace, call: Call) -> Tensor | None:
    """mm(x_NI, weight_IO) and addmm(bias_O, x_NI, weight_IO)."""
    x, matrix = call.args[-2:]
    weight, labels = trace.weight(matrix), trace.labels(x)
    if weight is None or trace.labelled(matrix):
        return unknown(trace, call)
    in_dim, out_dim = weight[1]
    if varies(labels, 0) and not varies(labels, 1):
        # Mixes positions within each unit (MLP-Mixer). The units could pass, but then the MACs of a
        # matrix that no unit lives in would depend on them, which the cost polynomial cannot say.
        return trace.give_up(call, "positions mixed within units")
    if varies(labels, 0):
        trace.book.freeze(labels, "units that vary over the batch")
        labels = torch.zeros_like(labels)
    rows_O = trace.rows(weight[0], out_dim, matrix.shape[1])
    trace.bind(weight[0], in_dim, "in", labels[0])
    if call.name == "addmm":
        _bias(trace, call.args[0], rows_O)
    return rows_O.expand(call.out.shape)


def batched(trace: Trace, call: Call) -> Tensor | None:
    """bmm(a_NPK, b_NKM): units along N meet their own kind, as heads of attention do."""
    a, b = (trace.labels(operand) for operand in call.args[-2:])
    if varies(a, 2) or varies(b, 1):
        return trace.give_up(call, "contracted across units")
    if varies(a, 1) or varies(b, 2):
        return trace.give_up(call, "positions mixed within units")
    # What no unit owns (relative positions) is as long as N in the code, so it cannot shrink.
    trace.book.tie(a[:, :1, :1], b[:, :1, :1], "multiplied with values that no unit owns")
    labels = torch.maximum(a[:, :1, :1], b[:, :1, :1]).expand(call.out.shape)
    if call.name == "baddbmm" and call.argument("beta", 1) != 0:
        start = call.args[0]
        labels = _meet(
            trace,
            (labels, labels.shape),
            (trace.labels(start).expand(labels.shape), _seen_shape(start)),
        )
    return labels


def embedding(trace: Trace, call: Call) -> Tensor | None:
    """A table whose rows are looked up: its columns are units."""
    table, numbers = call.args[:2]
    weight = trace.weight(table)
    if weight is None or trace.labelled(table):
        return unknown(trace, call)
    trace.book.freeze(trace.labels(numbers), "used as a number of a row")
    return trace.rows(weight[0], weight[1][1], table.shape[1]).expand(call.out.shape)


def index(trace: Trace, call: Call) -> Tensor | None:
    """x[numbers]: positions may be picked; single units taken by number cannot move."""
    x, numbers = call.args[:2]
    labels = trace.labels(x)
    picked = [dim for dim, number in enumerate(numbers) if number is not None]
    if trace.labelled(x) and any(varies(labels, dim) for dim in picked):
        trace.book.freeze(labels, "taken by a fixed number")
    at_hand = [None if number is None else number.cpu() for number in numbers]
    return squash(call.func(labels.contiguous(), at_hand))


def along(trace: Trace, call: Call) -> Tensor | None:
    """gather and index_select: positions picked by number within each unit."""
    x, dim, numbers = call.args[:3]
    labels = trace.labels(x)
    if trace.labelled(x) and varies(labels, dim % x.ndim):
        trace.book.freeze(labels, "taken by a fixed number")
    return squash(call.func(labels.contiguous(), dim, numbers.cpu()))


def choose(trace: Trace, call: Call) -> Tensor | None:
    """topk along units: noted in `Trace.chosen`, since a router makes what it chooses among."""
    x, k = call.args[:2]
    labels, dim = trace.labels(x), call.argument("dim", -1) % x.ndim
    if varies(labels, dim):
        line = labels.movedim(dim, -1).reshape(-1, x.shape[dim])[0]
        trace.chosen.append((line, k))
    return unknown(trace, call)


def linear(trace: Trace, call: Call) -> Tensor | None:
    """aten.linear(x_..I, weight_OI, bias_O), seen where it is not decomposed."""
    x, matrix = call.args[:2]
    weight, labels = trace.weight(matrix), trace.labels(x)
    if weight is None or any(varies(labels, dim) for dim in range(x.ndim - 1)):
        return unknown(trace, call)
    rows_O = trace.rows(weight[0], weight[1][0], matrix.shape[0])
    trace.bind(weight[0], weight[1][1], "in", labels.reshape(-1, x.shape[-1])[0])
    if len(call.args) > 2 and isinstance(call.args[2], Tensor):
        _bias(trace, call.args[2], rows_O)
    return rows_O.expand(call.out.shape)


def pixel_shuffle(trace: Trace, call: Call) -> Tensor | None:
    labels, factor = trace.labels(call.args[0]), call.args[1]
    if varies(labels, labels.ndim - 1) or varies(labels, labels.ndim - 2):
        return unknown(trace, call)
    tied = _tied_along(trace, labels[..., 0, 0].unflatten(-1, (-1, factor**2)), labels.ndim - 2)
    return tied[..., :1, None].expand(call.out.shape)


def pixel_unshuffle(trace: Trace, call: Call) -> Tensor | None:
    labels, factor = trace.labels(call.args[0]), call.args[1]
    if varies(labels, labels.ndim - 1) or varies(labels, labels.ndim - 2):
        return unknown(trace, call)
    spread = labels[..., :1, :1].repeat_interleave(factor**2, -3)
    return spread.expand(call.out.shape)


def gated(trace: Trace, call: Call) -> Tensor | None:
    """glu: the first half of a dim times the sigmoid of the second."""
    x, dim = call.args[0], call.argument("dim", -1) % call.args[0].ndim
    labels, size = trace.labels(x), x.shape[dim] // 2
    if varies(labels, dim):
        _tie_chunks(trace, labels, dim, size)
    return labels.narrow(dim, 0, size)


def channel_shuffle(trace: Trace, call: Call) -> Tensor | None:
    labels, groups = trace.labels(call.args[0]), call.args[1]
    tied = _tied_along(trace, labels.unflatten(1, (groups, -1)), 1)
    return tied.transpose(1, 2).flatten(1, 2)


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    "pointwise": pointwise,
    "unknown": unknown,
    **_table(source, "zeros ones empty full arange rand randn scalar_tensor lift_fresh"),
    **_table(like, "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros "
             "new_ones new_empty new_full new_empty_strided"),
    **_table(pointwise, "hardswish hardsigmoid hardtanh mish elu celu native_dropout where "
             "_prelu_kernel clamp leaky_relu softplus threshold"),
    **_table(move, "cat stack expand unsqueeze squeeze flip roll repeat"),
    **_table(permute, "t transpose permute"),
    **_table(same, "detach alias clone contiguous _to_copy lift bernoulli uniform normal "
             "exponential random"),
    **_table(restrided, "as_strided"),
    **_table(copy, "copy"),
    **_table(view, "view _unsafe_view reshape _reshape_alias"),
    **_table(split, "split split_with_sizes chunk"),
    **_table(slice_, "slice"),
    **_table(pick, "select unbind"),
    **_table(pad, "constant_pad_nd"),
    **_table(local, "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d "
             "adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d "
             "_upsample_nearest_exact2d upsample_bicubic2d reflection_pad2d replication_pad2d "
             "max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d upsample_nearest1d "
             "upsample_linear1d avg_pool1d adaptive_avg_pool1d"),
    **_table(reduce, "mean sum amax amin var std var_mean linalg_vector_norm max min logsumexp"),
    **_table(normalise_along, "_softmax _log_softmax _safe_softmax cumsum"),
    **_table(batch_norm, "native_batch_norm _native_batch_norm_legit _batch_norm_with_update "
             "_native_batch_norm_legit_no_training cudnn_batch_norm batch_norm"),
    **_table(layer_norm, "native_layer_norm layer_norm"),
    **_table(group_norm, "native_group_norm group_norm"),
    **_table(convolution, "convolution _convolution"),
    **_table(matmul, "mm addmm"),
    **_table(batched, "bmm baddbmm"),
    **_table(linear, "linear"),
    **_table(embedding, "embedding"),
    **_table(index, "index"),
    **_table(along, "gather index_select"),
    **_table(choose, "topk"),
    **_table(pixel_shuffle, "pixel_shuffle"),
    **_table(pixel_unshuffle, "pixel_unshuffle"),
    **_table(gated, "glu"),
    **_table(channel_shuffle, "channel_shuffle native_channel_shuffle"),
}  # fmt: skip
