"""The commands server and client as a person meets them when something is wrong: one line each."""

import pytest

from fl_lightning.cli import main

pytest.importorskip("flwr", reason="flwr is not installed")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["client", "--department", "hr"], 2, "client: expected --department and --client, such as hr and"),
        (["client", "--client", "a"], 2, "got no --department"),
        (["client", "--department", "hr", "--client", "a"], 2, "expected a file made by fl-lightning certs"),
        (["server"], 2, "network.certificates"),
        (["server", "--federation.share=central", "--federation.combiner=fedavg", "--num-clusters=1",
          "--no-dept-clustering"], 2, "brings all records to one place"),
        (["server", "--fabric.devices=2"], 2, "fabric.devices: expected 1 for the server"),
        (["server", "--data.selection_fraction=0.2", "--training.early_stopping=true", "--federation.share=a"], 2,
         "training.early_stopping: expected false between machines with share a"),
        (["client", "--department", "hr", "--client", "a", "--personal.own=during", "--personal.fedalt_weight=0.5"], 2,
         "personal.fedalt_weight: expected 0 between machines"),
        (["server", "--data.selection_fraction=0.2", "--federation.dept_clusters.mix=predictions"], 2,
         "federation.dept_clusters.mix: expected a or all between machines"),
        (["client", "--department", "hr", "--client", "a", "--federation.secure_aggregation=true",
          "--num-clusters=1"], 2, "network.roster: expected a file with the public keys of all sites of the"),
        (["client", "--department", "hr", "--client", "a", "--federation.secure_aggregation=true", "--num-clusters=1",
          "--network.roster=nowhere"], 2, "nowhere: cannot be read"),
        (["server", "--federation.secure_aggregation=true", "--num-clusters=1", "--network.transport=int8"], 2,
         "network.transport: masked numbers are random"),
        (["server", "--resume", "last"], 2, "run 'last': no version_N folder"),
        (["server", "--network.port=0"], 2, "network.port: expected an integer in [1, 65535], got 0"),
        (["server", "--network.prot=1"], 2, "did you mean"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(arguments, code, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_fit_is_not_resumed_by_the_server(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "version_0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "version_0" / "config.yaml").write_text("seed: 1\n")
    assert main(["server", "--resume", "version_0", "--output", "."]) == 2
    assert "not a run of the server command" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["server", "client"])
def test_help_lists_the_network_block(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"fl-lightning {command} ")
    assert "--network.quorum" in text
