import pytest

from fl_lightning.privacy import epsilon, epsilon_of_shares
from fl_lightning.privacy.ledger import Ledger


def test_a_department_costs_what_its_most_asked_client_does():
    pytest.importorskip("dp_accounting", reason="the extra 'privacy' is not installed")
    ledger = Ledger.begin(["hr", "it"], 2.0)
    assert ledger.epsilons(1.0, 1e-5) == {}
    for asked in (["hr/a", "hr/b"], ["hr/a"], ["hr/c"]):
        ledger = ledger.released(asked, {"hr": 1.5})
    assert ledger.rounds == {"hr/a": 2, "hr/b": 1, "hr/c": 1}
    assert ledger.epsilons(1.0, 1e-5) == {"hr": epsilon(1.0, 2, 1e-5, clients=1, asked=1)}
    assert ledger.clips == {"hr": 1.5, "it": 2.0}


def test_noise_in_shares_costs_what_is_proved_for_it():
    pytest.importorskip("dp_accounting", reason="the extra 'privacy' is not installed")
    ledger = Ledger.begin(["hr"], 2.0).released(["hr/a"], {}).released(["hr/a", "hr/b"], {})
    assert ledger.epsilons(1.5, 1e-5, in_shares=True) == {"hr": epsilon_of_shares(1.5, 2, 1e-5)}


def test_keys_are_secret_and_differ_by_round_and_department():
    ledger = Ledger.begin(["hr"], 1.0)
    assert len(ledger.key) == 64
    assert len({ledger.key_of(1, "hr"), ledger.key_of(2, "hr"), ledger.key_of(1, "it")}) == 3
    assert ledger.key_of(1, "hr") == ledger.key_of(1, "hr")


def test_a_seed_makes_the_key_the_same_again():
    assert Ledger.begin(["hr"], 1.0, 7) == Ledger.begin(["hr"], 1.0, 7) != Ledger.begin(["hr"], 1.0, 8)
