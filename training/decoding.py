"""Search with the eager PyTorch graphs: used by validation, by export checks and by the PyTorch backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saccade.decoding import Arrays, initial_rows
from saccade.glimpses import Glimpses
from saccade.hypotheses import Hypothesis, StepReport
from saccade.search import SearchOptions, glimpses_of, search
from saccade.vocabulary import Vocabulary
from training.graphs import ENCODER_OUTPUTS, STEP_OUTPUTS, EncoderGraph, StepGraph
from training.model import Captioner


class TorchDecoding:
    """A `saccade.decoding.Decoding` whose state stays on the model's device."""

    def __init__(
        self,
        step: StepGraph,
        encoded: dict[str, Tensor],
        *,
        beam: int,
        start: int,
        with_alphas: bool,
        glimpses: Glimpses | None = None,
    ) -> None:
        self._step = step
        self._glimpses = glimpses
        self._with_alphas = with_alphas
        self._device = encoded["hidden"].device
        self._constants = {name: encoded[name] for name in ("annotations", "keys")}
        self.images = len(encoded["hidden"])
        rows = initial_rows(self.images, beam=beam, start=start)
        self._state = {name: torch.from_numpy(value).to(self._device) for name, value in rows.items()}
        for name in ("hidden", "cell"):
            self._state[name] = encoded[name][:, None].expand(-1, beam, -1)

    @torch.inference_mode()
    def advance(self, word_bias: NDArray[np.float32]) -> StepReport:
        """Run one step; only the small arrays come to the host."""
        given = {"word_bias": word_bias, **(self._glimpses.step() if self._glimpses else {})}
        inputs = {name: torch.from_numpy(value).to(self._device) for name, value in given.items()}
        outputs = dict(zip(STEP_OUTPUTS, self._step(**self._constants, **self._state, **inputs), strict=True))
        self._state = {name: outputs[f"next_{name}"] for name in self._state}
        return StepReport(
            tokens=outputs["next_tokens"].cpu().numpy(),
            parents=outputs["parents"].cpu().numpy(),
            scores=outputs["next_scores"].cpu().numpy(),
            alphas=outputs["alphas"].float().cpu().numpy() if self._with_alphas else None,
        )


class TorchDecoder:
    """Captions pixels with a captioner in evaluation mode."""

    def __init__(self, captioner: Captioner, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._device = captioner.mean.device
        self._attention = captioner.decoder.options.attention
        self._encoder = EncoderGraph(captioner)
        self._step = StepGraph(captioner.decoder, end=vocabulary.end)

    @torch.inference_mode()
    def encode(self, images: NDArray[Any]) -> dict[str, Tensor]:
        """Encoder outputs of pixels uint8 (B, S, S, 3) or annotations float16 (B, C, D), on the model's device."""
        outputs = self._encoder(torch.from_numpy(images).to(self._device))
        return dict(zip(ENCODER_OUTPUTS, outputs, strict=True))

    @torch.inference_mode()
    def run(self, graph: str, inputs: Arrays) -> Arrays:
        """Outputs of graph "encoder" or "step", on the host."""
        module, names = {"encoder": (self._encoder, ENCODER_OUTPUTS), "step": (self._step, STEP_OUTPUTS)}[graph]
        given = {name: torch.from_numpy(np.asarray(values)).to(self._device) for name, values in inputs.items()}
        return {name: tensor.cpu().numpy() for name, tensor in zip(names, module(**given), strict=True)}

    def begin(self, images: NDArray[Any], options: SearchOptions, *, with_alphas: bool) -> TorchDecoding:
        """Encode a batch and prepare its search."""
        encoded = self.encode(images)
        return TorchDecoding(
            self._step,
            encoded,
            beam=options.beam,
            start=self._vocabulary.start,
            with_alphas=with_alphas,
            glimpses=glimpses_of(images, options, self._attention, places=encoded["keys"].shape[1]),
        )

    def search(
        self, images: NDArray[Any], options: SearchOptions, *, with_alphas: bool = False
    ) -> list[list[Hypothesis]]:
        """Hypotheses of each image, best first."""
        return search(self.begin(images, options, with_alphas=with_alphas), self._vocabulary, options)
