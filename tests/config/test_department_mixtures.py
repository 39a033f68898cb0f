import pytest

from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError

MIX = ["--federation.dept_clusters.mix", "predictions"]


def test_mixed_predictions_need_selection_records():
    with pytest.raises(InputError, match=r"data\.selection_fraction: expected records for dept_clusters\.mix: predic"):
        parse_config(MIX)
    config = parse_config([*MIX, "--data.selection_fraction", "0.2"])
    assert config.federation.dept_clusters.mixes_predictions


def test_without_clusters_of_departments_nothing_is_mixed():
    assert not parse_config([*MIX, "--no-dept-clustering"]).federation.dept_clusters.mixes_predictions
