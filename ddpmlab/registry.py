"""Names for things: every module resolves the strings of a config through one `Registry`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


class Registry(Mapping):
    """A read-only mapping from names to factories of one kind of thing.

    Args:
        kind: what the names stand for, as it should read in an error message.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._factories: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable:
        """Class or function decorator that enters its object under `name`."""

        def enter(factory):
            self._factories[name] = factory
            return factory

        return enter

    def __getitem__(self, name: str) -> Callable[..., Any]:
        try:
            return self._factories[name]
        except KeyError:
            raise ValueError(f"unknown {self.kind} {name!r}; choose one of: {', '.join(sorted(self))}") from None

    def __contains__(self, name) -> bool:
        return name in self._factories

    def __iter__(self):
        return iter(self._factories)

    def __len__(self):
        return len(self._factories)

    def make(self, name: str, /, **options) -> Any:
        """Build the thing called `name`.

        Raises:
            ValueError: `name` is not registered (the message lists what is).
            TypeError: an option is not one of the factory's (the message lists its signature).
        """
        factory = self[name]
        signature = inspect.signature(factory)
        try:
            signature.bind(**options)
        except TypeError as error:
            raise TypeError(f"{self.kind} {name!r} takes {signature}, got {sorted(options)}: {error}") from None
        return factory(**options)
