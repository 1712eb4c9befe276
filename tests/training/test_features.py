"""Cached annotations: what the encoder gives, whatever happens to the process, and never those of something else."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saccade.errors import DataError, OutputError
from saccade.preprocessing import PreprocessSpec
from training.encoders import EncoderOptions
from training.features import FeatureSource, Precision, cached_annotations
from training.model import Captioner, DecoderOptions, build_captioner

SPEC = PreprocessSpec(size=32, geometry="squash", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
IMAGES = tuple("abcde")
BATCH = 2
BLOCKS, SYNCS_PER_BLOCK = 3, 3  # a block is synced, then the record, then the folder that names both


class Interruption(BaseException):
    """Like KeyboardInterrupt: no Exception."""


def captioner(*, seed: int = 0, grid: int = 0) -> Captioner:
    torch.manual_seed(seed)
    decoder = DecoderOptions(attention_width=16, embedding_width=16, hidden_width=16)
    encoder = EncoderOptions(name="compact", grid=grid, frozen=True)
    return build_captioner(encoder, decoder, words=20, mean=SPEC.mean, std=SPEC.std)


def cached(
    folder: Path,
    model: Captioner | None = None,
    *,
    pixels: Any = PIXELS,
    images: Sequence[str] = IMAGES,
    spec: PreprocessSpec = SPEC,
    precision: Precision = "float32",
    progress: Callable[[int], None] = lambda _: None,
) -> FeatureSource:
    return cached_annotations(
        model or captioner(),
        pixels,
        images,
        spec,
        folder=folder,
        batch_images=BATCH,
        precision=precision,
        progress=progress,
    )


def computed(folder: Path, **changes: Any) -> tuple[NDArray[np.float16], list[int]]:
    """The cached annotations, and the batches that the encoder was called with."""
    model = captioner()
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    return cached(folder, model, **changes)[:], calls


def direct(model: Captioner) -> torch.Tensor:
    with torch.inference_mode():
        batches = [model.eval().annotate(torch.from_numpy(PIXELS[i : i + BATCH])).values for i in range(0, 5, BATCH)]
    return torch.cat(batches)


def only_cache(folder: Path) -> Path:
    (cache,) = folder.iterdir()
    return cache


class Unreadable:
    """Pixels that nobody may ask for."""

    def __getitem__(self, chosen: slice) -> NDArray[np.uint8]:
        raise AssertionError(f"pixels {chosen} were read")


def test_the_cache_holds_what_the_captioner_gives_rounded_to_float16(tmp_path: Path) -> None:
    expected = direct(captioner()).numpy()
    features = cached(tmp_path)
    assert features[:].dtype == np.float16
    np.testing.assert_array_equal(features[:], expected.astype(np.float16))
    assert (np.abs(features[:] - expected) <= np.maximum(2.0**-11 * np.abs(expected), 3e-8)).all()


def test_rounding_moves_the_next_words_by_less_than_a_thousandth(tmp_path: Path) -> None:
    """Logits and alphas of a decoding step, relative to their largest."""
    model = captioner()
    exact = direct(model)
    rounded = torch.from_numpy(cached(tmp_path, model)[:]).float()

    def step(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        annotations = model.decoder.annotate(values)
        state = model.decoder.initial_rows(annotations, 1)
        logits, alphas, _ = model.decoder.step(torch.full((len(values), 1), 3), state, annotations)
        return logits, alphas

    with torch.inference_mode():
        for found, expected in zip(step(rounded), step(exact), strict=True):
            assert 0 < (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_features_are_indexed_like_an_array(tmp_path: Path) -> None:
    features = cached(tmp_path)
    whole = features[:]
    assert len(features) == len(whole) == 5
    for chosen in (np.array([3, 0, 4, 0]), np.array([-1, 1]), np.array([], np.int64), slice(1, 4)):
        found = features[chosen]
        np.testing.assert_array_equal(found, whole[chosen])
        assert found.flags.c_contiguous
        assert found.flags.writeable
    with pytest.raises(IndexError):
        features[np.array([5])]


def test_a_finished_cache_needs_neither_pixels_nor_the_encoder(tmp_path: Path) -> None:
    first, calls = computed(tmp_path)
    assert calls == [2, 2, 1]
    again, calls = computed(tmp_path, pixels=Unreadable())
    assert calls == []
    np.testing.assert_array_equal(again, first)


def test_the_file_is_read_by_numpy(tmp_path: Path) -> None:
    features = cached(tmp_path)
    np.testing.assert_array_equal(np.load(only_cache(tmp_path) / "annotations.npy"), features[:])


def test_progress_counts_the_images_of_earlier_calls(tmp_path: Path) -> None:
    class Interrupted:
        def __getitem__(self, chosen: slice) -> NDArray[np.uint8]:
            if chosen.start == 4:
                raise Interruption
            return PIXELS[chosen]

    done: list[int] = []
    with pytest.raises(Interruption):
        cached(tmp_path, pixels=Interrupted(), progress=done.append)
    cached(tmp_path, progress=done.append)
    assert done == [2, 4, 5]


@pytest.mark.parametrize("sync", range(BLOCKS * SYNCS_PER_BLOCK))
def test_interrupted_at_any_write_only_the_missing_blocks_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: int
) -> None:
    original, count = os.fsync, itertools.count()

    def interrupted(handle: int) -> None:
        if next(count) == sync:
            raise Interruption
        original(handle)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(Interruption):
        cached(tmp_path / "interrupted")
    monkeypatch.undo()
    features, calls = computed(tmp_path / "interrupted")
    counted = (sync + 1) // SYNCS_PER_BLOCK  # the last of a block's syncs comes after its record has its name
    assert calls == [2, 2, 1][counted:]
    np.testing.assert_array_equal(features, cached(tmp_path / "whole")[:])


def killed_within_the_second_block(folder: Path) -> None:
    """The block is written, and not yet synced."""
    original, count = os.fsync, itertools.count()

    def killed(handle: int) -> None:
        if next(count) == SYNCS_PER_BLOCK:
            os.kill(os.getpid(), signal.SIGKILL)
        original(handle)

    pytest.MonkeyPatch().setattr(os, "fsync", killed)
    cached(folder)


def test_a_killed_process_is_continued_by_another(tmp_path: Path) -> None:
    """The other process finds the same key, no lock in its way, and does not count what was written last."""
    process = multiprocessing.get_context("spawn").Process(target=killed_within_the_second_block, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    record = json.loads((only_cache(tmp_path) / "cache.json").read_text())
    written = (only_cache(tmp_path) / "annotations.npy").stat().st_size
    assert record["finished"] == 2
    assert written > 4 * 4 * 160 * 2  # two blocks
    features, calls = computed(tmp_path)
    assert calls == [2, 1]
    np.testing.assert_array_equal(features, direct(captioner()).half().numpy())


def test_of_a_finer_grid_the_cells_are_kept(tmp_path: Path) -> None:
    """The compact encoder has fewer than 100 of them here; keys are those of all places."""
    model = captioner(grid=10)
    features = cached(tmp_path, model)[:]
    assert features.shape[1] == model.encoder.cells(SPEC.size) < 100
    np.testing.assert_array_equal(features, direct(model).half().numpy())
    assert model.annotate(torch.from_numpy(features)).keys.shape[1] == 100


def test_annotations_of_something_else_lie_in_another_folder(tmp_path: Path) -> None:
    cached(tmp_path)
    cached(tmp_path, captioner(seed=1))
    cached(tmp_path, captioner(grid=1))
    cached(tmp_path, images="abcdf")
    cached(tmp_path, images="bacde")
    cached(tmp_path, spec=replace(SPEC, geometry="crop"))
    cached(tmp_path, precision="bfloat16")
    assert len(list(tmp_path.iterdir())) == 7
    _, calls = computed(tmp_path)
    assert calls == []


def test_moved_weights_are_the_same_weights(tmp_path: Path) -> None:
    """Neither the memory format nor the mode changes the key, and the mode is afterwards what it was."""
    cached(tmp_path)
    model = captioner().train()
    model.encoder.to(memory_format=torch.channels_last)
    cached(tmp_path, model, pixels=Unreadable())
    other = captioner(seed=1).train()
    cached(tmp_path, other)
    assert other.training
    assert other.decoder.training


def test_computed_in_bfloat16_the_annotations_are_nearly_the_same(tmp_path: Path) -> None:
    exact, rough = cached(tmp_path)[:].astype(np.float32), cached(tmp_path, precision="bfloat16")[:]
    error = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 3e-2


def test_a_second_process_is_refused_while_the_first_computes(tmp_path: Path) -> None:
    class Meanwhile:
        def __getitem__(self, chosen: slice) -> NDArray[np.uint8]:
            with pytest.raises(OutputError, match=r"is being computed by another process: run again when"):
                cached(tmp_path)
            return PIXELS[chosen]

    _, calls = computed(tmp_path, pixels=Meanwhile())
    assert calls == [2, 2, 1]


def cut_short(cache: Path) -> None:
    file = cache / "annotations.npy"
    file.write_bytes(file.read_bytes()[:-1])


def lengthened(cache: Path) -> None:
    with (cache / "annotations.npy").open("ab") as file:
        file.write(b"\0")


def without_annotations(cache: Path) -> None:
    (cache / "annotations.npy").unlink()


def of_another_type(cache: Path) -> None:
    file = cache / "annotations.npy"
    file.write_bytes(file.read_bytes().replace(b"<f2", b"<i2", 1))


def torn_record(cache: Path) -> None:
    file = cache / "cache.json"
    file.write_text(file.read_text()[:-20])


def changed_record(old: str, new: str) -> Callable[[Path], None]:
    def change(cache: Path) -> None:
        file = cache / "cache.json"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_short, r"annotations\.npy has 6527 bytes, expected 6528"),
        (lengthened, r"annotations\.npy has 6529 bytes, expected 6528"),
        (without_annotations, r"annotations\.npy"),
        (of_another_type, r"begins with another header"),
        (torn_record, r"line \d+"),
        (changed_record('"finished": 5', '"finished": 6'), r"cache\.json counts 6 of 5 images"),
        (changed_record('"finished": 5', '"finished": "5"'), r"expected int, got '5' in finished"),
        (changed_record('"grid": 0', '"grid": 3'), r"cache\.json: grid was 0, is 3"),
    ],
)
def test_a_damaged_cache_is_refused_with_the_folder_to_delete(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    cached(tmp_path)
    cache = only_cache(tmp_path)
    damage(cache)
    with pytest.raises(OutputError, match=rf"{cache} is damaged \(.*{reason}.*\): delete that folder"):
        cached(tmp_path)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_refused_write_is_an_output_error_and_keeps_the_finished_blocks(tmp_path: Path) -> None:
    """The limit ends in the middle of the second block, as a full disk may."""
    with (
        files_of_at_most(3500),
        pytest.raises(OutputError, match=r"cannot be written \(File too large\): free some space .* blocks are kept"),
    ):
        cached(tmp_path)
    features, calls = computed(tmp_path)
    assert calls == [2, 1]
    np.testing.assert_array_equal(features, direct(captioner()).half().numpy())


def test_a_disk_without_the_space_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 6527  # one byte too few
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(OutputError, match=r"needs 0\.0 GB more, and 0\.0 GB are free"):
        cached(tmp_path, pixels=Unreadable())
    free += 1
    cached(tmp_path)


def test_a_place_that_cannot_hold_a_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=os.strerror(errno.ENOTDIR)):
        cached(tmp_path / "file")


@pytest.mark.parametrize("value", [70000.0, float("nan")])
def test_annotations_beyond_float16_are_refused_by_image_and_value(tmp_path: Path, value: float) -> None:
    model = captioner()
    model.encoder.register_forward_hook(lambda _, __, values: values.index_fill(1, torch.tensor([2]), -value)[:])
    with pytest.raises(DataError, match=rf"an annotation of image a is {value:g}, .* at most 65504 \(float16\)"):
        cached(tmp_path, model)
    assert not (only_cache(tmp_path) / "annotations.npy").exists()
