"""What a result depends on: a hash of the code behind an object, definition by definition.

The hash of a function or class covers its own definition and, transitively, every definition of this package or of the
user that it refers to; docstrings, comments, annotations and the names under which parts are registered do not count.
So an edited law changes the keys of that law alone, and a new one changes none. Libraries count by their version. The
modules that find parts and keep results count for nothing.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import linecache
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ddpmlab.registry import PARSING, Registry

_PACKAGE = str(Path(__file__).parents[1])
_KEEPERS = {"ddpmlab.files", "ddpmlab.registry", "ddpmlab.lab.source", "ddpmlab.lab.store"}
"""Modules that find parts and keep results: no value depends on them, so that one mended invalidates none."""
_LIBRARIES = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@cache
def _version(name: str) -> str | None:
    """Version of an installed library, looked up once: every key asks for it, and the lookup parses a file."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


def versions(*names: str) -> dict[str, str]:
    """Versions of installed libraries; those that are absent are left out."""
    return {name: found for name in names if (found := _version(name)) is not None}


def _is_tracked(module: types.ModuleType | None) -> bool:
    """Whether definitions of a module count: this package's and the user's own."""
    if module is None or module.__name__ in _KEEPERS:
        return False
    if module.__name__ == "__main__":
        return True
    path = getattr(module, "__file__", None) or ""
    return path.startswith(_PACKAGE) or (path.endswith(".py") and not path.startswith((*_LIBRARIES, sys.base_prefix)))


class _Stripped(ast.NodeTransformer):
    """Drop what does not change what code does: docstrings, annotations, `@REGISTRY.register(...)`."""

    def _definition(self, node):
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        node.decorator_list = [
            d for d in node.decorator_list
            if not (isinstance(d, ast.Call) and isinstance(d.func, ast.Attribute) and d.func.attr == "register")
        ]  # fmt: skip
        if hasattr(node, "returns"):
            node.returns = None
        return self.generic_visit(node)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _definition

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_Expr(self, node):  # a string that stands alone describes an attribute
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


@lru_cache(maxsize=256)
def _statements(source: str) -> dict[str, list[ast.stmt]]:
    """Top-level name -> the statements that define it, stripped."""
    found: dict[str, list[ast.stmt]] = {}
    with PARSING:
        body = ast.parse(source).body
    for statement in body:
        names = []
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [statement.name]
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        if names:
            statement = _Stripped().visit(statement)
            for name in names:
                found.setdefault(name, []).append(statement)
    return found


def _module_source(module: types.ModuleType) -> str | None:
    path = getattr(module, "__file__", None)
    if not path or not path.endswith(".py"):
        return None
    if not path.startswith(_PACKAGE):
        linecache.checkcache(path)
    return "".join(linecache.getlines(path)) or None


def _bytecode(value: Any) -> list[str]:
    """What stands in for the source of something typed into a notebook: its bytecode, constants and names."""
    if isinstance(value, types.CodeType):
        inner = [line for c in value.co_consts if isinstance(c, types.CodeType) for line in _bytecode(c)]
        plain = [repr(c) for c in value.co_consts if not isinstance(c, types.CodeType)]
        return [value.co_code.hex(), *plain, *value.co_names, *value.co_varnames, *inner]
    if isinstance(value, types.FunctionType):
        return [value.__qualname__, repr(value.__defaults__), repr(value.__kwdefaults__), *_bytecode(value.__code__)]
    if isinstance(value, classmethod | staticmethod):
        return _bytecode(value.__func__)
    if isinstance(value, property):
        return [line for f in (value.fget, value.fset) if f is not None for line in _bytecode(f)]
    if isinstance(value, type):
        skipped = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__"}
        return [f"{k}:{line}" for k, v in sorted(vars(value).items()) if k not in skipped for line in _bytecode(v)]
    return [
        repr(value)[:200] if isinstance(value, int | float | str | tuple | bool | type(None)) else type(value).__name__
    ]


def _references(statements: list[ast.stmt]) -> set[tuple[str, ...]]:
    """Dotted names that statements refer to."""
    found: set[tuple[str, ...]] = set()
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                found.add((node.id,))
            elif isinstance(node, ast.Attribute):
                chain, inner = [node.attr], node.value
                while isinstance(inner, ast.Attribute):
                    chain.append(inner.attr)
                    inner = inner.value
                if isinstance(inner, ast.Name):
                    found.add((inner.id, *reversed(chain)))
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {("\0import", node.module, alias.name) for alias in node.names}
    return found


def _resolve(module: types.ModuleType | None, name: tuple[str, ...]) -> tuple[types.ModuleType, str] | None:
    """The module and top-level name that a dotted name of another module stands for, if it is one that counts."""
    if name[0] == "\0import":
        owner, rest = sys.modules.get(name[1]), name[2:]
    else:
        owner, rest = module, name
    while rest:
        value = vars(owner).get(rest[0]) if owner is not None else None
        if isinstance(value, types.ModuleType):
            owner, rest = value, rest[1:]
            continue
        break
    if not rest or owner is None or rest[0] not in vars(owner) or not _is_tracked(owner):
        return None
    value = vars(owner)[rest[0]]
    if isinstance(value, Registry) or isinstance(getattr(value, "__self__", None), Registry):
        return None  # the parts that a config names are hashed by name
    defined = sys.modules.get(getattr(value, "__module__", None) or "")
    if isinstance(value, type | types.FunctionType) and defined is not None:
        return (defined, value.__qualname__.split(".")[0]) if _is_tracked(defined) else None
    if (source := _module_source(owner)) is not None and rest[0] not in _statements(source):
        return _imported(owner, rest[0], source)
    return owner, rest[0]


def _imported(module: types.ModuleType, name: str, source: str) -> tuple[types.ModuleType, str] | None:
    """Where a constant that a module imports is defined."""
    with PARSING:
        body = ast.parse(source).body
    for statement in body:
        if isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    owner = sys.modules.get(statement.module)
                    return (owner, alias.name) if _is_tracked(owner) and alias.name in vars(owner) else None
    return None


def definitions(value: Any) -> dict[str, str]:
    """`module.name` -> what counts of its definition, for everything that a function, class or instance is built on."""
    owner = value if isinstance(value, type | types.FunctionType) else type(value)
    return _reached([(sys.modules.get(owner.__module__), owner.__qualname__.split(".")[0], owner)])


def _may_count(package: str) -> bool:
    """Whether a package is this one or the user's own, as far as can be told without importing it."""
    if package == "ddpmlab":
        return True
    with contextlib.suppress(ValueError):  # a module without a specification
        if found := importlib.util.find_spec(package):
            places = [*(found.submodule_search_locations or [found.origin or ""])]
            return any(Path(p).exists() and not p.startswith((*_LIBRARIES, sys.base_prefix)) for p in places if p)
    return False


def _names_of_imports(node: ast.AST) -> dict[str, tuple[str, ...]]:
    """Name -> what it stands for, as `_resolve` takes it, by an import of code that counts, which is done here."""
    found: dict[str, tuple[str, ...]] = {}
    if isinstance(node, ast.Import):
        for alias in (a for a in node.names if _may_count(a.name.split(".")[0])):
            _import(alias.name)
            bound = alias.asname or alias.name.split(".")[0]
            found[bound] = ("\0import", alias.name if alias.asname else bound)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level and _may_count(node.module.split(".")[0]):
        _import(node.module)
        for alias in node.names:
            _import(f"{node.module}.{alias.name}")  # it may be a module
            every = dir(sys.modules.get(node.module)) if alias.name == "*" else [alias.name]
            found |= {alias.asname or name: ("\0import", node.module, name) for name in every}
    return found


def _import(name: str) -> None:
    """Import a module if that is possible: what is not there cannot count, and is told when the notebook runs."""
    with contextlib.suppress(Exception):
        importlib.import_module(name)


def script_hash(cells: Iterable[str], arguments: Any = None) -> str:
    """Hash of the code that cells of a notebook refer to: by what they import, and by name, see `named_hash`."""
    imported: dict[str, tuple[str, ...]] = {}
    names: set[tuple[str, ...]] = set()
    text = ""
    for cell in cells:
        try:
            with PARSING:
                tree = ast.parse(cell)
        except SyntaxError:  # it is told when the notebook runs
            continue
        for node in ast.walk(tree):
            imported |= _names_of_imports(node)
        names |= {(*imported[name[0]], *name[1:]) for name in _references(tree.body) if name[0] in imported}
        text += _dump(tree)
    reached = _reached([(*found, None) for name in names if (found := _resolve(None, name))])
    known = "\n".join(f"{name}\n{body}" for name, body in sorted(reached.items()))
    return hashlib.sha256(f"{known}\n{_named(_words(known + text), arguments)}".encode()).hexdigest()[:16]


def named_hash(function: Callable, arguments: Any) -> str:
    """Hash of the datasets, schedules, networks, samplers and metrics that code may make by name.

    Their names are looked for among the strings of everything that a function is built on, and of its arguments. So a
    string that happens to be such a name counts too.
    """
    return _named(_words_behind(function), arguments)


def _named(words: Iterable[str], arguments: Any) -> str:
    for module in ("data", "schedules", "networks", "samplers", "lab.scores"):
        importlib.import_module(f"ddpmlab.{module}")
    words = {*words, *_words(_dump(arguments))}
    made = [
        f"{kind} {word} {code_hash(registry[word])}"
        for kind, registry in Registry._all.items()
        if kind in ("dataset", "schedule", "network", "sampler", "metric")
        for word in words.intersection(list(registry))
    ]
    return hashlib.sha256("\n".join(sorted(made)).encode()).hexdigest()[:16]


def _dump(value: Any) -> str:
    """A syntax tree, or plain values, as text that is the same in all versions of Python: empty fields are left out."""
    if isinstance(value, ast.AST):
        fields = [(name, part) for name, part in ast.iter_fields(value) if part is not None and part != []]
        return f"{type(value).__name__}({', '.join(f'{name}={_dump(part)}' for name, part in fields)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_dump(k)}: {_dump(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_dump, value))}]"
    return repr(value)


def _words(dumped: str) -> set[str]:
    """Strings in what `_dump` wrote, as far as they could be names."""
    return set(re.findall(r"'([\w-]+)'", dumped))


def _words_behind(function: Callable) -> set[str]:
    foreign = not inspect.getfile(function).startswith(_PACKAGE) if function.__module__ != "__main__" else True
    return _words_in(function) if foreign else _known_words(function)


def _words_in(function: Callable) -> set[str]:
    return _words("\n".join(definitions(function).values()))


_known_words = cache(_words_in)


def _reached(todo: list[tuple[types.ModuleType | None, str, Any]]) -> dict[str, str]:
    """Definitions, `(module, name, thing if known)`, and all that they are built on: see `definitions`."""
    seen: dict[str, str] = {}
    while todo:
        module, name, known = todo.pop()
        if module is None or not _is_tracked(module) or f"{module.__name__}.{name}" in seen:
            continue
        source = _module_source(module)
        statements = _statements(source).get(name) if source else None
        label = f"{module.__name__}.{name}"
        if statements is None:  # typed into a notebook, or made by a function
            thing = known if known is not None else vars(module).get(name)
            seen[label] = "\n".join(_bytecode(thing))
            for code in _codes(thing):
                todo += [(*found, None) for n in code.co_names if (found := _resolve(module, (n,)))]
            for base in getattr(thing, "__mro__", ())[1:]:
                todo.append((sys.modules.get(base.__module__), base.__qualname__.split(".")[0], base))
            continue
        seen[label] = "\n".join(_dump(s) for s in statements)
        todo += [(*found, None) for n in _references(statements) if (found := _resolve(module, n))]
    return seen


def _codes(value: Any) -> list[types.CodeType]:
    if isinstance(value, types.FunctionType):
        return [value.__code__, *(c for c in value.__code__.co_consts if isinstance(c, types.CodeType))]
    if isinstance(value, type):
        return [code for v in vars(value).values() for code in _codes(v)]
    return []


def _digest(value: Any) -> str:
    if isinstance(value, types.MethodType):
        return _digest(value.__func__) + _digest(value.__self__)
    if isinstance(value, functools.partial):
        return _digest(value.func) + repr((value.args, sorted(value.keywords.items())))
    text = "\n".join(f"{name}\n{body}" for name, body in sorted(definitions(value).items()))
    extra = ""
    if not isinstance(value, type | types.FunctionType):  # an instance: its state counts too, and code that it holds
        state = vars(value)
        plain = {k: v for k, v in state.items() if not callable(v)}
        extra = repr(sorted(plain.items())) + "".join(_digest(v) for v in state.values() if callable(v))
    return hashlib.sha256((text + extra).encode()).hexdigest()[:16]


_remembered = cache(_digest)


def code_hash(value: Any) -> str:
    """Hash of the code behind a function, a class or an instance with plain attributes.

    That of this package is computed once a process, that of the user's own each time, since it may be edited meanwhile.
    """
    owner = value if isinstance(value, type | types.FunctionType) else type(value)
    file = inspect.getfile(owner) if owner.__module__ != "__main__" else ""
    foreign = (
        not file.startswith(_PACKAGE)
        or any(getattr(v, "__module__", "").split(".")[0] != "ddpmlab" for v in vars(value).values() if callable(v))
        if not isinstance(value, type | types.FunctionType)
        else not file.startswith(_PACKAGE)
    )
    return _digest(value) if foreign else _remembered(value)


@cache
def package_hash() -> str:
    """Hash of all code of this package, for the provenance of a page; docstrings and comments do not count."""
    digest = hashlib.sha256()
    for path in sorted(Path(_PACKAGE).rglob("*.py")):
        with PARSING:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        tree = _Stripped().visit(tree)
        digest.update(f"{path.relative_to(_PACKAGE)}\n{_dump(tree)}\n".encode())
    return digest.hexdigest()[:12]
