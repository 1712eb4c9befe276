"""Encoders: shapes of the whole registry, published reference outputs, freezing and wrong weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from saccade.errors import CheckpointError, ConfigError
from training.annotations import pooling_weights
from training.encoders import Encoder, EncoderOptions, encoder_names


@pytest.mark.parametrize("name", encoder_names())
def test_every_encoder_gives_the_grid_and_width_it_promises(name: str) -> None:
    """Built without storage: only shapes are computed."""
    stride = 16 if name == "compact" or "layer3" in name or name.startswith("vgg") else 32
    with torch.device("meta"):
        encoder = Encoder(EncoderOptions(name=name)).eval()
        annotations = encoder(torch.empty(2, 3, 64, 64))
    assert annotations.shape == (2, (64 // stride) ** 2, encoder.width)


@pytest.mark.parametrize(("side", "grid"), [(8, 14), (7, 3), (4, 9), (6, 1), (1, 5), (5, 5)])
def test_pooling_is_pytorchs_as_a_matrix(side: int, grid: int) -> None:
    features = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    weights = pooling_weights(side**2, grid**2, features)
    found = weights @ features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(features, grid).flatten(2).transpose(1, 2))


def test_pooling_gives_the_grid_asked_for() -> None:
    """The compact encoder has 3 x 3 cells here: a coarser grid is made of them, a finer one is left to the decoder."""
    for grid, places, cells in ((2, 2, 4), (0, 3, 9), (5, 5, 9)):
        encoder = Encoder(EncoderOptions(name="compact", grid=grid)).eval()
        assert encoder.grid(48) == (places, places)
        assert encoder.cells(48) == cells
        assert encoder(torch.zeros(1, 3, 48, 48)).shape == (1, cells, 160)


def reference_input() -> torch.Tensor:
    """x[i] = ((i * 2654435761) mod 2^32) / 2^31 - 1, as the weights' description gives it."""
    i = torch.arange(3 * 224 * 224, dtype=torch.int64)
    return ((i * 2654435761) % 2**32).double().div(2**31).sub(1).float().view(1, 3, 224, 224)


@pytest.mark.parametrize(
    ("name", "file", "shape", "mean", "deviation"),
    [
        ("resnet18-layer3", "resnet18_conv1_to_layer3_bnfolded", (1, 196, 256), 0.106996, 0.164638),
        ("mobilenet_v2", "mobilenet_v2_keras_imagenet_int8deq", (1, 49, 1280), 0.270981, 0.885132),
    ],
)
def test_loaded_weights_give_the_published_outputs(
    shared: Path, name: str, file: str, shape: tuple[int, ...], mean: float, deviation: float
) -> None:
    weights = str(shared / f"data/backbones/{file}.safetensors")
    encoder = Encoder(EncoderOptions(name=name, weights=weights), pretrained=True).eval()
    with torch.inference_mode():
        annotations = encoder(reference_input())
    assert annotations.shape == shape
    assert float(annotations.mean()) == pytest.approx(mean, abs=2e-6)
    assert float(annotations.std(correction=0)) == pytest.approx(deviation, abs=2e-5)


def test_a_frozen_trunk_stays_in_evaluation_mode_and_has_no_gradient() -> None:
    encoder = Encoder(EncoderOptions(name="compact", frozen=True)).train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_wrong_weight_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"

    def load() -> None:
        Encoder(EncoderOptions(name="compact", weights=str(path)), pretrained=True)

    with pytest.raises(CheckpointError, match=r"weights\.safetensors: cannot be read"):
        load()
    save_file(Encoder(EncoderOptions(name="compact")).trunk.state_dict(), path)
    load()
    tensors = load_file(path)
    del tensors["stem.0.0.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"1 of the \d+ tensors of compact are missing, .* 'stem\.0\.0\.weight'"):
        load()
    save_file(tensors | {"stem.0.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"stem\.0\.0\.weight has shape \(1,\), compact expects \(32, 3, 3, 3\)"):
        load()


def test_an_unknown_encoder_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown encoder 'resnet19', choose from compact, resnet18"):
        EncoderOptions(name="resnet19")
