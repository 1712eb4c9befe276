"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from saccade.bundle import Bundle
from saccade.errors import BackendError
from saccade.search import Arrays, Decoding, HostDecoding, SearchOptions, glimpses_of

PROVIDER = "CPUExecutionProvider"


def open_backend(bundle: Bundle, *, threads: int) -> OrtBackend:
    """Open both graphs. Raises BackendError if ONNX Runtime refuses one."""
    return OrtBackend(bundle, threads=threads)


class OrtBackend:
    """Both graphs as sessions; the decoder state stays in host memory."""

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        self.description = f"ONNX Runtime {onnxruntime.__version__}, CPU, float32"
        self._start = bundle.vocabulary.start
        self._attention = bundle.manifest.attention
        self._encoder = _Graph(bundle, "encoder", threads)
        self._step = _Graph(bundle, "step", threads)

    def begin(self, pixels: NDArray[np.uint8], options: SearchOptions, *, with_alphas: bool) -> Decoding:
        """Encode a batch and prepare its search."""
        encoded = self._encoder({"pixels": pixels})
        return HostDecoding(
            self._step,
            encoded,
            beam=options.beam,
            start=self._start,
            with_alphas=with_alphas,
            glimpses=glimpses_of(pixels, options, self._attention, places=encoded["annotations"].shape[1]),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._encoder, self._step


class _Graph:
    def __init__(self, bundle: Bundle, name: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Encoding, search and loading go on at once: threads that spin while they wait take cores from the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(bundle.graph(name), options, providers=[PROVIDER])
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {bundle.graph(name)}: {error}"
            ) from error
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._names, self._session.run(None, dict(inputs)), strict=True))
