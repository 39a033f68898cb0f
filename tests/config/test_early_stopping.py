import pytest

from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError

STOP = ["--training.early_stopping", "true"]


def test_early_stopping_needs_selection_records():
    with pytest.raises(InputError, match=r"data\.selection_fraction: expected records for training\.early_stopping"):
        parse_config(STOP)
    assert parse_config([*STOP, "--data.selection_fraction", "0.2"]).training.early_stopping


def test_early_stopping_does_not_go_with_apfl_whose_adapters_are_mixed_after_the_run():
    options = ["--data.selection_fraction", "0.2", "--personal.own", "during", "--personal.apfl_alpha", "0.5"]
    parse_config(options)
    with pytest.raises(InputError, match=r"training\.early_stopping: expected false with personal.apfl_alpha, fed"):
        parse_config([*options, *STOP])
