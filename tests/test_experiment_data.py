"""Every kind of data reads to the same images; bad data is one clear error; loaders repeat."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from prune_env.errors import DataError
from prune_env.experiments.data import splits as data
from prune_env.experiments.data.splits import CropFlip, ImageSet, load_splits, loader
from prune_env.tasks.digits import load_digits

COUNTS = {"train": 20, "val": 6, "test": 8}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("PRUNE_ENV_DATA", raising=False)


def pictures(count: int, seed: int = 0, size: tuple[int, ...] = (6, 5, 3)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, *size), dtype=np.uint8)


def labelled() -> dict[str, tuple[Any, Any]]:
    """For each part, images (N, 6, 5, 3) and labels of two classes, sorted by label."""
    return {
        part: (pictures(count, seed), np.arange(count) // (count // 2))
        for seed, (part, count) in enumerate(COUNTS.items())
    }


def png(array: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_npz(path: Path) -> Path:
    arrays = {}
    for part, (images, labels) in labelled().items():
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
    np.savez(path / "set.npz", **arrays)
    return path / "set.npz"


def write_medmnist(path: Path) -> Path:
    arrays = {}
    for part, (images, labels) in labelled().items():
        arrays |= {
            f"{part}_images": images.transpose(0, 3, 1, 2),
            f"{part}_labels": labels[:, None],
        }
    np.savez(path / "set.npz", **arrays)
    return path / "set.npz"


def write_folder(path: Path) -> Path:
    names = {"train": "train", "val": "validation", "test": "test"}
    for part, (images, labels) in labelled().items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = path / names[part] / str(label) / "deep" / f"{number:03}.PNG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image))
    (path / "train" / "0" / "readme.txt").write_text("not an image")
    return path


def write_parquet(path: Path) -> Path:
    for part, (images, labels) in labelled().items():
        columns = {"image": [png(i) for i in images], "label": pa.array(labels, pa.int8())}
        table = pa.table(columns).replace_schema_metadata({"classes": "0,1"})
        pq.write_table(table, path / f"{part}.parquet")
    return path


def write_hugging_face(path: Path) -> Path:
    features = {"info": {"features": {"img": {}, "label": {"names": ["0", "1"]}}}}
    (path / "data").mkdir()
    for part, (images, labels) in labelled().items():
        name = {"val": "validation"}.get(part, part)
        half = len(images) // 2
        for shard, rows in enumerate((slice(half), slice(half, None))):
            encoded = [{"bytes": png(image), "path": None} for image in images[rows]]
            table = pa.table({"img": encoded, "label": labels[rows], "id": labels[rows]})
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
            pq.write_table(table, path / "data" / f"{name}-0000{shard}-of-00002.parquet")
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "npz": write_npz,
    "medmnist": write_medmnist,
    "folder": write_folder,
    "parquet": write_parquet,
    "hugging face": write_hugging_face,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_reads_to_the_same_parts(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path)
    for _ in range(2):  # decoded, then from the cache
        splits = load_splits(path, seed=0)
        for part, (images, labels) in labelled().items():
            found: ImageSet = getattr(splits, part)
            assert torch.equal(found.images, torch.from_numpy(images).permute(0, 3, 1, 2))
            assert found.labels.tolist() == labels.tolist()
            assert found.labels.dtype == torch.int64
        assert splits.classes == ("0", "1")
        assert splits.mean == data.RGB_MEAN


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_decoded_images_are_cached_until_a_file_changes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WRITERS[kind](tmp_path)
    first = load_splits(path, seed=0)
    with monkeypatch.context() as patch:
        for module in ("prune_env.experiments.data.readers", "prune_env.experiments.data.parquet"):
            patch.setattr(f"{module}.decode", None)
        assert torch.equal(load_splits(path, seed=0).train.images, first.train.images)
    if kind == "folder":
        (path / "train" / "0" / "more.png").write_bytes(png(pictures(1)[0]))
    else:
        table = pq.read_table(path / "train.parquet")
        pq.write_table(pa.concat_tables([table, table[:1]]), path / "train.parquet")
    assert len(load_splits(path, seed=0).train.labels) == COUNTS["train"] + 1


def test_a_file_of_the_same_size_but_newer_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    images = pictures(20)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "one" / f"{number:02}.bmp")
    load_splits(tmp_path, seed=0)
    file = tmp_path / "one" / "00.bmp"
    size, time = file.stat().st_size, file.stat().st_mtime_ns
    Image.fromarray(255 - images[0]).save(file)
    os.utime(file, ns=(time + 10**9, time + 10**9))
    splits = load_splits(tmp_path, seed=0)
    everything = torch.cat([splits.train.images, splits.val.images, splits.test.images])
    assert file.stat().st_size == size
    changed = np.ascontiguousarray((255 - images[0]).transpose(2, 0, 1)).tobytes()
    assert changed in rows(everything)


def one_pool(tmp_path: Path, count: int = 60) -> Path:
    np.savez(tmp_path / "pool.npz", images=pictures(count), labels=np.arange(count) % 3)
    return tmp_path / "pool.npz"


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_missing_parts_are_cut_by_seed_without_overlap(tmp_path: Path) -> None:
    path = one_pool(tmp_path)
    one, same, other = (load_splits(path, seed=seed) for seed in (1, 1, 2))
    assert [len(p.labels) for p in (one.train, one.val, one.test)] == [42, 6, 12]
    assert one.test.labels.bincount().tolist() == [4, 4, 4]
    parts = [rows(part.images) for part in (one.train, one.val, one.test)]
    assert len(set.union(*parts)) == 60
    assert torch.equal(one.val.images, same.val.images)
    assert not torch.equal(one.val.images, other.val.images)


def test_only_the_missing_part_is_cut_from_train(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    (path / "val.parquet").unlink()
    splits = load_splits(path, seed=0)
    images, _ = labelled()["test"]
    assert torch.equal(splits.test.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert (len(splits.train.labels), len(splits.val.labels)) == (18, 2)
    assert splits.val.labels.tolist() == [0, 1]


def test_class_folders_without_parts_are_split(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number, image in enumerate(pictures(20, seed=len(name))):
            (tmp_path / name / f"{number}.png").write_bytes(png(image))
    splits = load_splits(tmp_path, seed=0)
    assert splits.classes == ("cat", "dog")
    assert [len(p.labels) for p in (splits.train, splits.val, splits.test)] == [28, 4, 8]
    assert splits.val.labels.bincount().tolist() == [2, 2]


def test_grey_images_keep_one_channel_and_their_own_statistics(tmp_path: Path) -> None:
    images = pictures(40, size=(6, 5))
    np.savez(tmp_path / "grey.npz", images=images, labels=np.arange(40) % 2)
    splits = load_splits(tmp_path / "grey.npz", seed=0)
    assert splits.train.images.shape[1:] == (1, 6, 5)
    batches = loader(splits.train, batch_size=40, mean=splits.mean, std=splits.std)
    (x, _), *_ = batches
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


def test_a_grey_image_among_coloured_ones_becomes_coloured(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    grey = pictures(1, size=(6, 5))[0]
    (path / "train" / "0" / "a.png").write_bytes(png(grey))
    splits = load_splits(path, seed=0)
    assert torch.equal(splits.train.images[0], torch.from_numpy(grey).expand(3, 6, 5))


def test_floats_in_the_unit_interval_are_scaled(tmp_path: Path) -> None:
    images = pictures(40)
    np.savez(tmp_path / "f.npz", images=images / np.float32(255), labels=np.arange(40) % 2)
    np.savez(tmp_path / "u.npz", images=images, labels=np.arange(40) % 2)
    one, other = (load_splits(tmp_path / f"{name}.npz", seed=0) for name in "fu")
    assert torch.equal(one.train.images, other.train.images)


def test_the_digits_equal_those_of_the_task() -> None:
    splits = load_splits("digits", seed=5)
    for part, expected in load_digits()._asdict().items():
        batches = loader(getattr(splits, part), batch_size=99, mean=splits.mean, std=splits.std)
        images = torch.cat([x for x, _ in batches])
        torch.testing.assert_close(images, expected.images, rtol=0, atol=1e-5)
        assert torch.equal(torch.cat([y for _, y in batches]), expected.labels)


def test_relative_names_are_found_under_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_pool(tmp_path)
    monkeypatch.chdir(tmp_path / "..")
    with pytest.raises(DataError, match=r"nothing at .*PRUNE_ENV_DATA"):
        load_splits("pool.npz", seed=0)
    monkeypatch.setenv("PRUNE_ENV_DATA", str(tmp_path))
    assert len(load_splits("pool.npz", seed=0).classes) == 3


def _truncate(path: Path) -> Path:
    file = path / "train" / "1" / "deep" / "012.PNG"
    file.write_bytes(file.read_bytes()[:60])
    return path


def _resize(path: Path) -> Path:
    (path / "train" / "1" / "big.png").write_bytes(png(pictures(1, size=(9, 9, 3))[0]))
    return path


def _new_class(path: Path) -> Path:
    (path / "test" / "newcomer").mkdir()
    return path


def _no_images(path: Path) -> Path:
    (path / "cat").mkdir()
    return path


def _bad_parquet(path: Path) -> Path:
    (path / "train.parquet").write_bytes(b"junk")
    return path


def _null_image(path: Path) -> Path:
    pq.write_table(
        pa.table({"image": pa.array([None], pa.binary()), "label": [1]}), path / "train.parquet"
    )
    return path


def _no_train(path: Path) -> Path:
    (write_parquet(path) / "train.parquet").unlink()
    return path


def _text_labels(path: Path) -> Path:
    table = pa.table({"image": [png(i) for i in pictures(2)], "label": ["a", "b"]})
    pq.write_table(table, path / "train.parquet")
    return path


def _few_names(path: Path) -> Path:
    for file in write_parquet(path).glob("*.parquet"):
        table = pq.read_table(file).replace_schema_metadata({"classes": "only"})
        pq.write_table(table, file)
    return path


def _npz(**arrays: Any) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        np.savez(path / "bad.npz", **arrays)
        return path / "bad.npz"

    return write


def _file(name: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        (path / name).write_bytes(b"junk")
        return path / name

    return write


FOUR = np.arange(4)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path / "absent", "nothing at"),
        (lambda path: path, "no images below"),
        (_no_images, "no images below"),
        (lambda path: _truncate(write_folder(path)), r"cannot decode image '.*012\.PNG'"),
        (lambda path: _resize(write_folder(path)), r"differ in size: .*5 x 6.*big\.png' is 9 x 9"),
        (lambda path: _new_class(write_folder(path)), "newcomer"),
        (_bad_parquet, r"cannot read '.*train\.parquet'"),
        (_null_image, "row 0 of .*no image bytes"),
        (_no_train, r"no train\.parquet"),
        (_text_labels, "columns .*'image', 'label'"),
        (_few_names, "names 1 classes, but .* holds the label 1"),
        (_file("set.npz"), "cannot read .* as npz"),
        (_file("set.csv"), "none of the kinds"),
        (_npz(pixels=pictures(4)), r"holds the arrays \['pixels'\]"),
        (_npz(images=pictures(4), labels=FOUR[:3]), "3 labels for 4 images"),
        (_npz(images=pictures(4), labels=FOUR - 1), "holds the label -1"),
        (_npz(images=pictures(4), labels=FOUR * 0.5), "must be integers"),
        (_npz(images=pictures(4), labels=FOUR + 10**9), "holds the label 10000000.*without gaps"),
        (_npz(images=pictures(4) * 1.0, labels=FOUR), r"scale to \[0, 1\]"),
        (_npz(images=pictures(4).astype(int), labels=FOUR), "int64; uint8"),
        (_npz(images=pictures(4, size=(5,)), labels=FOUR), r"shape \(4, 5\)"),
        (_npz(images=pictures(4), labels=np.array([{}] * 4)), "as npz"),
        (_npz(images=pictures(2), labels=FOUR[:2]), "no image for"),
    ],
)
def test_bad_data_is_one_clear_error(
    write: Callable[[Path], Path], says: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=says):
        load_splits(write(tmp_path), seed=0)


def test_parts_of_unlike_size_are_refused(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "s.npz",
        x_train=pictures(20),
        y_train=np.arange(20) % 2,
        x_test=pictures(4, size=(9, 9, 3)),
        y_test=FOUR % 2,
    )
    with pytest.raises(DataError, match=r"test images .*\(3, 9, 9\)"):
        load_splits(tmp_path / "s.npz", seed=0)


def test_a_missing_package_is_answered_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install 'prune_env\[data\]'"):
        load_splits(path, seed=0)


# --- loaders -------------------------------------------------------------------------------------

SET = ImageSet(torch.from_numpy(pictures(23)).permute(0, 3, 1, 2), torch.arange(23))
PLAIN = {"batch_size": 5, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


def gather(batches: Any) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_a_loader_normalises_and_keeps_order_and_count() -> None:
    batches = loader(SET, **PLAIN)
    assert len(batches) == len(list(batches)) == 5
    images, labels = gather(batches)
    mean, std = (torch.tensor(PLAIN[k]).view(3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(images, (SET.images / 255 - mean) / std)
    assert torch.equal(labels, SET.labels)


def test_shuffling_follows_the_global_generator_and_pairs_stay_pairs() -> None:
    batches = loader(SET, **PLAIN, shuffle=True, augment=CropFlip(2))
    plain = loader(SET, **PLAIN, shuffle=True)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(gather(batches))
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][1], runs[2][1])
    images, labels = gather(plain)
    assert sorted(labels.tolist()) == list(range(23))
    torch.testing.assert_close(images, gather(loader(SET, **PLAIN))[0][labels])


def test_a_seeded_loader_repeats_itself_and_leaves_the_global_generator() -> None:
    batches = loader(SET, **PLAIN, shuffle=True, augment=CropFlip(1), seed=4)
    before = torch.random.get_rng_state()
    one, other = gather(batches), gather(batches)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert torch.equal(before, torch.random.get_rng_state())


def test_crop_flip_gives_windows_of_the_padded_image() -> None:
    """Each result is one of the (2p + 1)^2 windows of its own image, or its mirror image."""
    padding = 2
    images = SET.images
    out = CropFlip(padding)(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    height, width = images.shape[2:]
    mirrored = 0
    for number, result in enumerate(out):
        windows = padded[number].unfold(1, height, 1).unfold(2, width, 1)
        windows = windows.permute(1, 2, 0, 3, 4).reshape(-1, *result.shape)
        straight = any(torch.equal(result, window) for window in windows)
        flipped = any(torch.equal(result, window.flip(-1)) for window in windows)
        assert straight or flipped
        mirrored += flipped
    assert 3 < mirrored < 20
    assert len(rows(out - images)) > 1
    assert torch.equal(CropFlip(0)(images[:, :, :, :1], None), images[:, :, :, :1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": (0.5,), "std": (0.5,)}, "3 channels"),
        ({"batch_size": 0}, "at least 1"),
        ({"image_set": ImageSet(SET.images[:0], SET.labels[:0])}, "0 images"),
    ],
)
def test_a_loader_that_cannot_work_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        loader(**{"image_set": SET, **PLAIN, **change})
