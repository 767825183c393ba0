# SPDX-License-Identifier: MIT
"""How a result is made of JSON, and JSON of a result.

Strategy: a `WireObject` keeps the JSON object it was made from and reads a field when it is first
looked at, so a streamed chunk costs what is asked of it and no more; `from_dict` looks at once
at those that hold objects, so that what is malformed is found there. `to_dict` gives back what
came, but for the attributes that were changed since. A field's annotation says how it is read.
"""

import json
import re
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from decimal import Decimal
from functools import partial
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Type, TypeVar

from .errors import ResponseError, quote

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:
    def dataclass_transform():
        return lambda decorated: decorated

JSONObject = Dict[str, Any]
_Reader = Callable[[Any], Any]
_T = TypeVar("_T", bound="WireObject")
_UNREADABLE = (
    ArithmeticError, AttributeError, LookupError, OSError, ResponseError, TypeError, ValueError)

wire: Any = object()  # marks the fields that are read from JSON


def _make_reader(key: str, annotation: Any, lenient: bool) -> Optional[_Reader]:
    """Return what makes a field's value of its JSON, None where that stays as it came."""
    inner, *others = getattr(annotation, "__args__", None) or (annotation,)
    kind = getattr(inner, "__origin__", inner)
    if lenient and others:  # Optional[...]
        return partial(parse, kind)
    if not isinstance(kind, type) or not issubclass(kind, WireObject):
        return None
    if getattr(annotation, "__origin__", None) is list:
        return partial(read_list, kind, key)
    if others:
        return lambda value: None if value is None else kind._wrap(value, key)
    return partial(kind._wrap, key=key)


def read_list(kind: Type[_T], key: str, value: Any) -> List[_T]:
    """Return the objects of class `kind` in the list that stands at `key`."""
    if value is not None and not isinstance(value, list):
        raise _wrong_type(key, "a list", value)
    return [kind._wrap(item, key) for item in value or ()]


def parse(kind: Any, value: Any) -> Any:
    """Return a JSON value as `kind`, None where it cannot be read so."""
    try:
        if issubclass(kind, WireObject):
            return None if value is None else kind.from_dict(value)
        if kind is Decimal:
            amount = Decimal(value.replace("$", "", 1).replace(",", ""))
            return amount if amount.is_finite() else None
        if kind is datetime:
            return _parse_time(value)
    except _UNREADABLE:
        return None
    wanted = (int, float) if kind in (int, float) else kind
    fits = isinstance(value, wanted) and isinstance(value, bool) is (kind is bool)
    return value if fits else None


def _parse_time(value: Any) -> Optional[datetime]:
    """Return the aware time that an ISO 8601 text or a Unix time (after 2001) gives."""
    if not isinstance(value, str):
        return datetime.fromtimestamp(value, timezone.utc) if value >= 1e9 else None
    when = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", value))  # Z is for 3.11 and newer
    return when if when.tzinfo else None


def _to_json(value: Any) -> Any:
    if isinstance(value, WireObject):
        return value.to_dict() or ({} if "_sent" in vars(value) else None)
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return f"${value:f}" if isinstance(value, Decimal) else value


def _wrong_type(key: str, wanted: str, value: Any) -> ResponseError:
    return ResponseError(f"the answer's {key} should be {wanted}, not {quote(value)}", body=value)


@dataclass_transform()
class WireObject:
    """What all results share: attributes that are keys too, `extra`, `from_dict`, `to_dict`.

    `extra` holds what the server sent and no attribute shows.
    """

    _sent: JSONObject = {}  # of what came as null, or was not sent at all
    _keys: Dict[str, str] = {}  # of each field, in JSON
    _readers: Dict[str, Optional[_Reader]] = {}
    _nested: Dict[str, Tuple[str, _Reader]] = {}  # keys and readers where only objects may be

    if TYPE_CHECKING:
        extra: JSONObject

    def __init_subclass__(cls, lenient: bool = False, camel_case: bool = False) -> None:
        """Make a dataclass of the class, whose fields are read when they are looked at."""
        names = [name for name, value in vars(cls).items() if value is wire]
        cls._keys = {name: re.sub("_.", lambda found: found.group()[1].upper(), name)
                     if camel_case else name for name in names}
        cls._readers = {name: _make_reader(key, cls.__annotations__[name], lenient)
                        for name, key in cls._keys.items()}
        cls._nested = {name: (cls._keys[name], read) for name, read in cls._readers.items()
                       if read and not lenient}
        for name in names:
            delattr(cls, name)
        cls.__annotations__["extra"] = JSONObject
        dataclass(init=False, eq=False, repr=False)(cls)  # what it makes costs time at import
        cls.__signature__ = Signature([  # type: ignore[attr-defined]
            Parameter(item.name, Parameter.POSITIONAL_OR_KEYWORD, default=None,
                      annotation=item.type) for item in fields(cls)])  # type: ignore[arg-type]

    def __init__(self, *values: Any, **named: Any) -> None:
        vars(self).update(signature(type(self)).bind(*values, **named).arguments)

    @classmethod
    def from_dict(cls: Type[_T], data: JSONObject) -> _T:
        """Return the object that the JSON object `data` describes.

        Missing and null fields are accepted, unknown ones are kept in `extra`.

        Raises:
            ResponseError: a field that holds objects holds something else.
        """
        return cls._wrap(data, cls.__name__)

    @classmethod
    def _wrap(cls: Type[_T], data: Any, key: str) -> _T:
        self = cls.__new__(cls)
        if data is not None and not isinstance(data, dict):
            raise _wrong_type(key, "an object", data)
        if data is not None:
            self._sent = data
        for name, (field_key, read) in cls._nested.items():
            self.__dict__[name] = read(self._sent.get(field_key))
        return self

    def _read(self, name: str) -> Any:
        """Return what an attribute is by the JSON that was sent."""
        data, known = self._sent, self._keys
        if name == "extra":
            return {key: item for key, item in data.items() if key not in known.values()}
        value, read = data.get(known[name]), self._readers[name]
        if name == "reasoning_content" and not value and isinstance(data.get("reasoning"), str):
            return data["reasoning"]  # as some models' servers call it
        return read(value) if read else value

    if not TYPE_CHECKING:  # or no misspelt attribute would be seen

        def __dir__(self):  # what was not looked at yet can be completed too
            return [*super().__dir__(), *self.__dataclass_fields__]

        def __getattr__(self, name):  # runs only for what was not looked at before
            if name in self._keys or name == "extra":
                value = self._read(name)
            elif name in self.__dataclass_fields__:  # meta, which no JSON has
                value = self.__dataclass_fields__[name].default_factory()
            else:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            self.__dict__[name] = value
            return value

    def _values(self) -> List[Tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in (*self._keys, "extra")]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._values() == other._values()

    def __repr__(self) -> str:
        said = [f"{name}={value!r}" for name, value in self._values() if value or value == 0]
        return f"{type(self).__name__}({', '.join(said)})"

    def to_dict(self) -> JSONObject:
        """Return the JSON object as the server sent it, with what was changed since."""
        data: JSONObject = {}
        for name, key in self._keys.items():
            attribute, sent = getattr(self, name), self._sent.get(key)
            value = _to_json(attribute)
            if name in self._nested:
                changed = bool(value) or sent is not None
            else:
                changed = attribute != self._read(name)
            if changed:
                data[key] = value
            elif key in self._sent:
                data[key] = sent
        return {**data, **self.extra}

    def to_json(self, indent: Optional[int] = None) -> str:
        """Return `to_dict()` as JSON text, on one line or indented by `indent` spaces."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key) if key in self._keys else self.extra[key]

    def __contains__(self, key: object) -> bool:
        return key in self._keys or key in self.extra

    def get(self, key: str, default: Any = None) -> Any:
        """Return the attribute or the extra field `key`, or `default` where there is none."""
        return self[key] if key in self else default
