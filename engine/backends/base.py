"""What a backend is: something that executes the two graphs. The search loop above it is shared."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from saccade.bundle import Bundle
from saccade.errors import BackendError
from saccade.search import Decoding, SearchOptions

log = logging.getLogger(__name__)


class Backend(Protocol):
    """An opened bundle on one runtime. A context manager: everything it holds is freed at the end."""

    description: str
    """What truly runs, in a few words: runtime, version, device, precision."""

    def begin(self, pixels: NDArray[np.uint8], options: SearchOptions, *, with_alphas: bool) -> Decoding:
        """Encode pixels uint8 (B, S, S, 3) and prepare their search. Raises ConfigError for an unfit decode mode."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """Where a backend lives, which package it needs and which extra brings that."""

    module: str
    package: str
    extra: str

    def open(self, bundle: Bundle, *, threads: int) -> Backend:
        """Open the bundle. Raises BackendError where the runtime is missing or does not work."""
        try:
            opener: Callable[..., Backend] = importlib.import_module(self.module).open_backend
        except ModuleNotFoundError as error:
            raise BackendError(
                f"{error.name} is not installed: pip install 'saccade[{self.extra}]', or choose another --backend"
            ) from error
        except (ImportError, OSError) as error:  # OSError: a shared library is missing or broken
            raise BackendError(
                f"{self.package} is installed but does not import ({error}): pip install --force-reinstall "
                f"'saccade[{self.extra}]', or choose another --backend"
            ) from error
        return opener(bundle, threads=threads)


BACKENDS = {
    "ort": BackendEntry("engine.backends.ort", "onnxruntime", "cpu"),
    "pytorch": BackendEntry("engine.backends.pytorch", "torch", "train"),
}
"""By name, best first: the order in which `auto` tries them."""


def open_backend(name: str, bundle: Bundle, *, threads: int = 0) -> Backend:
    """Open a bundle on the named backend, or with "auto" on the best one that truly works here.

    threads : for the arithmetic of CPU backends; 0 leaves the choice to the runtime
    """
    if name != "auto":
        if name not in BACKENDS:
            raise BackendError(f"unknown backend {name!r}, choose auto, {', '.join(BACKENDS)}")
        return BACKENDS[name].open(bundle, threads=threads)
    reasons = []
    for candidate, entry in BACKENDS.items():
        try:
            backend = entry.open(bundle, threads=threads)
        except BackendError as error:
            reasons.append(f"{candidate}: {error}")
            continue
        for reason in reasons:
            log.warning("not used: %s", reason)
        return backend
    raise BackendError("no backend works here; " + "; ".join(reasons))
