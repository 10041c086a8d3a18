"""Names for things: every module resolves the strings of a config through one `Registry`."""

import functools
import importlib
import inspect
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

_known = functools.lru_cache(maxsize=1024)(inspect.signature)  # every key asks for several
PARSING = threading.RLock()  # before Python 3.12 threads that parse code at once count each other's recursion


def _signature(factory: Any) -> inspect.Signature:
    return _known(factory) if isinstance(factory, Hashable) else inspect.signature(factory)


class Registry(Mapping):
    """A read-only mapping from names to factories of one kind of thing.

    Beside the names that are registered it resolves `module:name`, a part of the user's own that can be imported.

    Args:
        kind: what the names stand for, as it should read in an error message.
    """

    _all: dict[str, "Registry"] = {}  # noqa: RUF012

    def __init__(self, kind: str):
        self.kind = kind
        self._factories: dict[str, Any] = {}
        Registry._all[kind] = self

    def register(self, name: str) -> Callable:
        """Class or function decorator that enters its object under `name`.

        A definition that is edited and run again, as in a notebook, replaces itself.

        Raises:
            ValueError: the name is taken by another definition, or holds a colon.
        """
        if ":" in name:
            raise ValueError(f"{self.kind} {name!r} holds a colon, which parts module and name; choose another")

        def enter(factory):
            old = self._factories.get(name)
            if old is not None and _place(old) != _place(factory):
                raise ValueError(
                    f"{self.kind} {name!r} is taken by {'.'.join(_place(old))}; choose another name than one of: "
                    f"{', '.join(sorted(self))}"
                )
            self._factories[name] = factory
            return factory

        return enter

    def __getitem__(self, name: str) -> Any:
        if name in self._factories:
            return self._factories[name]
        if ":" in str(name):
            module, _, attribute = name.partition(":")
            try:
                return getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                raise ValueError(f"cannot import the {self.kind} {name!r}: {error}") from error
        raise ValueError(
            f"unknown {self.kind} {name!r}; choose one of: {', '.join(sorted(self))}; or module:name of your own"
        )

    def __contains__(self, name) -> bool:
        return name in self._factories or ":" in str(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._factories)

    def __len__(self) -> int:
        return len(self._factories)

    def make(self, name: str, /, **options) -> Any:
        """Build the thing called `name`.

        Raises:
            ValueError: `name` is not registered (the message lists what is).
            TypeError: an option is not one of the factory's (the message lists its signature).
        """
        factory = self[name]
        signature = _signature(factory)
        try:
            signature.bind(**options)
        except TypeError as error:
            raise TypeError(f"{self.kind} {name!r} takes {signature}, got {sorted(options)}: {error}") from None
        return factory(**options)

    def build(self, part: Mapping[str, Any], **more) -> Any:
        """Make a named part of a config, `{"name": ..., **options}`, with `more` options.

        Raises:
            ValueError: it has no name, or see `make`.
        """
        if "name" not in part:
            raise ValueError(f"a {self.kind} needs a 'name', got {dict(part)}; choose one of: {', '.join(self)}")
        return self.make(part["name"], **{k: v for k, v in part.items() if k != "name"}, **more)

    def spelt_out(self, part: Mapping[str, Any], **more) -> dict[str, Any]:
        """A named part with its defaults filled in, so that equal parts read equal."""
        bound = _signature(self[part["name"]]).bind(**{k: v for k, v in part.items() if k != "name"}, **more)
        bound.apply_defaults()
        return {"name": part["name"], **bound.arguments}


def _place(factory: Any) -> tuple[str, str]:
    """Where an object is defined."""
    owner = getattr(factory, "function", factory)  # an instance that carries a function, such as a score
    owner = owner if hasattr(owner, "__qualname__") else type(owner)
    return owner.__module__, owner.__qualname__


def names_of(thing: Any) -> list[tuple[str, str]]:
    """What a class or function is registered as, if it is the factory itself: `(kind, name)`."""
    return [
        (kind, name)
        for kind, registry in Registry._all.items()
        for name, factory in registry._factories.items()
        if factory is thing
    ]


def defined_interactively() -> list[tuple[str, str, Any]]:
    """Registered parts that another process cannot import, those of a notebook or script: `(kind, name, factory)`."""
    return [
        (kind, name, factory)
        for kind, registry in Registry._all.items()
        for name, factory in registry._factories.items()
        if _place(factory)[0] == "__main__"
    ]


def register_again(parts: list[tuple[str, str, Any]]) -> None:
    """Enter what `defined_interactively` found in another process."""
    for kind, name, factory in parts:
        Registry._all[kind]._factories[name] = factory
