"""What is fused for GPUs computes what it replaces. Without one, Triton interprets, and cuDNN has stand-ins."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training import fused_attention_cases as cases
from training.encoders import EncoderOptions
from training.fused_convolutions import with_fused_convolutions
from training.lowering import fold_batch_norms
from training.model import DecoderOptions, build_captioner

Numbers = tuple[int, int]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of cuDNN's fused convolutions were called; the stand-ins compute what its documentation says."""
    found: list[str] = []

    def with_relu(images: Tensor, weight: Tensor, bias: Tensor, *how: Any) -> Tensor:
        found.append("relu")
        return F.conv2d(images, weight, bias, *how).relu()

    def with_sum(images: Tensor, weight: Tensor, other: Tensor, factor: float, bias: Tensor, *how: Any) -> Tensor:
        found.append("add_relu")
        return (F.conv2d(images, weight, bias, *how) + factor * other).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", with_relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", with_sum)
    return found


def trunk(name: str) -> tuple[nn.Module, Tensor]:
    """With batch statistics that are not 0 and 1, folded, and images for it."""
    torch.manual_seed(0)
    model = build_captioner(
        EncoderOptions(name=name), DecoderOptions(), words=5, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )
    network = model.encoder.trunk
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network.train()(images)
    fold_batch_norms(network.eval(), images)
    return network, images


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16", "mobilenet_v2", "compact"])
def test_fused_convolutions_compute_what_they_replace(name: str, calls: list[str]) -> None:
    network, images = trunk(name)
    with torch.inference_mode():
        expected = network(images)
        torch.testing.assert_close(with_fused_convolutions(network)(images), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network(images), expected)  # it is as it was


@pytest.mark.parametrize(
    ("name", "numbers"), [("resnet18", (9, 8)), ("resnet50", (33, 16)), ("vgg16", (13, 0)), ("mobilenet_v2", (0, 0))]
)
def test_every_rectifier_of_a_convolution_is_fused(name: str, numbers: Numbers, calls: list[str]) -> None:
    network, images = trunk(name)
    with torch.inference_mode():
        with_fused_convolutions(network)(images)
    assert (calls.count("relu"), calls.count("add_relu")) == numbers


class Branches(nn.Module):
    """A convolution wanted with and without its rectifier, a sum of no convolution, and one of it and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.rectifier = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        made = self.convolution(images)
        other = self.convolution(images)
        rectified: Tensor = self.rectifier(made) + made + self.rectifier(images + 1) + self.rectifier(other + 2)
        return rectified


def test_what_is_used_elsewhere_too_stays_apart(calls: list[str]) -> None:
    network, images = Branches(), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(with_fused_convolutions(network)(images), network(images))
    assert calls == []


def test_fused_attention_looks_where_the_other_does() -> None:
    """In a process of its own: Triton decides when it is first imported whether it interprets."""
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-W", "error", "-m", cases.__name__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "14 cases\n"


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("is_tanh", [True, False])
def test_fused_attention_compiles_for_gpus_that_are_not_here(capability: int, is_tanh: bool) -> None:
    """As it is launched: four arrays, five sizes, and what is fixed when it is compiled."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from training.fused_attention import _energies

    kinds = [*["*fp16"] * 3, "*fp32", *["i32"] * 5, *["constexpr"] * 3]
    signature = dict(zip(_energies.arg_names, kinds, strict=True))
    constants = {"PLACES": 16, "WIDTH": 512, "IS_TANH": is_tanh}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Triton, about its own options
        source = ASTSource(fn=_energies, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f".target sm_{capability}" in compiled.asm["ptx"]


@pytest.mark.gpu
def test_fused_attention_looks_where_the_other_does_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert cases.check("cuda") == 14


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16", "mobilenet_v2", "compact"])
def test_fused_convolutions_compute_what_they_replace_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    network, images = trunk(name)
    network = network.to("cuda", dtype).to(memory_format=torch.channels_last)
    images = images.to("cuda", dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        expected, found = network(images).float(), with_fused_convolutions(network)(images).float()
    assert (found - expected).norm() <= 3e-2 * expected.norm()
