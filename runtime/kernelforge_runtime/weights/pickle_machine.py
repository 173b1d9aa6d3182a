"""Runs the few pickle instructions that a torch checkpoint consists of, and nothing else.

A pickle is a program. Python's own unpickler can be told which names to allow, but not how much
memory to take: one memo instruction can make it allocate gigabytes. This machine builds only
plain values and the three things a checkpoint names; it calls nothing, and it keeps a budget.

What the values mean (shapes, storages, offsets) is checked by `weights.pth`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kernelforge_runtime.errors import ModelError

_DICT: Final = "collections.OrderedDict"
_TENSOR: Final = "torch._utils._rebuild_tensor_v2"
_PARAMETER: Final = "torch._utils._rebuild_parameter"
STORAGES: Final = {
    "torch.FloatStorage": "f32",
    "torch.HalfStorage": "f16",
    "torch.BFloat16Storage": "bf16",
}
_ALLOWED: Final = {_DICT, _TENSOR, _PARAMETER, *STORAGES}
_COST_BYTES: Final = 64
"""What one value is taken to cost in memory, its place on the stack or in the memo included."""


@dataclass(frozen=True, slots=True)
class Name:
    """A dotted name that the pickle asked for; always one of the allowed ones."""

    path: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage as the pickle describes it: not checked against the archive yet."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as the pickle describes it: not checked against its storage yet."""

    storage: StorageRef
    offset: Any
    shape: Any
    strides: Any


class _Stop(Exception):  # noqa: N818 - a signal, not an error
    """The STOP instruction was reached."""


class PickleMachine:
    """One run over one pickle.

    The instruction set is that of protocols 2 to 5, less everything that can call, import or
    share: such an instruction ends the run with a `ModelError` that names it.
    """

    def __init__(self, program: bytes, where: str, budget_bytes: int) -> None:
        """Prepares a run.

        Args:
            program: the pickle.
            where: the file's name, for messages.
            budget_bytes: most memory that the values may take.
        """
        self._program = program
        self._where = where
        self._left = budget_bytes // _COST_BYTES
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the pickle describes.

        Raises:
            ModelError: a name or instruction that no checkpoint needs, damaged bytes, or too
                many values.
        """
        try:
            while True:
                opcode = self._bytes(1)[0]
                action = _ACTIONS.get(opcode)
                if action is None:
                    raise self._wrong(f"instruction 0x{opcode:02x} is not one a checkpoint needs")
                self._charge(1)
                action(self)
        except _Stop:
            return self._pop()

    def _charge(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise self._wrong("it builds more values than its file can account for")

    # Reading the program.

    def _bytes(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._program):
            raise self._wrong("it ends in the middle")
        piece = self._program[self._at : end]
        self._at = end
        return piece

    def _line(self) -> str:
        end = self._program.find(b"\n", self._at, self._at + 512)
        if end < 0:
            raise self._wrong("a name has no end")
        piece = self._program[self._at : end]
        self._at = end + 1
        return piece.decode("utf-8", "backslashreplace")

    def _uint(self, width: int) -> int:
        return int.from_bytes(self._bytes(width), "little")

    # The stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self._wrong("it takes a value from an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._push(value)
        return value

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise self._wrong("it looks for a mark that was never set")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    # Instructions.

    def text(self, width: int) -> None:
        """Pushes a UTF-8 string whose length takes `width` bytes."""
        raw = self._bytes(self._uint(width))
        self._charge(4 * len(raw) // _COST_BYTES)  # a character may take four bytes
        try:
            self._push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            raise self._wrong("a string is not UTF-8") from None

    def integer(self, width: int, signed: bool) -> None:
        """Pushes an integer of `width` bytes."""
        self._push(int.from_bytes(self._bytes(width), "little", signed=signed))

    def long(self) -> None:
        """Pushes an integer with its own length; more than 8 bytes measure nothing real."""
        width = self._uint(1)
        if width > 8:
            raise self._wrong(f"an integer of {width} bytes")
        self.integer(width, signed=True)

    def floating(self) -> None:
        """Pushes a big-endian double."""
        self._push(struct.unpack(">d", self._bytes(8))[0])

    def tuple_of(self, count: int) -> None:
        """Replaces the top `count` values by a tuple of them."""
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def put(self, index: int) -> None:
        """Remembers the top value under `index`."""
        self._memo[index] = self._top()

    def get(self, index: int) -> None:
        """Pushes the value remembered under `index`."""
        if index not in self._memo:
            raise self._wrong(f"it recalls value {index}, which it never stored")
        self._push(self._memo[index])

    def name(self, module: Any, attribute: Any) -> None:
        """Pushes an allowed name; every other one ends the run, before anything could run."""
        path = f"{module}.{attribute}"
        if not (isinstance(module, str) and isinstance(attribute, str)) or path not in _ALLOWED:
            if path.startswith("torch.") and path.endswith("Storage"):
                raise ModelError(
                    f"{self._where}: holds a tensor of type {path[:80]}; only float32, float16 "
                    "and bfloat16 are read: save it as one of these"
                )
            raise ModelError(
                f"{self._where}: its pickle asks to call {path[:120]!r}, which no weights need; "
                "refused, nothing was run: do not trust this file"
            )
        self._push(Name(path))

    def stack_name(self) -> None:
        """As `name`, with both parts on the stack."""
        attribute, module = self._pop(), self._pop()
        self.name(module, attribute)

    def storage(self) -> None:
        """Turns a ('storage', class, key, location, elements) tuple into a reference."""
        ident = self._pop()
        if not (isinstance(ident, tuple) and len(ident) == 5 and ident[0] == "storage"):
            raise self._wrong("a persistent id that is no storage")
        _, kind, key, _, elements = ident
        if not (
            isinstance(kind, Name)
            and kind.path in STORAGES
            and isinstance(key, str)
            and type(elements) is int
        ):
            raise self._wrong("a storage without a class, key or length")
        self._push(StorageRef(STORAGES[kind.path], key, elements))

    def reduce(self) -> None:
        """Stands in for a call: one of the three things that a checkpoint builds."""
        arguments, target = self._pop(), self._pop()
        if not isinstance(target, Name) or not isinstance(arguments, tuple):
            raise self._wrong(f"it calls something that is no name ({type(target).__name__})")
        if target.path == _DICT and not arguments:
            self._push({})
        elif target.path == _TENSOR and 6 <= len(arguments) <= 7:
            storage, offset, shape, strides = arguments[:4]
            if not isinstance(storage, StorageRef):
                raise self._wrong("a tensor without a storage")
            self._push(TensorRef(storage, offset, shape, strides))
        elif target.path == _PARAMETER and len(arguments) == 3:
            if not isinstance(arguments[0], TensorRef):
                raise self._wrong("a parameter without a tensor")
            self._push(arguments[0])
        else:
            raise self._wrong(f"it calls {target.path} with {len(arguments)} arguments")

    def build(self) -> None:
        """Drops the attributes of a dictionary (torch adds a `_metadata` of versions)."""
        self._pop()
        target = self._top()
        if not isinstance(target, dict):
            raise self._wrong(f"it sets attributes of a {type(target).__name__}")

    def set_items(self, pairs: list[Any]) -> None:
        """Stores key, value, key, value ... in the dictionary on top."""
        target = self._top()
        if not isinstance(target, dict) or len(pairs) % 2:
            raise self._wrong("it stores items in something that is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str):
                raise self._wrong(f"a dictionary key that is a {type(key).__name__}, not a name")
            if key in target:
                raise self._wrong(f"the name {key[:80]!r} appears twice")
            target[key] = value

    def append(self, values: list[Any]) -> None:
        """Appends to the list on top."""
        target = self._top()
        if not isinstance(target, list):
            raise self._wrong("it appends to something that is no list")
        target.extend(values)

    def set_item(self) -> None:
        """As `set_items`, for one pair."""
        value, key = self._pop(), self._pop()
        self.set_items([key, value])

    def stop(self) -> None:
        """Ends the run."""
        raise _Stop

    def protocol(self) -> None:
        """Checks the protocol number."""
        if self._uint(1) > 5:
            raise self._wrong("a pickle protocol newer than 5")

    def _wrong(self, what: str) -> ModelError:
        return ModelError(
            f"{self._where}: its pickle is damaged or hostile, {what} (byte {self._at}); "
            "nothing was run"
        )


_ACTIONS: Final[dict[int, Callable[[PickleMachine], None]]] = {
    ord(code): action
    for code, action in {
        b"\x80": PickleMachine.protocol,
        b"\x95": lambda m: _ignore(m._bytes(8)),
        b".": PickleMachine.stop,
        b"(": lambda m: m._marks.append(len(m._stack)),
        b"N": lambda m: m._push(None),
        b"\x88": lambda m: m._push(True),
        b"\x89": lambda m: m._push(False),
        b"K": lambda m: m.integer(1, signed=False),
        b"M": lambda m: m.integer(2, signed=False),
        b"J": lambda m: m.integer(4, signed=True),
        b"\x8a": PickleMachine.long,
        b"G": PickleMachine.floating,
        b"\x8c": lambda m: m.text(1),
        b"X": lambda m: m.text(4),
        b"}": lambda m: m._push({}),
        b"]": lambda m: m._push([]),
        b")": lambda m: m._push(()),
        b"t": lambda m: m._push(tuple(m._since_mark())),
        b"\x85": lambda m: m.tuple_of(1),
        b"\x86": lambda m: m.tuple_of(2),
        b"\x87": lambda m: m.tuple_of(3),
        b"s": PickleMachine.set_item,
        b"u": lambda m: m.set_items(m._since_mark()),
        b"a": lambda m: m.append([m._pop()]),
        b"e": lambda m: m.append(m._since_mark()),
        b"q": lambda m: m.put(m._uint(1)),
        b"r": lambda m: m.put(m._uint(4)),
        b"\x94": lambda m: m.put(len(m._memo)),
        b"h": lambda m: m.get(m._uint(1)),
        b"j": lambda m: m.get(m._uint(4)),
        b"c": lambda m: m.name(m._line(), m._line()),
        b"\x93": PickleMachine.stack_name,
        b"Q": PickleMachine.storage,
        b"R": PickleMachine.reduce,
        b"b": PickleMachine.build,
    }.items()
}


def _ignore(_: bytes) -> None:
    """Frames only help streaming readers."""
