"""Read pickles as data: nothing that a pickle names is imported or called.

A pickle is a program for a small stack machine. `load` executes it on plain values only: numbers, text, bytes, lists,
tuples and dicts are created as usual, and a call of a named function is looked up in a table that the caller supplies
(that of `torch_pickle` describes tensors). A name that is not in the table becomes an `Opaque`, a placeholder for an
object that is not needed. Names from the standard library are rejected unless they are plain types: weights do not need
them, and they are how pickles execute code.

Time and memory are bounded by the length of the pickle: no call copies anything long, dict keys are short plain values
(hashing or printing a tuple of tuples of tuples could take forever), and the number of steps is limited.
"""

import builtins
import pickletools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

MAX_STEPS = 2_000_000
"""Largest number of instructions executed; 10,000 tensors with an optimizer take about 300,000."""
MAX_NAME = 400
"""Longest dict key, and longest name of a function or class, in characters."""

_ALLOWED_MODULES = (
    *("_codecs", "_io", "abc", "argparse", "array", "collections", "copyreg", "dataclasses", "datetime", "decimal"),
    *("enum", "fractions", "functools", "logging", "numbers", "pathlib", "random", "re", "string", "time", "typing"),
    *("uuid", "zoneinfo"),
)
"""Standard library modules whose objects training programs store as settings and metadata."""
_ALLOWED_NAMES = ("builtins.getattr", "types.SimpleNamespace", "types.MappingProxyType")  # getattr: for enums
_RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2, and protocols up to 2


class PickleError(Exception):
    """The pickle is damaged, or not a pickle."""


class ForbiddenName(PickleError):
    """The pickle refers to a name that weights do not need. The message is that name."""


@dataclass(frozen=True, slots=True)
class GlobalName:
    """Reference to a function or class in a pickle: ``module.name``."""

    full: str


@dataclass(slots=True)
class Opaque:
    """Placeholder for an object that a pickle describes and that is not needed."""

    name: str
    """Class or function that it was made from, such as ``argparse.Namespace``."""
    items: dict[Any, Any] = field(default_factory=dict)
    """Items assigned to it, as for subclasses of dict."""


type Call = Callable[[tuple[Any, ...]], Any]
"""Replacement for a named function: takes the arguments, returns the value. It must not copy or print anything long:
a pickle may pass the same object to any number of calls.
"""


def load(
    file: IO[bytes], calls: Mapping[str, Call], persistent: Callable[[Any], Any], build: Callable[[Any, Any], Any]
) -> Any:
    """Read one pickle from a file.

    Args:
        file: Binary file, positioned at the pickle; afterwards it is positioned directly after it.
        calls: Replacements for functions and classes, by full name.
        persistent: Resolves a persistent id.
        build: Applies a state to an object that `calls` created; returns that object or another one.

    Returns:
        The object that the pickle describes.

    Raises:
        ForbiddenName: It refers to a name of the standard library that is not a plain type.
        PickleError: It is damaged, or not a pickle.
    """
    try:
        return _Machine(calls, persistent, build).run(file)
    except PickleError:
        raise
    except Exception as error:  # damaged pickles make pickletools, and pops of empty stacks, raise nearly anything
        raise PickleError(f"its pickle is damaged: {str(error) or type(error).__name__}") from error


def _check_global(full: str) -> GlobalName:
    module, _, name = full.partition(".")
    module = _RENAMED_MODULES.get(module, module)
    full = f"{module}.{name}"
    if module == "builtins":
        plain = isinstance(getattr(builtins, name, type), type)
    else:
        plain = module not in sys.stdlib_module_names or module in _ALLOWED_MODULES
    if not plain and full not in _ALLOWED_NAMES:
        raise ForbiddenName(full[:100])
    return GlobalName(full)


class _Machine:
    """Pickle stack machine: the stack, the stacks saved by MARK, and the memo."""

    def __init__(
        self, calls: Mapping[str, Call], persistent: Callable[[Any], Any], build: Callable[[Any, Any], Any]
    ) -> None:
        self._calls, self._persistent, self._build = calls, persistent, build
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if step >= MAX_STEPS:
                raise PickleError(f"its pickle has more than {MAX_STEPS:,} steps, which no file of weights needs")
            if opcode.name == "STOP":
                return self._stack.pop()
            act = _INSTRUCTIONS.get(opcode.name)
            if act is None:
                raise PickleError(f"its pickle uses the instruction {opcode.name}, which no file of weights needs")
            act(self, argument)
        raise PickleError("its pickle has no end")

    def _to_mark(self) -> list[Any]:
        """Return everything pushed since the last mark, and restore the stack below it."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def push(self, value: Any) -> None:
        self._stack.append(value)

    # The instructions, ``op_`` and the name of the opcode. `argument` is the value that follows the opcode in the file.

    def op_proto(self, argument: Any) -> None:
        pass

    op_frame = op_proto

    def op_mark(self, argument: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def op_pop(self, argument: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def op_pop_mark(self, argument: Any) -> None:
        self._to_mark()

    op_additems = op_pop_mark  # to a set, whose content is not needed

    def op_dup(self, argument: Any) -> None:
        self._stack.append(self._stack[-1])

    def op_put(self, argument: Any) -> None:
        self._memo[argument] = self._stack[-1]

    op_binput = op_long_binput = op_put

    def op_memoize(self, argument: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def op_get(self, argument: Any) -> None:
        self._stack.append(self._memo[argument])

    op_binget = op_long_binget = op_get

    def push_tuple(self, size: int) -> None:
        items = tuple(self._stack[-size:])
        if len(items) < size:
            raise PickleError("its pickle is damaged: a tuple lacks members")
        self._stack[-size:] = [items]

    def op_tuple(self, argument: Any) -> None:
        items = tuple(self._to_mark())
        self._stack.append(items)

    def op_list(self, argument: Any) -> None:
        items = self._to_mark()
        self._stack.append(items)

    def op_dict(self, argument: Any) -> None:
        items = self._to_mark()
        self._stack.append(fill_dict({}, items))

    def op_append(self, argument: Any) -> None:
        item = self._stack.pop()
        if isinstance(self._stack[-1], list):
            self._stack[-1].append(item)

    def op_appends(self, argument: Any) -> None:
        items = self._to_mark()
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def op_setitem(self, argument: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def op_setitems(self, argument: Any) -> None:
        self._set_items(self._to_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Opaque):
            target = target.items
        if isinstance(target, dict):
            fill_dict(target, items)

    def op_empty_set(self, argument: Any) -> None:
        self._stack.append(Opaque("builtins.set"))

    def op_frozenset(self, argument: Any) -> None:
        self._to_mark()
        self.op_empty_set(argument)

    def op_global(self, argument: str) -> None:
        self._stack.append(_check_global(argument.replace(" ", ".", 1)))

    def op_stack_global(self, argument: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str) or len(module) + len(name) > MAX_NAME:
            raise PickleError("its pickle is damaged: it names something that is not text, or too long")
        self._stack.append(_check_global(f"{module}.{name}"))

    def op_reduce(self, argument: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._call(function, arguments)

    op_newobj = op_reduce

    def op_newobj_ex(self, argument: Any) -> None:
        self._stack.pop()
        self.op_reduce(argument)

    def op_inst(self, argument: str) -> None:
        arguments = tuple(self._to_mark())
        self._call(_check_global(argument.replace(" ", ".", 1)), arguments)

    def op_obj(self, argument: Any) -> None:
        function, *arguments = self._to_mark()
        self._call(function, tuple(arguments))

    def _call(self, function: Any, arguments: Any) -> None:
        name = function.full if isinstance(function, GlobalName) else "an object"
        replacement = self._calls.get(name)
        if replacement is None or not isinstance(arguments, tuple):
            self._stack.append(Opaque(name))
            return
        try:
            value = replacement(arguments)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise PickleError(
                f"its pickle is damaged: {name} is called with arguments that it does not take"
            ) from error
        self._stack.append(value)

    def op_build(self, argument: Any) -> None:
        state = self._stack.pop()
        self._stack[-1] = self._build(self._stack[-1], state)

    def op_persid(self, argument: Any) -> None:
        self._stack.append(self._persistent(argument))

    def op_binpersid(self, argument: Any) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


def fill_dict(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """Insert alternating keys and values into a dict. Entries whose key is not a short plain value are dropped.

    Args:
        target: The dict.
        items: Key, value, key, value, ...

    Returns:
        `target`.

    Raises:
        PickleError: The last key has no value.
    """
    if len(items) % 2:
        raise PickleError("its pickle is damaged: a key has no value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Keys are hashed and compared, which would be slow for long ones.
        short = len(key) <= MAX_NAME if isinstance(key, str) else isinstance(key, int) and -1 << 64 < key < 1 << 64
        if short or isinstance(key, float):
            target[key] = value
    return target


_VALUE_OPCODES = [
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before and opcode.stack_after not in ([], [pickletools.anyobject])
]
"""Instructions that push the value that follows them, which pickletools decodes: numbers, text and bytes."""

_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_VALUE_OPCODES, _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    **{name[3:].upper(): method for name, method in vars(_Machine).items() if name.startswith("op_")},
}
