"""Eager PyTorch in float32: the reference. Needs a bundle that holds the checkpoint."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from saccade.bundle import CHECKPOINT, Bundle, Precision
from saccade.decoding import Arrays, Decoding
from saccade.errors import BackendError
from saccade.search import SearchOptions
from saccade.structure import structure
from training.decoding import TorchDecoder
from training.encoders import EncoderOptions
from training.model import Captioner, DecoderOptions, build_captioner


def open_backend(
    bundle: Bundle,
    *,
    threads: int,
    precision: Precision | None,  # noqa: ARG001 - there is one
) -> PytorchBackend:
    """Build the model and load its weights. Raises BackendError if the bundle has none."""
    return PytorchBackend(bundle, threads=threads)


class PytorchBackend:
    """The eager graphs on CUDA where there is one, else on the CPU."""

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # The reference is float32: convolutions would run in TF32 on a GPU otherwise.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.precision: Precision = "fp32"
        self.description = f"PyTorch {torch.__version__}, {device.type.upper()}, float32, eager"
        self._decoder = TorchDecoder(captioner_of(bundle).to(device).eval(), bundle.vocabulary)

    def begin(self, pixels: NDArray[np.uint8], options: SearchOptions, *, with_alphas: bool) -> Decoding:
        """Encode a batch and prepare its search."""
        return self._decoder.begin(pixels, options, with_alphas=with_alphas)

    def run(self, graph: str, inputs: Arrays) -> Arrays:
        """Run one graph eagerly on arrays of the host."""
        return self._decoder.run(graph, inputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._decoder


def captioner_of(bundle: Bundle) -> Captioner:
    """The model that a bundle was exported from. Raises BackendError if its weights are not in it."""
    path = bundle.path / CHECKPOINT
    if CHECKPOINT not in bundle.manifest.files:
        raise BackendError(
            f"{bundle.path} was exported without its weights, which the PyTorch backend needs: "
            'export it with "--with-checkpoint", or choose another --backend'
        )
    model: dict[str, Any] = bundle.manifest.model
    spec = bundle.manifest.preprocessing
    source = f"{bundle.path}: model of the manifest"
    captioner = build_captioner(
        structure(model.get("encoder"), EncoderOptions, source=source, error=BackendError),
        structure(model.get("decoder"), DecoderOptions, source=source, error=BackendError),
        words=len(bundle.vocabulary),
        mean=spec.mean,
        std=spec.std,
    )
    try:
        captioner.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise BackendError(
            f"{path} does not fit the model of the manifest ({error}): export the bundle again"
        ) from error
    if captioner.encoder.options.grid:
        _check_annotations(bundle, captioner.eval())
    return captioner


@torch.inference_mode()
def _check_annotations(bundle: Bundle, captioner: Captioner) -> None:
    """Raise BackendError if the graphs have another number of annotations than the model, as exports once did."""
    size = bundle.manifest.preprocessing.size
    made = captioner.annotate(torch.zeros(1, size, size, 3, dtype=torch.uint8)).values.shape[1]
    told = bundle.graph("encoder").outputs[0].shape[1]
    if made != told:
        raise BackendError(
            f"{bundle.path} has {told} annotations an image, its model makes {made}: export the bundle again, or "
            "choose another --backend"
        )
