import pytest
from forked import Forked

from fl_lightning.cli import main


def test_help_needs_no_run(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["report", "--help"])
    assert stop.value.code == 0
    assert "--samples N" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected a value for --run"),
        (["--run", "nowhere"], "run 'nowhere': no config.yaml in it"),
        (["--run", "last", "--output", "."], "no version_N folder"),
        (["--run", "x", "--samples", "-1"], "--samples: expected an integer of at least 0"),
        (["--run", "x", "--sample", "2"], "unknown argument --sample; did you mean '--samples'"),
    ],
)
def test_bad_arguments_are_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_report_of_the_last_run_says_where_it_is(make_run, tmp_path, capsys):
    folder = make_run({"hr": []}, rounds=1)
    assert main(["report", "--run", "last", "--output", str(tmp_path), "--samples", "0"]) == 0
    assert capsys.readouterr().out == f"The report is in {folder / 'report' / 'index.html'}\n"
    assert (folder / "report" / "index.html").is_file()


@pytest.mark.xdist_group("forked")
def test_missing_library_is_one_line(make_run, tmp_path):
    make_run({"hr": []}, rounds=1)
    argv = ["report", "--run", "last", "--output", str(tmp_path), "--samples", "0"]
    hide = "import sys; sys.modules['matplotlib'] = None"
    code, output = Forked(f"{hide}; from fl_lightning.cli import main; sys.exit(main({argv!r}))", tmp_path).finish()
    assert code == 1
    assert output == "failed: report: matplotlib is not installed; pip install 'fl_lightning[report]'\n"
    assert not (tmp_path / "version_0" / "report").exists()
