"""TensorRT: the plans that `saccade build` made on this machine, as executors of the two graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pycuda.driver as driver
import tensorrt as trt
from numpy.typing import NDArray

from engine.backends.buffers import Buffer, BufferedBackend, Run
from engine.backends.cuda import Array, Cuda, Replay, Stream
from saccade.bundle import Bundle, Precision, TensorSpec
from saccade.decoding import Decoding
from saccade.errors import BackendError
from saccade.hypotheses import StepReport
from saccade.plans import Machine, PlanOptions, Target, beams_built, collecting_logger, machine_of, read_plan, reason
from saccade.search import SearchOptions

PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32", "int8")
"""Which plans are taken where there is a choice, best first."""


def check() -> None:
    """Raise BackendError where there is no GPU."""
    machine_of(driver, tensorrt=trt.__version__)


def open_backend(bundle: Bundle, *, threads: int, precision: Precision | None) -> TrtBackend:
    """Load the plans of a precision, or of the first that has some. Raises BackendError where they must be built."""
    del threads  # nothing is computed on the CPU
    machine = machine_of(driver, tensorrt=trt.__version__)
    precision = precision or next((one for one in PRECISIONS if beams_built(bundle, one)), None)
    if precision is None or not (beams := beams_built(bundle, precision)):
        command = PlanOptions(precision=precision or "fp16").command(bundle.path)
        raise BackendError(f'{bundle.path} has no plans of TensorRT for the step graph: run "{command}"')
    cuda = Cuda()
    try:
        encoder = _Plan(cuda, bundle, Target("encoder", 0, precision), machine)
        steps = {beam: _Plan(cuda, bundle, Target("step", beam, precision), machine) for beam in beams}
        return TrtBackend(bundle, cuda, encoder=encoder, steps=steps)
    except BaseException:
        cuda.close()
        raise


class TrtBackend(BufferedBackend):
    """A `Backend` over plans. A batch above the largest bucket is encoded and searched in several parts."""

    def __init__(self, bundle: Bundle, cuda: Cuda, *, encoder: _Plan, steps: Mapping[int, _Plan]) -> None:
        """The backend owns `cuda`."""
        precision, machine = encoder.record.precision, encoder.record.machine
        super().__init__(
            bundle,
            encoder=_Executor(bundle, {0: encoder}),
            step=_Executor(bundle, steps),
            description=f"TensorRT {machine.tensorrt}, {machine.gpu}, {precision}",
            precision=precision,
        )
        self._cuda = cuda
        self._largest = min(plan.record.buckets[-1][1] for plan in (encoder, *steps.values()))

    def begin(self, pixels: NDArray[np.uint8], options: SearchOptions, *, with_alphas: bool) -> Decoding:
        """Encode a batch and prepare its search."""
        parts = [pixels[first : first + self._largest] for first in range(0, len(pixels), self._largest)]
        decodings = [super(TrtBackend, self).begin(part, options, with_alphas=with_alphas) for part in parts]
        return decodings[0] if len(decodings) == 1 else _Together(decodings)

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        self._cuda.close()


class _Together:
    """Several decodings as one."""

    def __init__(self, decodings: Sequence[Decoding]) -> None:
        self.images = sum(decoding.images for decoding in decodings)
        self._decodings = decodings

    def advance(self, word_bias: NDArray[np.float32]) -> StepReport:
        """Run one step of each."""
        reports = [decoding.advance(word_bias) for decoding in self._decodings]
        tokens, parents, scores, alphas = zip(*reports, strict=True)
        together = None if alphas[0] is None else np.concatenate(alphas)
        return StepReport(np.concatenate(tokens), np.concatenate(parents), np.concatenate(scores), together)


class _Executor:
    """A graph as an `Executor`: for each beam a plan, and one for none."""

    def __init__(self, bundle: Bundle, plans: Mapping[int, _Plan]) -> None:
        self._bundle, self._plans = bundle, plans
        self._first = next(iter(plans.values()))
        self.spec = self._first.spec

    def empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> Array:
        """An array on the GPU."""
        return self._first.empty(tensor, shape)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Run:
        """A context of the plan for these shapes, with all addresses set once."""
        arrays = {name: cast("Array", array) for name, array in (*inputs.items(), *outputs.items())}
        beam = arrays["tokens"].shape[1] if "tokens" in inputs else 0
        if beam not in self._plans:
            precision = self._first.record.precision
            options = PlanOptions(beams=tuple(sorted((*self._plans, beam))), precision=precision)
            raise BackendError(
                f"{self._bundle.path} has plans for beam {', '.join(map(str, self._plans))}, not for {beam}: "
                f'run "{options.command(self._bundle.path)}"'
            )
        return self._plans[beam].bind({name: arrays[name] for name in inputs}, {name: arrays[name] for name in outputs})

    def take(self, places: NDArray[np.intp], others: Sequence[tuple[Buffer, Buffer]], images: NDArray[np.intp]) -> None:
        """Copy images between arrays."""
        self._first.take(places, [(cast("Array", here), cast("Array", there)) for here, there in others], images)


class _Plan:
    """An engine of TensorRT with a stream for what it runs, and one for what is copied apart from that.

    Its contexts share the memory for what lies between inputs and outputs: a stream runs one thing at a time.
    """

    def __init__(self, cuda: Cuda, bundle: Bundle, target: Target, machine: Machine) -> None:
        """Load the plan. Raises BackendError where it does not fit the machine or TensorRT refuses it."""
        self.record, plan = read_plan(bundle, target, machine)
        self.spec = target.spec(bundle)
        self._cuda, self._path, self._log = cuda, target.file(bundle), collecting_logger(trt)
        with cuda.current():
            self._engine = [_deserialised(plan, self._log)]
        cuda.own(self, self._engine.clear)
        if self._engine[0] is None:
            raise BackendError(f"{self._path}: TensorRT {trt.__version__} refuses it: {reason(self._log)}")
        self._scratch_size = _scratch_size(self._engine[0])
        self._scratch = cuda.memory(self, self._scratch_size)
        self._stream, self._copies = cuda.stream(self), cuda.stream(self)

    def empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> Array:
        """An array on the GPU."""
        return Array(self._cuda, self._copies, shape, tensor.dtype)

    def take(self, places: NDArray[np.intp], others: Sequence[tuple[Array, Array]], images: NDArray[np.intp]) -> None:
        """Copy images between arrays, and return when they are there."""
        with self._cuda.current(), self._copies.lock:
            for here, there in others:
                for place, image in zip(places.tolist(), images.tolist(), strict=True):
                    here.take(place, there, image, self._copies)
            self._copies.finish()

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> _Run:
        """A context for these shapes, with all addresses set once. Raises BackendError where TensorRT refuses them."""
        profile = self._profile(inputs[self.spec.inputs[0].name].shape[0])
        with self._cuda.current(), self._stream.lock:
            engine: trt.ICudaEngine = self._engine[0]
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context: trt.IExecutionContext = engine.create_execution_context(strategy)
            self._require(context is not None, "a context")
            context.set_device_memory(self._scratch, self._scratch_size)
            self._require(context.set_optimization_profile_async(profile, self._stream.handle), f"profile {profile}")
            for name, array in inputs.items():
                self._require(context.set_input_shape(name, array.shape), f"{name} of shape {array.shape}")
            for name, array in (*inputs.items(), *outputs.items()):
                self._require(context.set_tensor_address(name, array.address), f"the address of {name}")
            self._require(not context.infer_shapes(), "these shapes")
            self._stream.mark()
        return _Run(
            self._cuda, self._stream, context, (*inputs.values(), *outputs.values()), f"{self._path}", self._log
        )

    def _profile(self, images: int) -> int:
        buckets = self.record.buckets
        for index, (smallest, largest) in enumerate(buckets):
            if smallest <= images <= largest:
                return index
        raise BackendError(
            f"{self._path} has profiles for batches of {buckets[0][0]} to {buckets[-1][1]}, not {images}"
        )

    def _require(self, taken: bool, what: str) -> None:
        if not taken:
            raise BackendError(f"{self._path}: TensorRT refuses {what}: {reason(self._log)}")


def _deserialised(plan: bytes, log: Any) -> trt.ICudaEngine | None:
    runtime: trt.Runtime = trt.Runtime(log)
    return runtime.deserialize_cuda_engine(plan)


def _scratch_size(engine: trt.ICudaEngine) -> int:
    """Bytes for what lies between inputs and outputs, in the profile that needs most."""
    size: int = engine.device_memory_size_v2
    return size


class _Run:
    """A context on its arrays: call it to run, and the arrays can be read."""

    def __init__(
        self, cuda: Cuda, stream: Stream, context: trt.IExecutionContext, arrays: Sequence[Array], name: str, log: Any
    ) -> None:
        self._cuda, self._stream, self._arrays = cuda, stream, arrays
        held = [context]
        cuda.own(self, held.clear)
        self._replay = Replay(cuda, name, _enqueue_of(held, name, log))

    def __call__(self) -> None:
        with self._cuda.current():
            with self._stream.lock:
                self._replay(self._stream)
                for array in self._arrays:
                    array.fetch(self._stream)
                self._stream.mark()
            self._stream.wait()


def _enqueue_of(held: list[trt.IExecutionContext], name: str, log: Any) -> Callable[[Stream], None]:
    def enqueue(stream: Stream) -> None:
        context: trt.IExecutionContext = held[0]
        if not context.execute_async_v3(stream.handle):
            raise BackendError(f"{name}: TensorRT does not run it: {reason(log)}")

    return enqueue
