import pytest
import torch
import transformers as hf

from fl_lightning.data.client_data import ClientData
from fl_lightning.data.lazy_clients import LazyClients
from fl_lightning.data.tokenization import Examples
from fl_lightning.errors import InputError
from fl_lightning.modeling.limits import check_token_ids, limit_length, max_positions


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (hf.GPT2Config(n_positions=64), 64),
        (hf.GPTJConfig(n_positions=65), 65),
        (hf.LlamaConfig(max_position_embeddings=66), 66),
        (hf.OPTConfig(max_position_embeddings=67), 67),
        (hf.MptConfig(max_seq_len=68), 68),
        (hf.Gemma3Config(text_config={"max_position_embeddings": 69}), 69),
        (hf.BloomConfig(), None),
        (hf.MambaConfig(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_positions_are_found_under_the_names_of_architectures(config, positions):
    assert max_positions(config) == positions


def test_records_are_cut_to_the_positions_of_the_model_and_this_is_said(micro_model, log_messages):
    model = micro_model("gpt2")  # 512 positions
    assert [limit_length(length, model) for length in (100, 512)] == [100, 512]
    assert not log_messages
    assert limit_length(600, model) == 512
    (message,) = log_messages
    assert message.startswith("WARNING data.max_length: 600 is more than the 512 positions of the base model")


def clients(ids):
    examples = Examples([[5, 6], ids], [[False, True], [False] * (len(ids) - 1) + [True]])
    return {"hr/a": ClientData("hr", "a", examples, examples[:1])}


def test_an_id_beyond_the_embedding_is_refused_with_client_record_and_token(micro_model, tokenizer):
    model = micro_model("qwen", vocabulary=1000)
    with pytest.raises(InputError, match=r"below 1000, .* got 1003 .* in training record 1 of hr/a; .* 4096 tokens"):
        check_token_ids(clients([7, 1003]), model, tokenizer)


def test_lazy_clients_are_checked_when_they_are_read(micro_model, tokenizer):
    data = LazyClients({"hr/a": [7, 1003], "hr/b": [7, 8]}, lambda client_id, ids: clients(ids)["hr/a"])
    check_token_ids(data, micro_model("qwen", vocabulary=1000), tokenizer)
    assert data["hr/b"].train
    with pytest.raises(InputError, match=r"below 1000, .* got 1003 .* in training record 1 of hr/a"):
        data["hr/a"]


def test_a_tokenizer_with_more_tokens_than_the_model_is_accepted_if_records_do_not_use_them(micro_model, tokenizer):
    model = micro_model("qwen", vocabulary=1000)
    check_token_ids(clients([7, 999]), model, tokenizer)
    assert model(torch.tensor([[7, 999]])).logits.isfinite().all()
