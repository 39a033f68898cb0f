"""Digests: equal for equal values, however they are written."""

from __future__ import annotations

from fl_lightning.config.parsing import parse_config, to_yaml
from fl_lightning.federation.fingerprint import fingerprint_run
from fl_lightning.provenance.digests import canonical, json_digest


def test_numbers_without_a_fraction_are_written_in_one_way():
    assert (
        canonical({"a": (1.0, -0.0, 0.25), "b": {"c": 1e300, "d": True}})
        == b'{"a":[1,0,0.25],"b":{"c":1e+300,"d":true}}'
    )
    assert canonical(2.0**60) == b"1.152921504606847e+18"  # beyond the integers that every program reads exactly


def test_a_config_that_was_read_from_its_file_again_has_the_same_digest(tmp_path):
    config = parse_config(["--lora.lora_alpha", "16"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    read = parse_config(["--config", str(tmp_path / "config.yaml")])
    before, after = (json_digest(fingerprint_run(c, {}, "base")["config"]) for c in (config, read))
    assert before == after
