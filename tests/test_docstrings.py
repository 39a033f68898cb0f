"""Every public name says what it is, what it takes and what it raises; the reference in docs/api is built from that."""

import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest
from forked import Forked

import fl_lightning
from fl_lightning.errors import InputError, RunError


def parameters(value):
    """Names of the arguments that a docstring has to explain."""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return []
    return [p.name.lstrip("*") for p in signature.parameters.values() if p.name not in ("self", "args", "kwargs")]


def unexplained(value):
    """Arguments or fields that nothing is said of."""
    text = inspect.getdoc(value) or ""
    if dataclasses.is_dataclass(value):
        source = inspect.getsource(value)
        return [
            field.name
            for field in dataclasses.fields(value)
            if not re.search(rf"^    {field.name}: .*(?:\n(?!    \w).*)*?\n    (?:r|f)?\"\"\"", source, re.MULTILINE)
            and not re.search(rf"^\s+{field.name}: \S", text, re.MULTILINE)
        ]
    said = text + (inspect.getdoc(value.__init__) or "" if inspect.isclass(value) else "")
    return [name for name in parameters(value) if not re.search(rf"(^\s+{name}: \S|`{name}`)", said, re.MULTILINE)]


@pytest.mark.parametrize("name", [n for n in fl_lightning.__all__ if n != "LoraState"])
def test_public_name_is_explained(name):
    value = getattr(fl_lightning, name)
    text = inspect.getdoc(value) or ""
    first = text.partition("\n")[0]
    assert first.endswith((".", ":")), first
    assert len(first) > 20
    assert unexplained(value) == []


@pytest.mark.parametrize("name", [n for n in fl_lightning.__all__ if inspect.isclass(getattr(fl_lightning, n))])
def test_public_methods_of_public_classes_are_explained(name):
    value = getattr(fl_lightning, name)
    for method, function in vars(value).items():
        if not method.startswith("_") and inspect.isfunction(function):
            assert inspect.getdoc(function), f"{name}.{method}"


@pytest.mark.parametrize("name", fl_lightning.__all__)
def test_what_is_raised_is_said(name):
    """A public function that raises an error of ours itself has it under Raises."""
    value = getattr(fl_lightning, name)
    if not inspect.isfunction(value):
        return
    for error in (InputError, RunError):
        if re.search(rf"^    +raise {error.__name__}\b", inspect.getsource(value), re.MULTILINE):
            assert re.search(rf"Raises:\n(.*\n)*? +{error.__name__}: ", inspect.getdoc(value) + "\n"), error


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
def test_reference_is_built_by_the_command_in_the_docs(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
    command = shlex.split(re.search(r"^(pdoc .*docs/api)$", page, re.MULTILINE)[1])
    program, *options = command
    code = f"import runpy, sys; sys.argv[1:] = {options!r}; runpy.run_module({program!r}, run_name='__main__')"
    status, output = Forked(code, tmp_path).finish()
    assert status == 0, output[-2000:]
    page = (tmp_path / "docs/api/fl_lightning.html").read_text(encoding="utf-8")
    assert [name for name in fl_lightning.__all__ if f'id="{name}"' not in page] == []


def test_an_argument_without_a_word_is_seen():
    def some(one, two):
        """Do something.

        Args:
            one: the first.
        """

    assert unexplained(some) == ["two"]
