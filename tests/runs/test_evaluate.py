import json
import re

import pytest
from run_files import flat, read

from fl_lightning import InputError
from fl_lightning.runs.evaluate import evaluate


@pytest.mark.slow
def test_evaluate_writes_the_same_figures_again_after_the_run_was_moved(finished, copied):
    for name in ("federated_eval.json", "client_eval_all_rounds.json"):
        (copied / name).unlink()
    result = evaluate(copied)
    assert result == read(copied, "federated_eval.json")
    for name in ("federated_eval.json", "client_eval_all_rounds.json"):
        assert flat(read(copied, name)) == pytest.approx(flat(read(finished, name)), rel=1e-6)


def test_evaluate_refuses_an_adapter_outside_the_run_folder(copied):
    places = read(copied, "dept_lora_federated.json")
    places["hr"] = "../elsewhere"
    (copied / "dept_lora_federated.json").write_text(json.dumps(places))
    with pytest.raises(InputError, match="leads out of the run folder"):
        evaluate(copied)


def test_evaluate_names_the_adapter_that_is_broken(copied):
    path = copied / "adapters" / "hr" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=re.escape(str(path))):
        evaluate(copied)
