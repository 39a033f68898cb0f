import copy
import dataclasses

import pytest
import torch

from fl_lightning.config import ClientProfilesConfig, RunConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError
from fl_lightning.federation.fingerprint import MUTABLE_KEYS, check_fingerprint, fingerprint_model, fingerprint_run


@pytest.fixture
def clients(make_examples):
    return {
        c: ClientData(*c.split("/"), make_examples(3, i), make_examples(2, 9)) for i, c in enumerate(["hr/a", "it/a"])
    }


def test_the_same_things_have_the_same_fingerprint_wherever_they_lie(clients):
    config = RunConfig()
    moved = dataclasses.replace(config, output="elsewhere")
    moved.data.root, moved.model.name_or_path = "/other/place", "/other/model"
    check_fingerprint(fingerprint_run(config, clients, "abc"), fingerprint_run(moved, copy.deepcopy(clients), "abc"))


@pytest.mark.parametrize("key", [k for k in MUTABLE_KEYS if k not in ("logging", "retention")])
def test_every_key_that_may_change_is_a_key(key):
    value = RunConfig()
    for name in key.split("."):
        value = getattr(value, name)


def test_a_changed_key_is_named_with_both_values_and_with_what_may_change(clients):
    changed = RunConfig()
    changed.federation.flora.momentum = 0.5
    with pytest.raises(InputError, match=r"^federation.flora.momentum: expected 0.1, .* got 0.5; .*federation.rounds"):
        check_fingerprint(fingerprint_run(RunConfig(), clients, "abc"), fingerprint_run(changed, clients, "abc"))


def test_a_trace_of_profiles_is_known_by_its_content(clients, tmp_path):
    def with_trace(name, speed):
        (tmp_path / name).write_text(f'{{"tokens_per_second": {speed}}}')
        config = RunConfig()
        config.federation.schedule.clients = ClientProfilesConfig(speed="trace", trace=str(tmp_path / name))
        return fingerprint_run(config, clients, "abc")

    check_fingerprint(with_trace("here", 1), with_trace("moved", 1))
    with pytest.raises(InputError, match=r"federation\.schedule\.clients\.trace: expected "):
        check_fingerprint(with_trace("here", 1), with_trace("here", 2))


def test_a_key_of_a_newer_version_is_not_held_against_an_older_run(clients):
    before = fingerprint_run(RunConfig(), clients, "abc")
    del before["config"]["federation.min_clients"]
    check_fingerprint(before, fingerprint_run(RunConfig(), clients, "abc"))


def change(clients, what):
    one = clients["hr/a"]
    if what == "gone":
        del clients["hr/a"]
        clients["hr/c"] = dataclasses.replace(one, client="c")
    elif what == "new":
        clients["hr/b"] = dataclasses.replace(one, client="b")
    elif what == "token":
        one.train[1].ids[0] += 1
    elif what == "mask":
        one.eval[1].supervised[-1] ^= True
    elif what == "order":
        one.train.reverse()
    elif what == "moved between splits":
        one.eval.insert(0, one.train.pop())
    elif what == "department":
        clients["ops/a"] = clients.pop("it/a")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gone", "hr/a: .* got no such client"),
        ("new", "hr/b: .* got a new client"),
        ("token", "hr/a: .* got other records"),
        ("mask", "hr/a: .* got other records"),
        ("order", "hr/a: .* got other records"),
        ("moved between splits", "hr/a: .* got other records"),
        ("department", r"expected the departments \['hr', 'it'\], .* got \['hr', 'ops'\]"),
    ],
)
def test_changed_records_are_named(clients, what, message):
    before = fingerprint_run(RunConfig(), clients, "abc")
    change(clients, what)
    with pytest.raises(InputError, match=message):
        check_fingerprint(before, fingerprint_run(RunConfig(), clients, "abc"))


def test_of_a_large_federation_some_clients_records_and_all_names_are_compared(clients):
    config, some = RunConfig(), {"hr/a": clients["hr/a"]}
    saved = fingerprint_run(config, some, "abc", client_ids=clients)
    check_fingerprint(saved, fingerprint_run(config, some, "abc", client_ids=list(clients)))
    with pytest.raises(InputError, match="data.root: expected the clients with which the run started, got others"):
        check_fingerprint(saved, fingerprint_run(config, some, "abc", client_ids=["hr/a", "it/b"]))
    changed = {"hr/a": dataclasses.replace(clients["hr/a"], eval=[])}
    with pytest.raises(InputError, match="data.root: hr/a: expected the records .* got other records"):
        check_fingerprint(saved, fingerprint_run(config, changed, "abc", client_ids=clients))
    older = fingerprint_run(config, clients, "abc")  # of a version that hashed every client
    with pytest.raises(InputError, match="hr/a: expected the records"):
        check_fingerprint(older, fingerprint_run(config, changed, "abc", client_ids=clients))


def test_another_base_is_refused(clients):
    with pytest.raises(InputError, match=r"SHA-256 abc…\), got another one \(abd"):
        check_fingerprint(fingerprint_run(RunConfig(), clients, "abc"), fingerprint_run(RunConfig(), clients, "abd"))


def test_a_fingerprint_hears_of_every_value_type_and_name(micro_model):
    model = micro_model("qwen")
    first = fingerprint_model(model)
    assert fingerprint_model(micro_model("qwen")) == first
    assert fingerprint_model(micro_model("llama")) != first
    assert fingerprint_model(micro_model("qwen").to(torch.bfloat16)) != first
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[-1, -1] = torch.nextafter(weight[-1, -1], torch.tensor(9.0))
    assert fingerprint_model(model) != first
