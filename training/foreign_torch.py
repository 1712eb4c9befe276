"""Files of `torch.save` read as data, with tensors as NumPy views: the zip of torch 1.6 and later, and what was before.

`torch.load` runs what a file says; with `weights_only=True` it refuses whole modules, as many people have saved them.
Here they become records, whose tensors `state_of` collects, and nothing is run (`training.foreign_pickle`).
"""

from __future__ import annotations

import io
import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from saccade.errors import CheckpointError
from training.foreign_archive import SIGNATURE, mapped, members
from training.foreign_pickle import CONTAINERS, Name, PickleError, Record, Trust, read_pickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first two pickles of a file from before torch 1.6."""

_MAX_AXES = 32
_STORAGES: dict[str, np.dtype[Any]] = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_STORAGES |= {name.replace("torch.", "torch.cuda."): dtype for name, dtype in _STORAGES.items()}

_RECORDS = {
    "torch.Size",
    "torch.device",
    "torch.float32",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("dict", "set", "list", "object")),
    # a score that NumPy has computed
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
}


@dataclass(eq=False, slots=True)
class Storage:
    """Numbers in a row; their bytes are None until they are found."""

    dtype: np.dtype[Any]
    elements: int
    content: memoryview | None = None


@dataclass(eq=False, frozen=True, slots=True)
class Stretch:
    """Elements of a storage, from one of them on."""

    storage: Storage
    first: int
    elements: int


@dataclass(eq=False, frozen=True, slots=True)
class ForeignTensor:
    """Where the elements of a tensor lie; strides count elements."""

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> NDArray[Any]:
        """A view of the file."""
        if 0 in self.shape:
            return np.empty(self.shape, self.storage.dtype)
        size = self.storage.dtype.itemsize
        return np.ndarray(
            self.shape,
            self.storage.dtype,
            buffer=self.storage.content,
            offset=size * self.first,
            strides=tuple(size * stride for stride in self.strides),
        )


def read_torch(path: Path, *, classes: frozenset[str]) -> Any:
    """What `torch.save` wrote: tensors as ForeignTensor, modules and optimisers as Record.

    classes : names of classes of the program that wrote the file, whatever module they were in
    Raises CheckpointError where it is damaged, cut short or big-endian, or holds anything that is neither data nor a
    class of torch, torchvision or of those names.
    """
    content = mapped(path)
    reader = _read_zip if content[: len(SIGNATURE)] == SIGNATURE else _read_before_zip
    return reader(path, content, classes)


def state_of(value: Any) -> dict[str, NDArray[Any]] | None:
    """The tensors of a module or of a state dict, by the names that `state_dict` gives them; None of anything else.

    What `nn.DataParallel` puts before every name is taken away.
    """
    if isinstance(value, Record):
        tensors = dict(_tensors(value, "", set()))
    elif isinstance(value, dict) and all(isinstance(name, str) for name in value):
        tensors = {name: tensor for name, tensor in value.items() if isinstance(tensor, ForeignTensor)}
    else:
        return None
    parallel = "module."
    if all(name.startswith(parallel) for name in tensors):
        tensors = {name.removeprefix(parallel): tensor for name, tensor in tensors.items()}
    return {name: tensor.array() for name, tensor in tensors.items()}


def _tensors(module: Record, prefix: str, seen: set[int]) -> Iterator[tuple[str, ForeignTensor]]:
    """Those of a module and of the modules in it, each of which counts once."""
    pending = [(prefix, module)]
    while pending:
        prefix, module = pending.pop()
        if id(module) in seen or not isinstance(module.state, dict):
            continue
        seen.add(id(module))
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _items(module.state, kind):
                if isinstance(tensor, ForeignTensor):
                    yield f"{prefix}{name}", tensor
        pending += [
            (f"{prefix}{name}.", inner) for name, inner in _items(module.state, "_modules") if isinstance(inner, Record)
        ]


def _items(state: Mapping[Any, Any], kind: str) -> list[tuple[Any, Any]]:
    found = state.get(kind)
    return list(found.items()) if isinstance(found, dict) else []


def _read_zip(path: Path, content: mmap.mmap, classes: frozenset[str]) -> Any:
    found = members(path, content)
    folders = [name.removesuffix("data.pkl") for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(folders) != 1:
        raise CheckpointError(f"{path}: is a zip archive, but none that torch.save wrote: it has no data.pkl")
    (folder,) = folders
    if bytes(found.get(f"{folder}byteorder", b"little")) != b"little":
        raise CheckpointError(f"{path}: was written by a big-endian machine: save it again on another one")
    storages: dict[str, Storage] = {}

    def find(key: str, storage: Storage) -> None:
        storage.content = found.get(f"{folder}data/{key}")
        if storage.content is None or len(storage.content) != storage.elements * storage.dtype.itemsize:
            raise PickleError(f"its storage {key[:20]!r} is missing or of another size")

    trust = _trust(classes, lambda identifier: _storage(identifier, storages, find))
    return read_pickle(io.BytesIO(found[f"{folder}data.pkl"]), trust, path=path)


def _read_before_zip(path: Path, content: mmap.mmap, classes: frozenset[str]) -> Any:
    """Five pickles, then the storages: the number of elements of each, and the elements."""
    file, storages = cast(IO[bytes], content), dict[str, Storage]()
    if read_pickle(file, _trust(classes, None), path=path) != _MAGIC:
        raise CheckpointError(
            f"{path}: was not written by torch.save: it is neither its zip archive nor its old format"
        )
    protocol, system = (read_pickle(file, Trust(), path=path) for _ in range(2))
    if protocol != _PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(
            f"{path}: was written by a big-endian machine, or is of a format that no version of torch wrote: "
            "load it with the torch that wrote it and save it again"
        )
    trust = _trust(classes, lambda identifier: _identified(identifier, storages))
    value = read_pickle(file, trust, path=path)
    keys = read_pickle(file, Trust(), path=path)
    if not isinstance(keys, list):
        raise CheckpointError(f"{path}: has no list of storages: it is damaged, copy or download it again")
    view, place = memoryview(content), content.tell()
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        place = _fill(path, view, place, storage)
    if missing := [key for key, storage in storages.items() if storage.content is None]:
        raise CheckpointError(f"{path}: {len(missing)} storages are missing: it is damaged, copy or download it again")
    return value


def _fill(path: Path, content: memoryview, place: int, storage: Storage | None) -> int:
    """Give a storage its bytes, which begin at a place with their number of elements. Returns where they end."""
    first = place + 8
    if storage is not None and first <= len(content):
        (elements,) = struct.unpack("<q", content[place:first])
        end = first + storage.elements * storage.dtype.itemsize
        if elements == storage.elements and end <= len(content):
            storage.content = content[first:end]
            return end
    raise CheckpointError(f"{path}: is cut short or damaged: copy or download it again")


def _trust(classes: frozenset[str], persistent: Callable[[Any], Any] | None) -> Trust:
    def is_record(name: Name) -> bool:
        known = str(name) in _RECORDS or name.name.endswith("Storage") or name.name in classes
        return known or name.module.startswith(("torch.nn.", "torch.optim.", "torchvision.models."))

    return Trust(
        records=is_record,
        stand_ins={
            **CONTAINERS,
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": lambda *arguments: _tensor(*arguments[:4]),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        },
        persistent=persistent,
    )


def _identified(identifier: Any, storages: dict[str, Storage]) -> Any:
    """A class, with its source, or a storage of a file from before the zip."""
    if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
        return identifier[1]
    return _storage(identifier, storages)


def _storage(
    identifier: Any, storages: dict[str, Storage], find: Callable[[str, Storage], None] | None = None
) -> Stretch:
    """The storage of ("storage", class, key, device, elements) and, before the zip, (key, first, elements) of a view.

    find : gives a new storage its bytes, where they are known
    """
    match identifier:
        case ("storage", Name() as kind, str(key), _, int(elements), *view) if str(kind) in _STORAGES:
            dtype = _STORAGES[str(kind)]
        case ("storage", Name() as kind, *_):
            raise PickleError(f"it has numbers of the kind {str(kind)[:40]}: save them as float32")
        case _:
            raise PickleError("it refers to something that is no storage of numbers")
    if key not in storages:
        storages[key] = Storage(dtype, _size(elements))
        if find is not None:
            find(key, storages[key])
    storage = storages[key]
    if (storage.dtype, storage.elements) != (dtype, elements):
        raise PickleError(f"it has two storages of the name {key[:20]!r}")
    match view:
        case [] | [None]:
            return Stretch(storage, 0, elements)
        case [(_, first, count)] if _size(first) + _size(count) <= elements:
            return Stretch(storage, first, count)
    raise PickleError("it has a view that leaves its storage")


def _tensor(stretch: object, first: object, shape: object, strides: object) -> ForeignTensor:
    """Where a tensor lies. No larger than its storage: what is stretched by strides of 0 would grow when copied."""
    if not isinstance(stretch, Stretch) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise PickleError("it makes a tensor of something that is no storage")
    sizes, steps = [_size(size) for size in shape], [_size(step) for step in strides]
    last = _size(first) + sum((size - 1) * step for size, step in zip(sizes, steps, strict=False))
    fits = math.prod(sizes) <= stretch.elements and (last < stretch.elements or 0 in sizes)
    if not len(sizes) == len(steps) <= _MAX_AXES or not fits:
        raise PickleError(f"it has a tensor of shape {tuple(sizes[:8])} that leaves its storage")
    return ForeignTensor(stretch.storage, stretch.first + _size(first), tuple(sizes), tuple(steps))


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise PickleError("it has a size that is none")
    return value
