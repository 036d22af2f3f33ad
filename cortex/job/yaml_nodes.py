"""YAML as nodes that know their place: what `cortex.job.yaml_file` reads a job from.

A `Mapping` remembers which keys were asked for; `finish` reports the others. Reading never stops at a
problem: it is noted in the `Document`, a harmless value is returned, and `raise_problems` raises all of
them as one JobFileError, each as ``job.yaml:LINE:COL: what; cure`` in the order of the file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Map
from typing import Any, Final

import yaml

from cortex.errors import JobFileError, UsageError
from cortex.limits import JOB_FILE_BYTES_MAX
from cortex.units import format_bytes

_NULL: Final = "tag:yaml.org,2002:null"
_BOOL: Final = "tag:yaml.org,2002:bool"
_TRUE: Final = frozenset({"true", "yes", "on", "y"})
_QUOTE_CURE: Final = (
    "a value with ': ' or ' #', or one that starts with a quote, ` [ { or *, goes in quotes as a whole"
)
_TAB_CURE: Final = "YAML takes no tabs: write spaces"
_COMMA_CURE: Final = "an expression with a comma goes in quotes inside {...}, or on a line of its own"


class Document:
    """One job file: its top mapping and the problems found so far."""

    def __init__(self, text: str, shown: str) -> None:
        self.shown = shown
        self._problems: dict[tuple[int, int, str], str] = {}
        self.top = Mapping(self, self._compose(text), "")

    @classmethod
    def read(cls, path: str, shown: str) -> Document:
        """Raises UsageError if there is no such file, JobFileError if it is not text."""
        try:
            with open(path, "rb") as file:
                data = file.read(JOB_FILE_BYTES_MAX + 1)
        except OSError as error:
            raise UsageError(
                f"the job file {shown!r} cannot be read: {error.strerror}", cure=_near_file(path)
            ) from error
        if len(data) > JOB_FILE_BYTES_MAX:
            raise JobFileError(
                f"{shown}: larger than {format_bytes(JOB_FILE_BYTES_MAX)}: that is no job file",
                cure="give data with --input",
            )
        try:
            return cls(data.decode("utf-8-sig"), shown)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            column = error.start - data.rfind(b"\n", 0, error.start)
            raise JobFileError(f"{shown}:{line}:{column}: not UTF-8 text; save it as UTF-8") from error

    def note(self, line: int, column: int, message: str, cure: str = "") -> None:
        """Note a problem at a place, 0-based; the same one twice is one."""
        self._problems.setdefault((line, column, message), cure)

    def note_at(self, mark: Any, message: str, cure: str = "") -> None:
        """Note a problem at a yaml mark."""
        self.note(mark.line, mark.column, message, cure)

    def raise_problems(self) -> None:
        if not self._problems:
            return
        lines = [
            f"{self.shown}:{line + 1}:{column + 1}: {message}" + (f"; {cure}" if cure else "")
            for (line, column, message), cure in sorted(self._problems.items())
        ]
        raise JobFileError("\n".join(lines))

    def _compose(self, text: str) -> yaml.MappingNode:
        nothing = yaml.MappingNode("", [], yaml.Mark(self.shown, 0, 0, 0, "", 0))
        loader = None
        try:
            loader = _Loader(text, self)
            root = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            said = " ".join(word for word in (error.context, error.problem) if word)
            self.note(
                mark.line if mark else 0,
                mark.column if mark else 0,
                f"not YAML: {said}",
                _TAB_CURE if "'\\t'" in said else _QUOTE_CURE,
            )
            self.raise_problems()
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position)
            column = error.position - text.rfind("\n", 0, error.position) - 1
            self.note(
                line, column, f"not YAML: the character {chr(error.character)!r} is not allowed", "delete it"
            )
            self.raise_problems()
        except RecursionError:
            self.note(0, 0, "nested too deeply for a job file", "a job has three levels")
            self.raise_problems()
        finally:
            if loader is not None:
                loader.dispose()
        if isinstance(root, yaml.MappingNode):
            return root
        self.note(
            0,
            0,
            "the file is empty" if root is None else "the file is not a mapping",
            "start with name: my-job",
        )
        self.raise_problems()
        return nothing


class _Loader(yaml.SafeLoader):
    """Composes nodes; notes anchors, aliases and tags, which a job file does not have."""

    def __init__(self, text: str, document: Document) -> None:
        super().__init__(text)
        self._document = document

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._document.note_at(
                event.start_mark, "aliases are not used in a job file", "write the value out"
            )
            self.get_event()  # type: ignore[no-untyped-call]
            start: Any = event.start_mark
            return yaml.ScalarNode(_BROKEN, "", start, start)
        if getattr(event, "anchor", None) is not None:
            self._document.note_at(event.start_mark, "anchors are not used in a job file", "delete it")
        if getattr(event, "tag", None) is not None:
            self._document.note_at(
                event.start_mark, f"tags such as {event.tag} are not used in a job file", "delete it"
            )
        return super().compose_node(parent, index)


_BROKEN: Final = "broken"
"""Tag of a node whose problem is noted already."""


class Scalar:
    """A plain or quoted value: its text as written (or unquoted), and its place."""

    def __init__(self, document: Document, node: yaml.ScalarNode) -> None:
        self._document = document
        self._node = node
        self.text: str = node.value

    @property
    def quoted(self) -> bool:
        return self._node.style is not None

    @property
    def empty(self) -> bool:
        """Nothing is written, or ``~``: not the same as a quoted empty text."""
        return not self.quoted and self._node.tag == _NULL and self.text.lower() != "null"

    @property
    def broken(self) -> bool:
        return self._node.tag == _BROKEN

    @property
    def boolean(self) -> bool | None:
        """The bool that it is in YAML; None if it is none."""
        if self.quoted or self._node.tag != _BOOL:
            return None
        return self.text.lower() in _TRUE

    def problem(self, message: str, cure: str = "", position: int | None = None) -> None:
        """Note a problem with the value, or with the character at `position` of its text."""
        start, end = self._node.start_mark, self._node.end_mark
        inside = 1 if self._node.style in ("'", '"') else 0
        exact = start.line == end.line and end.column - start.column == len(self.text) + 2 * inside
        if position is None or exact:
            shift = 0 if position is None else position + inside
            self._document.note(start.line, start.column + shift, message, cure)
        else:
            self._document.note_at(start, f"{message} (character {position + 1} of the expression)", cure)


class Mapping:
    """A mapping of keys the caller knows. `name` is its own key, "" for the whole file."""

    def __init__(self, document: Document, node: yaml.MappingNode, name: str) -> None:
        self._document = document
        self._node = node
        self._name = name
        self._asked: dict[str, None] = {}
        self._values: dict[str, yaml.Node] = {}
        self._marks: dict[str, yaml.Mark] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                document.note_at(key.start_mark, "a key is a name", "write name: value")
            elif key.value in self._values:
                first = self._marks[key.value].line + 1
                document.note_at(
                    key.start_mark, f"`{key.value}` is here twice, first on line {first}", "keep one"
                )
            else:
                self._values[key.value] = value
                self._marks[key.value] = key.start_mark

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def problem(self, key: str, message: str, cure: str = "") -> None:
        """Note a problem at a key, or ("") at the mapping itself."""
        self._document.note_at(self._marks.get(key, self._node.start_mark), message, cure)

    def finish(self, homes: Map[str, str]) -> None:
        """Report every key not asked for. `homes`: key -> the section it belongs to."""
        for key in self._values:
            if key in self._asked:
                continue
            where = f" in `{self._name}`" if self._name else ""
            near = difflib.get_close_matches(key.lower(), self._asked, 1, 0.6)
            home = homes.get(key, self._name)
            if key == "<<":
                cure = "write the keys out"
            elif near and (home == self._name or key.lower() in near):
                cure = f"did you mean {near[0]}?"
            elif home != self._name:
                cure = f"it belongs under `{home}`"
            else:
                cure = "keys are: " + ", ".join(self._asked)
            self.problem(key, f"unknown key `{key}`{where}", cure)

    # --- values

    def node(self, key: str) -> yaml.Node | None:
        """What is written at a key, for `cortex.job.yaml_values`."""
        self._asked[key] = None
        return self._values.get(key)

    def is_scalar(self, key: str) -> bool:
        node = self._values.get(key)
        return isinstance(node, yaml.ScalarNode) and not Scalar(self._document, node).empty

    def is_mapping(self, key: str) -> bool:
        return isinstance(self._values.get(key), yaml.MappingNode)

    def is_empty_list(self, key: str) -> bool:
        node = self._values.get(key)
        return isinstance(node, yaml.SequenceNode) and not node.value

    def is_empty_mapping(self, key: str) -> bool:
        node = self._values.get(key)
        return isinstance(node, yaml.MappingNode) and not node.value

    def scalar(self, key: str) -> Scalar | None:
        """The value of a key; None if the key is not there, or has no single value (noted)."""
        self._asked[key] = None
        node = self._values.get(key)
        if node is None:
            return None
        if not isinstance(node, yaml.ScalarNode):
            self._document.note_at(
                node.start_mark, f"`{key}` is one value, not {_kind(node)}", "write one value"
            )
            return None
        found = Scalar(self._document, node)
        if found.empty:
            self.problem(key, f"`{key}` is empty", "give it a value or leave it out")
        return None if found.empty or found.broken else found

    def text(self, key: str, default: str = "", *, empty: bool = False) -> str:
        """A text; with `empty` also one of no characters."""
        found = self.scalar(key)
        if found is None:
            return default
        if not found.text and not empty:
            found.problem(f"`{key}` is empty", "give it a value or leave it out")
            return default
        return found.text

    def flag(self, key: str, default: bool) -> bool:
        found = self.scalar(key)
        if found is None:
            return default
        if found.boolean is None:
            found.problem(
                f"`{key}` is true or false, not {found.text!r}", "write true or false, without quotes"
            )
            return default
        return found.boolean

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        """One of `allowed`; "" if the key is not there."""
        found = self.scalar(key)
        if found is None or found.text in allowed:
            return "" if found is None else found.text
        near = difflib.get_close_matches(found.text.lower(), allowed, 1, 0.5)
        cure = f"did you mean {near[0]}?" if near else f"one of {', '.join(allowed)}"
        found.problem(f"there is no {key} {found.text!r}", cure)
        return ""

    def scalars(self, key: str, *, single: bool = True) -> list[Scalar]:
        """A list of values; with `single` one value stands for a list of one."""
        self._asked[key] = None
        node = self._values.get(key)
        if node is None:
            return []
        if isinstance(node, yaml.ScalarNode) and single:
            found = self.scalar(key)
            return [] if found is None else [found]
        if not isinstance(node, yaml.SequenceNode):
            self._document.note_at(
                node.start_mark, f"`{key}` is a list, not {_kind(node)}", f"write {key}: [a, b]"
            )
            return []
        items = []
        for item in node.value:
            if not isinstance(item, yaml.ScalarNode):
                self._document.note_at(item.start_mark, f"`{key}` holds single values, not {_kind(item)}")
                continue
            scalar = Scalar(self._document, item)
            if scalar.empty:
                scalar.problem(f"`{key}` has an empty item", "delete it, or write '' for an empty text")
            elif not scalar.broken:
                items.append(scalar)
        return items

    def pairs(self, key: str, example: str) -> list[tuple[str, Scalar]]:
        """A mapping of names to single values, in order."""
        found = self.mapping(key, example)
        pairs = []
        for name in () if found is None else found:
            node = found._values[name] if found is not None else None
            if isinstance(node, yaml.ScalarNode) and Scalar(self._document, node).empty:
                comma = node.start_mark.line == self._marks[key].line or ")" in name
                cure = _COMMA_CURE if comma else "write an expression, such as " + example
                self._document.note_at(node.start_mark, f"`{name}` in `{key}` is empty", cure)
            elif found is not None and (scalar := found.scalar(name)) is not None:
                pairs.append((name, scalar))
        return pairs

    def mapping(self, key: str, example: str) -> Mapping | None:
        self._asked[key] = None
        node = self._values.get(key)
        if node is None or node.tag == _BROKEN:
            return None
        if isinstance(node, yaml.MappingNode):
            return Mapping(self._document, node, key)
        self._document.note_at(
            node.start_mark, f"`{key}` is keys and values, not {_kind(node)}", f"write {key}: {example}"
        )
        return None

    def given(self) -> frozenset[str]:
        """``input``, ``input.format`` and so on: every key here and in the sections below."""
        found = set(self._values)
        for key, node in self._values.items():
            if isinstance(node, yaml.MappingNode):
                found.update(f"{key}.{k.value}" for k, _ in node.value if isinstance(k, yaml.ScalarNode))
        return frozenset(found)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "keys and values"
    return repr(node.value) if node.value else "nothing"


def _near_file(path: str) -> str:
    folder = os.path.dirname(path) or "."
    names = [n for n in os.listdir(folder) if n.endswith((".yaml", ".yml"))] if os.path.isdir(folder) else []
    near = difflib.get_close_matches(os.path.basename(path), names, 1, 0.5)
    return f"did you mean {near[0]}?" if near else "give the path of a job.yaml"
