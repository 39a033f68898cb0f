"""What a site remembers of the sums in which it took part."""

import stat

import pytest

from fl_lightning.errors import InputError
from fl_lightning.network.site.mask_record import FILE, MaskRecord
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError


def test_attempts_and_sums_outlive_the_process(tmp_path):
    record = MaskRecord(tmp_path / "run")
    record.join(2, attempt=1)
    record.sign(2, ["hr/b", "hr/a"])
    again = MaskRecord(tmp_path / "run")
    assert (again.last_attempt(2), again.last_attempt(1)) == (1, 0)
    again.join(2, attempt=5)
    again.sign(2, ["hr/a", "hr/b"])
    for others in (["hr/a"], ["hr/a", "hr/b", "hr/c"], ["hr/a", "hr/c"]):
        with pytest.raises(SecureAggregationError, match="expected the sum that this site has signed before, got"):
            again.sign(2, others)
    again.join(3, attempt=5)
    again.sign(3, ["hr/a"])
    assert MaskRecord(tmp_path / "run").last_attempt(2) == 5


def test_nobody_else_reads_it(tmp_path):
    MaskRecord(tmp_path).join(1, attempt=1)
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"rounds": []}', '{"rounds": {"1": {"attempt": 1}}}', '{"rounds": {"1": 3}}',
     '{"rounds": {"1": {"attempt": "1", "signed": null}}}', '{"rounds": {"1": {"attempt": 1, "signed": [1]}}}'],
)  # fmt: skip
def test_a_damaged_one_is_refused_rather_than_forgotten(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match=FILE):
        MaskRecord(tmp_path)
