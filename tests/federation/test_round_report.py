from fl_lightning.federation.round_report import DepartmentReport, RoundReport


def test_reports_do_not_share_their_defaults():
    first, second = DepartmentReport(), DepartmentReport()
    first.rejected["client_0"] = "not finite"
    assert second.rejected == {}
    one, other = RoundReport(1), RoundReport(2)
    one.bytes_sent["client/up"] = 1
    one.departments["hr"] = first
    assert (other.bytes_sent, other.departments) == ({}, {})
