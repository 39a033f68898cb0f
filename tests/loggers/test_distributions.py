import statistics

from fl_lightning.loggers.distributions import client_distributions


def test_quantiles_are_over_the_clients_of_one_department():
    ids = {f"{department}/c{k}" for department in ("hr", "it") for k in range(9)}
    row = {f"{client_id}/train/loss": float(client_id[-1]) + (client_id < "i") for client_id in sorted(ids)}
    got = client_distributions(row, ids)
    assert got["it/clients/train/loss/p50"] == statistics.median(range(9))
    assert got["hr/clients/train/loss/max"] == 9.0
    assert len(got) == 2 * 5


def test_rows_without_clients_stay_as_they_are():
    row = {"eval/loss": 1.0, "hr/eval/loss": 2.0, "round/bytes/client/up": 3.0, "hr/clients/eval/loss/p50": 4.0}
    assert client_distributions(row, {"hr/a"}) == row
