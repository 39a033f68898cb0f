import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from fl_lightning.bundled import resolve
from fl_lightning.config.parsing import parse_config
from fl_lightning.publishing.export_folder import ExportSource, build_export_folder
from fl_lightning.publishing.repo_names import UNNAMED_BASE, hub_id

SECRET = "/home/erna/secret-data"  # as the fixture has it
DP = {"guard": {"name": "dp"}, "weighting": "uniform", "client_clusters": {"num_clusters": 1}}


@pytest.fixture
def card_of(make_run, tmp_path):
    """Factory of (card, adapter_config, folder) of one adapter of a run with a config."""

    def make(name="hr", base=None, licence=None, **config):
        run = make_run(f"run_{len(list(tmp_path.iterdir()))}", **config)
        settings = parse_config(["--config", str(run / "config.yaml")])
        place = "client_exports/hr/round_2_client_0" if "/" in name else f"adapters/{name}"
        if name.endswith("+adapter"):
            place = f"personal/adapters/{name.removesuffix('+adapter')}"
        short = name.replace("/", "-").replace("+", "-")
        source = ExportSource(
            run, settings, name, run / place, f"acme/bots-{short}", hub_id(settings.model, base), licence
        )
        built = build_export_folder(source, run / "publish" / short)
        card = ModelCard((built.folder / "README.md").read_text())
        return card, json.loads((built.folder / "adapter_config.json").read_text()), built.folder

    return make


def test_metadata_is_what_the_hub_reads(card_of):
    card, settings, _ = card_of(base="acme/base", licence="apache-2.0")
    data = card.data
    assert (data.library_name, data.base_model, data.license) == ("peft", "acme/base", "apache-2.0")
    assert data.base_model_relation == "adapter"
    assert data.tags == ["lora", "federated-learning", "fl_lightning"]
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("loss", 3.0),
        ("perplexity", 30.0),
        ("accuracy", 0.3),
    ]
    assert settings["base_model_name_or_path"] == "acme/base"


def test_text_has_figures_counts_and_method(card_of):
    text = card_of()[0].text
    for row in (
        "On the response tokens of 24 held-out records of the department's clients:",
        "| loss | 4.000 | 3.000 |",
        "| token accuracy | 0.400 | 0.300 |",
        "| rounds | 2 |",
        "| clients | 3 |",
        "| training records | 123 |",
        "| adapter | rank 2 on `q_proj`, `v_proj` |",
        "| shared | clients send A and B |",
        "| combined by | residual averaging (FLoRA), step 0.1 (constant) |",
        "| excluded updates | 1 |",
        "Differential privacy was off",
        "No licence was given",
    ):
        assert row in text, row


def test_run_that_stopped_early_says_so(card_of):
    assert "| rounds | 2 of 9 |" in card_of(federation={"rounds": 9})[0].text


def test_group_and_client_are_called_what_they_are(card_of):
    group = card_of("office")[0].text
    assert "for the group `office`" in group
    assert "| departments in the group | 2 |" in group
    client = card_of("hr/client_0")[0].text
    assert "the own adapter of client `hr/client_0`" in client
    assert "| training records | 100 |" in client
    assert "no name of a client" not in client


def test_one_adapter_of_a_client_has_its_weights_and_its_loss_beside_the_own_adapters(card_of):
    text = card_of("hr/client_0+adapter")[0].text
    for row in (
        "the one adapter of client `hr/client_0` of a federated run, chosen by its own records",
        "|  | the client's own adapter | this |",
        "| loss | 2.100 | 1.900 |",
        "made of those of all levels in the table, each with its weight",
        "| own | trained by the client alone; all of them together, if it has several | 60% |",
        "| department | of the client's department | 38% |",
        "| base | none | 2% |",
        "| training records of the client | 100 |",
        "| combined by | residual averaging (FLoRA), step 0.1 (constant) |",
    ):
        assert row in text, row
    assert "hr/client_1" not in text
    assert "| clients |" not in text  # those of its department and of all have trained parts of it
    assert "2.500" not in text  # the loss of the client's last fit
    assert "has parts that were trained without noise" in card_of("hr/client_0+adapter", federation=DP)[0].text


def test_one_adapter_that_is_a_levels_says_so(card_of):
    text = card_of("hr/client_1+adapter")[0].text
    assert "made of that of the level `department` alone, which was better on these records" in text


@pytest.mark.parametrize(
    ("federation", "row"),
    [
        ({"combiner": "fedavg", "guard": {"name": "median"}}, "| guard | `median` |"),
        ({"combiner": "fedavg"}, "| combined by | `fedavg` |"),
        ({"server": {"step": "fedadam"}}, "server step `fedadam`, step size 0.1 (constant)"),
        ({"flora": {"use_residual": False}}, "| combined by | the weighted mean of the factors |"),
        ({"share": "a"}, "clients send A and keep B; the adapter has the mean of the private factors"),
        ({"clients_per_round": 2}, "| clients sampled per round | 2 of each department's"),
        ({"dept_clusters": {"enabled": False}}, "| clusters of departments | off |"),
    ],
)
def test_method_is_the_configs(card_of, federation, row):
    assert row in card_of(federation=federation)[0].text


def test_epsilon_is_said_with_what_it_covers(card_of):
    text = card_of(federation=DP)[0].text
    assert "was on: ε = 3.25 at δ = 1e-05, noise multiplier 1" in text
    assert "nor the metrics above" in text
    assert "drawn from a seed" not in text
    assert (
        "ε does not hold against anybody who knows the seed"
        in card_of(federation={**DP, "privacy": {"noise_seed": 7}})[0].text
    )
    assert "ε = 7.5 at" in card_of("office", federation=DP)[0].text
    assert "the weights against everybody but the server." in text
    shares = {**DP, "secure_aggregation": True, "client_clusters": {"num_clusters": 1}}
    assert "a server with 1 of the clients included" in card_of(federation=shares)[0].text
    client = card_of("hr/client_0", federation=DP)[0].text
    assert "does not cover this adapter" in client
    assert "ε =" not in client
    kept = card_of(federation={**DP, "share": "a"})[0].text
    assert "carries the mean" not in kept  # with dp no mean is made of what clients keep


def test_an_audit_is_said_for_its_adapter_only(card_of, monkeypatch):
    bound = {"kind": "mixed", "owner": "hr", "guesses": 20, "correct": 18, "epsilon": 0.912, "provable": 1.82}
    ends = {f"{name}_{end}": value for name in ("auc", "tpr") for end, value in (("low", 0.1), ("high", 0.9))}
    test = {"owner": "hr", "score": "base", "auc": 0.75, "tpr": 0.5, "members": 8, "others": 4, **ends}
    tests = [{"kind": "department", **test, "auc": 0.99}, {"kind": "mixed", **test}]
    lines = [{**bound, "kind": "department", "epsilon": 1.1}, {**bound, "kind": "mixed, A alone"}, bound]
    audit = {"delta": 1e-5, "canaries": {"bounds": lines}, "membership": tests}
    path = Path("audit.json")
    build = build_export_folder

    def with_audit(source, folder):
        (source.run_folder / path).write_text(json.dumps(audit))
        return build(source, folder)

    monkeypatch.setitem(globals(), "build_export_folder", with_audit)
    text = " ".join(card_of()[0].text.split())
    assert "guessed 18 of 20 of them right: ε of a record is at least 0.91, with 95 % confidence" in text
    assert "can prove at most 1.82; a low bound is no proof of privacy" in text
    assert "AUC of 0.750 (95 %: 0.100 to 0.900), and found 50.0% of the trained ones" in text
    other = card_of("finance")[0].text
    assert "An audit" not in other
    assert "membership" not in other


def test_nothing_of_the_machine_or_of_others_is_told(card_of, tmp_path):
    base = tmp_path / "base of erna"
    config = {
        "model": {"name_or_path": str(base)},
        "logging": {"loggers": [{"class_path": "x.Y", "init_args": {"key": SECRET}}]},
    }
    card, settings, folder = card_of(network={"host": "10.1.2.3", "certificates": SECRET}, **config)
    assert settings["base_model_name_or_path"] == UNNAMED_BASE
    assert "revision" not in settings
    assert f'base = "{UNNAMED_BASE}"  # put the base model here' in card.text
    assert "base_model" not in card.data.to_dict()
    for path in folder.iterdir():
        told = path.read_bytes().decode("utf-8", "replace")
        for secret in (SECRET, str(tmp_path), "erna", "10.1.2.3", "client_2", "finance", "parcel", "x.Y"):
            assert secret not in told, (path.name, secret)


def test_revision_of_the_base_is_kept_where_it_is_the_configs(card_of):
    model = {"name_or_path": "acme/base", "revision": "v2"}
    assert card_of(model=model)[1]["revision"] == "v2"
    assert "revision" not in card_of(model=model, base="acme/other")[1]


def test_snippet_of_the_bundled_base_runs(card_of, monkeypatch):
    card, settings, folder = card_of()
    assert settings["base_model_name_or_path"] == "bundled:tiny_base"
    code = card.text.partition("```python\n")[2].partition("```")[0]
    found = {}
    exec(code.replace('"acme/bots-hr"', repr(str(folder))), found)
    assert found["model"].peft_config["default"].r == 2
    assert found["tokenizer"].chat_template


def test_snippet_sets_the_tokens_that_end_an_answer_if_the_base_does_not_know_them(card_of, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(resolve("bundled:tiny_base"), base)
    for name in ("generation_config.json", "tokenizer_config.json"):
        path = base / name
        values = json.loads(path.read_text())
        values |= {"eos_token_id": 0} if name.startswith("generation") else {"eos_token": "<|endoftext|>"}
        path.write_text(json.dumps(values))
    assert "eos_token_id" not in card_of()[0].text
    assert "model.generation_config.eos_token_id = [2, 0]\n" in card_of(model={"name_or_path": str(base)})[0].text


def test_card_reads_back_as_yaml_and_ends_with_one_line(card_of):
    card, _, folder = card_of(licence="mit")
    text = (folder / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "mit"
    assert text.endswith("well.\n")
    assert Path(folder / "adapter_model.safetensors").stat().st_size > 10_000


def test_under_early_stopping_the_card_says_which_round_the_adapter_is_of(card_of, make_run, monkeypatch):
    from fl_lightning.publishing import run_facts

    monkeypatch.setattr(run_facts, "best_rounds", lambda folder: {"hr": 1})
    assert "| rounds | 2; this adapter is of round 1, with the lowest loss on selection records |" in card_of()[0].text
