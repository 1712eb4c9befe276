"""A captioner in 16 bits, for captioning alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from saccade.rounding import Half, rounded
from training.model import Captioner


def lowered(captioner: Captioner, dtype: torch.dtype, *, size: int) -> Captioner:
    """A copy for images of `size` pixels a side, in evaluation mode, with all but scores in another precision.

    Batch normalisation goes into the convolutions before, so that each weight is rounded once, and weights are rounded
    by `saccade.rounding`. Pixels are normalised, and softmax and scores computed, in float32 as before.
    """
    copied = copy.deepcopy(captioner).eval()
    fold_batch_norms(copied.encoder, torch.zeros(1, 3, size, size, device=captioner.mean.device))
    if dtype in _HALVES:
        _round_weights(copied, _HALVES[dtype])
    copied.to(dtype)
    copied.mean, copied.std = captioner.mean, captioner.std
    return copied


_HALVES: dict[torch.dtype, Half] = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def _round_weights(network: nn.Module, precision: Half) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.data
            weight.copy_(torch.from_numpy(rounded(weight.cpu().numpy(), precision)))


def fold_batch_norms(network: nn.Module, images: Tensor) -> None:
    """Put every batch normalisation of a convolution's output, as running on `images` shows, into its weights."""
    makers: dict[int, nn.Conv2d] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    kept: list[Tensor] = []  # so that an id stays its tensor's
    names = {module: name for name, module in network.named_modules()}

    def watch(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            makers[id(made)] = module
            kept.append(made)
        elif isinstance(module, nn.BatchNorm2d) and id(given[0]) in makers:
            pairs.append((makers[id(given[0])], module))

    hooks = [module.register_forward_hook(watch) for module in names]
    with torch.inference_mode():
        network(images)
    for hook in hooks:
        hook.remove()
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        network.set_submodule(names[norm], nn.Identity())
