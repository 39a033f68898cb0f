import json


def test_json_alone_is_on_stdout(command):
    code, text, _ = command("doctor", "--json")
    found = json.loads(text)
    assert code == 0
    assert found["offline"] is True
    assert found["memory"]["total"] == sum(
        found["memory"][key] for key in ("base", "adapters", "activations", "head", "margin")
    )


def test_table_answers_whether_qwen_fits(command, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("model: {name_or_path: Qwen/Qwen1.5-1.8B, load_in_4bit: true}\n")
    code, text, _ = command("doctor", "--config", config)
    assert code == 0
    assert "Qwen/Qwen1.5-1.8B, 1,836.8M parameters, 4-bit" in text
    assert "fit" in text
