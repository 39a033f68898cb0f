import pytest
import torch
from transformers import AutoModelForCausalLM

from fl_lightning.cli import main
from fl_lightning.config import ModelConfig
from fl_lightning.modeling.base_model import load_base_model
from fl_lightning.modeling.lora import load_adapter_model

IDS = torch.tensor([[5, 17, 200, 31]])


def merge(run, *more):
    return main(["merge", "--run", str(run), *more])


def test_every_department_and_group_becomes_a_model(make_run, capsys):
    run = make_run()
    assert merge(run) == 0
    assert {p.name for p in (run / "merged").iterdir()} == {"finance", "hr", "office"}
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told] == ["finance", "hr", "office"]
    assert f"{run / 'merged' / 'hr'} (bf16, 3.4 MiB; rounding is " in told[1]


@torch.no_grad()
def test_named_ones_go_where_they_are_wanted(make_run, tmp_path, capsys):
    run = make_run()
    assert merge(run, "--models", "hr/client_0", "hr", "--to", str(tmp_path / "out"), "--dtype", "fp32") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"hr", "hr-client_0"}
    assert not (run / "merged").exists()
    assert "rounding" not in capsys.readouterr().out
    for place, adapter in (("hr", "adapters/hr"), ("hr-client_0", "client_exports/hr/round_2_client_0")):
        base, _ = load_base_model(ModelConfig(), dtype=torch.float32)
        wanted = load_adapter_model(base, run / adapter).eval()(IDS).logits
        got = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / place).eval()(IDS).logits
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "sales"], "has no adapter of 'sales'; expected one of finance, hr, office, or a client"),
        (["--models"], "expected one value or more"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--too", "x"], "unknown argument --too; did you mean '--to'?"),
    ],
)
def test_bad_arguments_are_one_line(make_run, capsys, arguments, said):
    run = make_run()
    assert merge(run, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (run / "merged").exists()


def test_base_that_is_gone_is_one_line_and_nothing_is_left_behind(make_run, capsys):
    run = make_run(model={"name_or_path": "/nowhere/base"})
    assert merge(run, "--models", "hr") == 2
    assert "no config.json in /nowhere/base" in capsys.readouterr().err
    assert not (run / "merged").exists()


def test_stopping_says_what_is_written_and_leaves_no_half_model(make_run, capsys, monkeypatch):
    from fl_lightning.modeling import merging
    from fl_lightning.signals import Stopped

    real, seen = merging.check_disk_space, []

    def stop(folder, wanted):
        seen.append(folder)
        if len(seen) == 2:
            raise Stopped(15)
        real(folder, wanted)

    monkeypatch.setattr(merging, "check_disk_space", stop)
    run = make_run()
    assert merge(run) == 143
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; written: finance"
    assert [p.name for p in (run / "merged").iterdir()] == ["finance"]
