"""Pickles read as data, by a machine that can build containers and nothing else: there is no instruction to run code.

Python's own unpickler imports and calls whatever a file names. Here a name of the file stays a `Name`; calling or
instantiating it makes a `Record` of what was asked for, or runs the function of ours that stands in its place; and a
name that is in neither list ends the reading. Nothing is allocated by a length in the file before those bytes are seen.
"""

from __future__ import annotations

import codecs
import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from saccade.errors import CheckpointError
from training.foreign_archive import mapped

T = TypeVar("T")

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_MAX_INSTRUCTIONS = 4_000_000
"""Twenty times those of a ResNet-152 with its optimiser; an instruction of one byte may take a hundred of memory."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle mentions, never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Record:
    """What an object would have been: `name(*arguments)`, with a state."""

    name: Name
    arguments: tuple[Any, ...]
    state: Any = None


class PickleError(ValueError):
    """What is wrong with a pickle, in words, without its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a pickle may hold beside numbers, strings and containers.

    records : whether a name may become a Record
    stand_ins : functions of ours, by the names in whose place they are called; they check their arguments and raise
        PickleError
    persistent : turns the identifier of something kept outside of the pickle into that; None allows no such thing
    """

    records: Callable[[Name], bool] = lambda _: False
    stand_ins: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    persistent: Callable[[Any], Any] | None = None


def read_pickle(file: IO[bytes], trust: Trust, *, path: Path) -> Any:
    """The value of one pickle, whose end `file` then is at. Strings of Python 2 are UTF-8, or Latin-1 if they are not.

    file : reads no more than it has, as an `io.BytesIO` does; that of a disk may allocate whatever it is asked for
    path : what errors call it
    Raises CheckpointError where it is damaged, or holds what `trust` does not allow.
    """
    machine = _Machine(trust)
    try:
        for _ in range(_MAX_INSTRUCTIONS):
            if machine.is_done:
                return machine.pop()
            machine.run(*_instruction(file))
    except PickleError as error:
        raise CheckpointError(f"{path}: refused, and nothing in it was run: {error}") from error
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{path}: holds no whole pickle, or is damaged or cut short ({error})") from error
    raise CheckpointError(f"{path}: refused: it takes over {_MAX_INSTRUCTIONS} instructions to read")


def read_pickle_file(path: Path, trust: Trust) -> Any:
    """The value of a file that is one pickle. Raises CheckpointError."""
    return read_pickle(cast(IO[bytes], mapped(path)), trust, path=path)


def _instruction(file: IO[bytes]) -> tuple[str, Any]:
    """The next opcode's name and argument. Raises ValueError."""
    code = file.read(1).decode("latin-1")
    if code not in _OPCODES:
        raise ValueError(f"unknown instruction {code!r}" if code else "it ends too early")
    opcode = _OPCODES[code]
    if opcode.name == "STRING":  # pickletools takes it for ASCII
        return opcode.name, codecs.escape_decode(pickletools.read_stringnl(file, decode=False))[0]
    return opcode.name, opcode.arg.reader(file) if opcode.arg else None


class _Machine:
    """A stack, the stacks below its marks, and a memo."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.is_done = False

    def run(self, instruction: str, argument: Any) -> None:
        if instruction not in _ACTIONS:
            raise PickleError(f"it uses the instruction {instruction}, which no such file needs")
        _ACTIONS[instruction](self, argument)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_two(self) -> list[Any]:
        """The two topmost, the lower one first."""
        return [self.pop(), self.pop()][::-1]

    def pop_mark(self) -> list[Any]:
        """What lies above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def stop(self, _: Any) -> None:
        self.is_done = True

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def drop(self, _: Any) -> None:
        if self.stack:
            self.pop()
        else:
            self.pop_mark()

    def drop_mark(self, _: Any) -> None:
        self.pop_mark()

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def extend(self, items: Iterable[Any]) -> None:
        _expected(self.stack[-1], list, "appends to").extend(items)

    def update(self, items: list[Any]) -> None:
        _expected(self.stack[-1], dict, "sets items of").update(_pairs(items))

    def mention(self, module: object, name: object) -> None:
        found = Name(_expected(module, str, "names something of"), _expected(name, str, "names"))
        if str(found) not in self.trust.stand_ins and not self.trust.records(found):
            raise PickleError(f"it names {str(found)[:80]!r}, which no such file needs")
        self.push(found)

    def call(self, name: object, arguments: object) -> None:
        called, given = _expected(name, Name, "calls"), _expected(arguments, tuple, "calls something with")
        stand_in = self.trust.stand_ins.get(str(called))
        try:
            self.push(Record(called, given) if stand_in is None else stand_in(*given))
        except TypeError as error:  # of a stand-in with other arguments than it has parameters
            raise PickleError(f"it calls {called} wrongly ({error})") from error

    def instantiate(self, _: Any) -> None:
        name, *arguments = self.pop_mark()
        self.call(name, tuple(arguments))

    def instantiate_named(self, name: str) -> None:
        arguments = self.pop_mark()
        self.mention(*name.split(" ", 1))
        self.call(self.pop(), tuple(arguments))

    def build(self, _: Any) -> None:
        state, built = self.pop(), self.stack[-1]
        if isinstance(built, Record):
            built.state = state
        else:  # attributes of a dictionary: a state dict has some, and they say nothing of its tensors
            _expected(built, dict, "gives attributes to")

    def persistent(self, identifier: object) -> None:
        if self.trust.persistent is None:
            raise PickleError("it refers to something outside of it, which no such file needs")
        self.push(self.trust.persistent(identifier))


def _expected(value: Any, kind: type[T], what: str) -> T:
    if not isinstance(value, kind):
        raise PickleError(f"it {what} a {type(value).__name__}")
    return value


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    """Keys and values that alternate. Containers are refused as keys: nested tuples may take for ever to hash."""
    for key in items[::2]:
        if isinstance(key, list | dict | tuple):
            raise PickleError(f"it has a {type(key).__name__} as a key")
    return zip(items[::2], items[1::2], strict=True)


def _text(value: str | bytes) -> str:
    """A string of Python 2, which is bytes; pickletools gives those of binary pickles as Latin-1."""
    raw = value.encode("latin-1") if isinstance(value, str) else value
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def ordered(pairs: object = None) -> dict[Any, Any]:
    """Stands in for OrderedDict: its items follow or, from Python 2, are here.

    They move over. Copied, one list that is named again and again would fill the memory.
    """
    given = [] if pairs is None else _expected(pairs, list, "makes a dictionary of")
    items = [part for pair in given for part in _expected(pair, list, "makes an item of")]
    if len(items) != 2 * len(given):
        raise PickleError("it makes a dictionary of something else than pairs")
    given.clear()
    return dict(_pairs(items))


CONTAINERS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": ordered,
    "collections.defaultdict": lambda *_: {},
}
"""Stand-ins for what many pickles hold; items of a defaultdict follow, and its factory is not needed to read."""


_Action = Callable[[_Machine, Any], None]


def _value(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _nothing(_: _Machine, __: Any) -> None:
    pass


_ACTIONS: dict[str, _Action] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "STOP": _Machine.stop,
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_mark,
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _value),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _value),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _value),
    **dict.fromkeys(
        ("STRING", "BINSTRING", "SHORT_BINSTRING"), lambda machine, argument: machine.push(_text(argument))
    ),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "DICT": lambda machine, _: machine.push(dict(_pairs(machine.pop_mark()))),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.pop_two()),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_mark()),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_mark()),
    "FROZENSET": lambda machine, _: machine.push(machine.pop_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: machine.push(machine.memo[place])),
    "GLOBAL": lambda machine, argument: machine.mention(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.mention(*machine.pop_two()),
    "REDUCE": lambda machine, _: machine.call(*machine.pop_two()),
    "NEWOBJ": lambda machine, _: machine.call(*machine.pop_two()),
    "INST": _Machine.instantiate_named,
    "OBJ": _Machine.instantiate,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "BINPERSID": lambda machine, _: machine.persistent(machine.pop()),
}
"""By name of the instruction. Sets become lists. The registry of extensions and buffers elsewhere are left out."""
