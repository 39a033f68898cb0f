"""Methods by name: the names are written once, in the types of `fl_lightning.config.federation`.

A method is the function of that name in one of its folder's modules, so adding one takes a function and its name in the
config.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any


def find_functions(package: str, folder: Iterable[str], names: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """{name: the function of this name that one of a package's modules defines}, in the order of the names.

    Args:
        package: dotted name of the package.
        folder: its ``__path__``.
        names: of the functions.

    Raises:
        ImportError: if no module, or more than one, defines a function of a name.
    """
    modules = [importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(folder)]
    functions: dict[str, Callable[..., Any]] = {}
    for name in names:
        found = [vars(module)[name] for module in modules if _defines(module.__name__, vars(module).get(name))]
        if len(found) != 1:
            raise ImportError(f"{package}: expected one module with a function {name}, got {len(found)}")
        functions[name] = found[0]
    return functions


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """{name: default} of a function's keyword-only arguments.

    Example:
        >>> def clip(updates, *, max_norm=1.0): ...
        >>> options_of(clip)
        {'max_norm': 1.0}
    """
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _defines(module: str, value: object) -> bool:
    return inspect.isfunction(value) and value.__module__ == module
