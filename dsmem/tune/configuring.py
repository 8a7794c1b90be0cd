"""dsmem.yaml in and out: the settings are put into the text that is there, and all the rest of it stays, comments too.

Only `memory_mapping`, `shared_memory` and `dataloader` are owned here. What comes out is read again before it is
written: a file is replaced whole, by one that says what is meant, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmem import files, units
from dsmem.config import nodes, schema
from dsmem.config.nodes import Node
from dsmem.errors import SourceChanged, SourceMissing, UsageError
from dsmem.tune.settings import Settings, from_config

Sections = Mapping[str, Mapping[str, Any]]
_HEADER = "# Settings for training, made by `dsmem tune`. Sizes are in bytes, or such as 40GiB.\n"


def read_config(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """What a dsmem.yaml says, in the form that `auto_optimize_dataset` gives; raises UsageError, SourceMissing."""
    return from_config(schema.read(os.fspath(path))).as_config()


def write_config(path: str | os.PathLike[str], settings: Settings) -> bool:
    """Put the settings into a dsmem.yaml, which may be there already; False when it says all that already.

    Of a file that is there every other key and every comment stays. It is replaced atomically, and keeps its mode.
    Raises UsageError for a file that is no dsmem.yaml, or shares values with anchors; SourceChanged; OSError.
    """
    name = os.fspath(path)
    target = os.path.realpath(name)
    _check_regular(name)
    before = os.stat(target) if os.path.exists(target) else None
    old = _text(name)
    new = merged(old or _HEADER, settings.sections(), name)
    if new == old:
        return False
    if before is not None and not files.names_inode(target, before):
        raise SourceChanged(f"{name} was replaced meanwhile")
    files.write_atomic(target, new.encode(), public=True)
    return True


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise, before any work is done, what `write_config` would raise for this path."""
    name = os.fspath(path)
    above = os.path.dirname(os.path.realpath(name))
    if not os.path.isdir(above):
        raise SourceMissing(f"{name}: there is no directory {above}")
    if not os.access(above, os.W_OK):
        raise UsageError(f"{name}: nothing can be written to {above}")
    _check_regular(name)
    merged(_text(name) or _HEADER, Settings().sections(), name)


def _check_regular(name: str) -> None:
    """Raise UsageError for a device, a fifo, a directory: none of them is replaced, or waited for."""
    if os.path.exists(name) and not os.path.isfile(name):
        raise UsageError(f"{name} is not a regular file")


def _text(name: str) -> str:
    """What is there, checked; '' where nothing is."""
    if not os.path.exists(name):
        return ""
    schema.read(name)
    try:
        return Path(name).read_bytes().decode()
    except UnicodeDecodeError as exc:
        raise UsageError(f"{name} is not UTF-8") from exc


def merged(text: str, sections: Sections, name: str = "dsmem.yaml") -> str:
    """The text of a dsmem.yaml with these sections set; raises UsageError for a text that can't be changed so."""
    before = nodes.parse(text, name)
    schema.load(before, name)
    edits = sorted(_edits(text, sections, name), key=lambda edit: edit.start, reverse=True)
    new = text
    for edit in edits:
        new = new[: edit.start] + edit.text + new[edit.end :]
    if _plain(nodes.parse(new, name)) != _expected(_plain(before), sections):
        raise UsageError(f"{name} is written in a way that can't be changed safely; write to another file")
    return new


@dataclass(frozen=True, slots=True)
class _Edit:
    start: int
    end: int
    text: str


def _edits(text: str, sections: Sections, name: str) -> Iterable[_Edit]:
    import yaml

    root = yaml.compose(text, yaml.SafeLoader)
    newline = "\r\n" if "\r\n" in text else "\n"
    if root is None:
        yield _Edit(len(text), len(text), _appended(text, sections, newline))
        return
    found = {key.value: (key, value) for key, value in root.value}
    _refuse_shared(text, [pair for section, pair in found.items() if section in sections], name)
    missing = {section: wanted for section, wanted in sections.items() if section not in found}
    for section, wanted in sections.items():
        if section in found:
            yield from _section(text, found[section], wanted, newline)
    if not missing:
        return
    if root.flow_style:
        yield _into_flow(root, {section: _flow(_told(wanted)) for section, wanted in missing.items()})
    else:
        yield _Edit(len(text), len(text), _appended(text, missing, newline))


def _section(text: str, pair: tuple[Any, Any], wanted: Mapping[str, Any], newline: str) -> Iterable[_Edit]:
    """The changes in one section that is there."""
    _, node = pair
    if node.id != "mapping":  # nothing, or null
        start, end = node.start_mark.index, node.end_mark.index
        yield _Edit(start, end, f"{' ' if start == end else ''}{_flow(_told(wanted))}")
        return
    there = {key.value: value for key, value in node.value}
    for key, value in there.items():
        if key in wanted and _value(value) != wanted[key]:
            start, end = value.start_mark.index, value.end_mark.index
            yield _Edit(start, end, f"{' ' if start == end else ''}{_scalar(wanted[key])}")
    missing = {key: _scalar(value) for key, value in _told(wanted).items() if key not in there}
    if not missing:
        return
    if node.flow_style:
        yield _into_flow(node, missing)
        return
    first, (_, last) = node.value[0][0], node.value[-1]
    line_end = text.find("\n", last.end_mark.index)
    at = len(text) if line_end < 0 else line_end - (text[line_end - 1] == "\r")
    indent = " " * first.start_mark.column
    yield _Edit(at, at, "".join(f"{newline}{indent}{key}: {value}" for key, value in missing.items()))


def _into_flow(node: Any, missing: Mapping[str, str]) -> _Edit:
    pairs = ", ".join(f"{key}: {value}" for key, value in missing.items())
    if node.value:
        at = node.value[-1][1].end_mark.index
        return _Edit(at, at, f", {pairs}")
    at = node.start_mark.index + 1
    return _Edit(at, at, pairs)


def _appended(text: str, sections: Sections, newline: str) -> str:
    lines = [] if not text or text.endswith("\n") else [""]
    for section, wanted in sections.items():
        lines.append(f"{section}:")
        lines += [f"  {key}: {_scalar(value)}" for key, value in _told(wanted).items()]
    return newline.join([*lines, ""])


def _told(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Without what would only say "nothing"."""
    return {key: value for key, value in wanted.items() if value is not None}


def _flow(wanted: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in wanted.items()) + "}"


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(node: Any) -> object:
    """A scalar as the schema takes it: a size may be written '40GiB'."""
    import yaml

    return _size(yaml.SafeLoader("").construct_object(node))


def _size(value: object) -> object:
    """'40GiB' as the number that it means; anything else as it is."""
    try:
        return units.parse_bytes(value) if isinstance(value, str) else value
    except UsageError:
        return value


def _refuse_shared(text: str, pairs: Iterable[tuple[Any, Any]], name: str) -> None:
    """Raise UsageError where a section has anchors or aliases: what changes there would change elsewhere too."""
    import yaml

    marks = [
        event.start_mark for event in yaml.parse(text, yaml.SafeLoader) if getattr(event, "anchor", None) is not None
    ]
    for key, node in pairs:
        end = max(node.end_mark.index, key.end_mark.index)
        elsewhere = node.start_mark.index < key.end_mark.index
        for mark in marks:
            if elsewhere or key.start_mark.index <= mark.index <= end:
                raise UsageError(
                    f"{name}:{key.start_mark.line + 1}: {key.value} has anchors or aliases (& and *); write them out"
                )


def _plain(node: Node) -> Any:
    """Bare values, without lines; sizes as numbers stay as they are written."""
    if isinstance(node.value, Mapping):
        return {key: _plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(one) for one in node.value]
    return node.value


def _expected(before: Any, sections: Sections) -> Any:
    """What the values are to be."""
    result = dict(before)
    for section, wanted in sections.items():
        there = dict(result.get(section) or {})
        for key, value in wanted.items():
            if (key in there or value is not None) and _size(there.get(key)) != value:
                there[key] = value
        result[section] = there
    return result
