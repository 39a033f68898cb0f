import ast
import inspect
from pathlib import Path

import lightning as L
import pytest

import fl_lightning.callbacks
from fl_lightning import FederatedCallback
from fl_lightning.config import PersonalConfig

HOOKS = [
    "on_federation_start",
    "on_round_start",
    "on_step_end",
    "on_client_end",
    "on_own_fit_end",
    "on_aggregate",
    "on_round_end",
    "on_federation_end",
    "on_federation_close",
]
FILES = sorted(Path(fl_lightning.callbacks.__file__).parent.glob("*.py"))


class Recorder(FederatedCallback):
    """Overrides every hook and notes its name, and every keyword it was given."""

    def __init__(self):
        self.calls = []


def _noting(hook):
    def call(self, **arguments):
        self.calls.append((hook, arguments))

    return call


for _hook in HOOKS:
    setattr(Recorder, _hook, _noting(_hook))


def test_hooks_are_listed_in_the_order_in_which_they_come():
    assert [name for name in vars(FederatedCallback) if name.startswith("on_")] == HOOKS


def test_every_hook_fires_in_order(play, plain_config, state):
    recorder = Recorder()
    play([{"hr/c0": (state((2, 0)), 1), "hr/c1": (state((3, 0)), 1)}] * 2, callbacks=[recorder])
    clients = ["on_step_end", "on_client_end"] * 2
    one_round = ["on_round_start", *clients, "on_aggregate", "on_round_end"]
    wanted = ["on_federation_start", *one_round, *one_round, "on_federation_end", "on_federation_close"]
    assert [hook for hook, _ in recorder.calls] == wanted


def test_the_fit_of_an_own_adapter_has_a_hook_of_its_own(play, state):
    recorder = Recorder()
    personal = PersonalConfig(own="during")
    play([{"hr/c0": (state((2, 0)), 1), "hr/c1": (state((3, 0)), 1)}], callbacks=[recorder], personal=personal)
    hooks = [(hook, arguments["update"]) for hook, arguments in recorder.calls if "update" in arguments]
    assert [(hook, update.client_id, update.is_own) for hook, update in hooks] == [
        ("on_client_end", "hr/c0", False),
        ("on_client_end", "hr/c1", False),
        ("on_own_fit_end", "hr/c0", True),
        ("on_own_fit_end", "hr/c1", True),
    ]


def test_hooks_get_exactly_the_keywords_of_their_signature(play, state):
    recorder = Recorder()
    play([{"hr/c0": (state((2, 0)), 1)}], callbacks=[recorder], personal=PersonalConfig(own="during"))
    assert {hook for hook, _ in recorder.calls} == set(HOOKS)
    for hook, arguments in recorder.calls:
        assert set(arguments) == set(inspect.signature(getattr(FederatedCallback, hook)).parameters) - {"self"}


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_takes_keywords_only(hook):
    parameters = list(inspect.signature(getattr(FederatedCallback, hook)).parameters.values())[1:]
    assert parameters[0].name == "trainer"
    assert {p.kind for p in parameters} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_name_is_none_of_lightnings(hook):
    assert not hasattr(L.LightningModule, hook)


@pytest.mark.parametrize("name", fl_lightning.callbacks.__all__)
def test_shipped_callbacks_override_hooks_with_the_same_signature(name):
    cls = getattr(fl_lightning.callbacks, name)
    assert issubclass(cls, FederatedCallback)
    for hook in (n for n in vars(cls) if n.startswith("on_")):
        wanted, got = (inspect.signature(getattr(c, hook)).parameters for c in (FederatedCallback, cls))
        assert list(got) == list(wanted)
        assert [p.kind for p in got.values()] == [p.kind for p in wanted.values()]


def test_close_comes_after_an_error_too_and_end_does_not(play, state):
    recorder, errors = Recorder(), []
    play([{"hr/c0": (state((2, 0)), 0)}], callbacks=[recorder], on_error=errors.append)
    hooks = [hook for hook, _ in recorder.calls]
    assert len(errors) == 1
    assert hooks[-1] == "on_federation_close"
    assert "on_federation_end" not in hooks
    assert "on_round_end" not in hooks


def test_state_after_aggregation_is_seen_by_the_callbacks_behind_the_writer(play, state):
    seen = []

    class Reader(FederatedCallback):
        def on_aggregate(self, *, trainer):
            seen.append(trainer.federation.round_num)

    play([{"hr/c0": (state((2, 0)), 1)}] * 2, callbacks=[Reader()])
    assert seen == [1, 2]


def test_a_callback_that_overrides_nothing_does_nothing(play, state):
    trainer = play([{"hr/c0": (state((2, 0)), 1)}], callbacks=[FederatedCallback()])
    assert trainer.federation.round_num == 1
    assert FederatedCallback().state_dict() == {}


def _assigned(tree, attribute):
    """Line numbers at which `X.attribute`, or something inside it, is assigned, deleted or set by setattr."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            inner = node
            while isinstance(inner, (ast.Attribute, ast.Subscript)):
                if isinstance(inner, ast.Attribute) and inner.attr == attribute:
                    lines.append(node.lineno)
                inner = inner.value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            lines.append(node.lineno)
    return lines


def test_the_check_for_writers_sees_assignments():
    code = "trainer.federation = 1\ntrainer.federation.departments['hr'] = 2\nx = trainer.federation\nsetattr(t, n, v)"
    assert _assigned(ast.parse(code), "federation") == [1, 2, 4]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_only_federated_round_assigns_the_federation(path):
    assert bool(_assigned(ast.parse(path.read_text()), "federation")) == (path.stem == "federated_round")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_only_federated_round_assigns_the_report(path):
    assert bool(_assigned(ast.parse(path.read_text()), "report")) == (path.stem == "federated_round")
