import torch

from fl_lightning import FederatedCallback, NetworkLog


class Wire(FederatedCallback):
    """Gives the fake clients what those on the network have: counters that grow."""

    def on_round_start(self, *, trainer, tasks):
        before = getattr(trainer.clients, "traffic", {"up": 0, "down": 0})
        trainer.clients.traffic = {"up": before["up"] + 100, "down": before["down"] + 30}
        trainer.clients.transport_errors = {"hr/c0": 0.25}


def test_bytes_of_each_round_and_rounding_errors_are_logged(play, state):
    levels = {}
    rounds = [{"hr/c0": (state((2, 0)), 1)}] * 2
    trainer = play(rounds, callbacks=[Wire(), NetworkLog(levels)])
    for round_num in (1, 2):
        row = dict(trainer.history)[round_num]
        assert (row["network/up"], row["network/down"]) == (100, 30)
        assert row["hr/c0/network/transport_error"] == 0.25
    assert [list(of_department) for of_department in levels.values()] == [["department"]]
    assert all(torch.equal(levels["hr"]["department"][n], t) for n, t in trainer.federation.adapter("hr").items())
