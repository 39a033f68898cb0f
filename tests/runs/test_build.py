from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.runs.build import load_run_config, make_callbacks


def test_config_yaml_reads_back_as_the_config_of_the_run(finished, small):
    config = load_run_config(finished)
    assert isinstance(config, RunConfig)
    arguments = [*small, "--output", str(finished.parent), "--rounds", "2", "--logging.samples", "1"]
    assert config == parse_config(arguments)


def test_callbacks_of_a_run_have_one_writer_in_front_and_the_checkpoint_after_all_that_write():
    names = [type(c).__name__ for c in make_callbacks(RunConfig())]
    assert names[0] == "FederatedRound"
    assert names.count("FederatedRound") == 1
    assert names[names.index("RoundCheckpoint") + 1 :] == ["RichProgress"]
