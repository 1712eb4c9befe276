"""The command lines of `trtexec`, TensorRT's own tool, that reproduce the plans: to compare, and to report a fault."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from saccade.bundle import Bundle
from saccade.plans import FOLDER, PlanOptions, Profile, Target, targets


def trtexec_commands(bundle: Bundle, options: PlanOptions) -> list[str]:
    """One command a plan."""
    return [shlex.join(_arguments(bundle, target, options)) for target in targets(options)]


def _arguments(bundle: Bundle, target: Target, options: PlanOptions) -> Iterator[str]:
    yield "trtexec"
    yield f"--onnx={bundle.path / target.spec(bundle).file}"
    yield f"--saveEngine={target.file(bundle)}"
    yield "--stronglyTyped"
    if target.precision == "fp32":
        yield "--noTF32"
    for index, profile in enumerate(target.profiles(bundle, options.batches)):
        yield f"--profile={index}"  # the three options after it belong to it
        for place, bound in enumerate(("min", "opt", "max")):
            yield f"--{bound}Shapes={_shapes(profile, place)}"
    yield f"--timingCacheFile={bundle.path / FOLDER / 'trtexec.cache'}"
    yield "--skipInference"


def _shapes(profile: Profile, place: int) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, bounds[place]))}" for name, bounds in profile.items())
