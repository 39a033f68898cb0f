import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from fl_lightning.network.compression import SCALE_SUFFIX, decode, encode, encoded_num_bytes, layout
from fl_lightning.state import distance, norm
from fl_lightning.storage.messages import decode as decode_message
from fl_lightning.storage.messages import encode as encode_message

A, B = "q.lora_A.weight", "q.lora_B.weight"
LOSSY = ["bf16", "int8"]


def zeros(*shape, name=A):
    return {name: torch.zeros(shape)}


def drawn(seed, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return {A: torch.randn(4, 33, generator=draw) * scale, B: torch.randn(17, 4, generator=draw) * scale}


def test_int8_by_hand():
    state = {A: torch.tensor([[2.54, -1.27, 0.013, 0.0], [0.0, 0.0, 0.0, 0.0], [-12.7, 0.1, 0.04, 0.06]])}
    sent = encode(state, zeros(3, 4), "int8")
    assert sent.tensors[A].tolist() == [[127, -64, 1, 0], [0, 0, 0, 0], [-127, 1, 0, 1]]  # 63.5 to even
    assert sent.tensors[A + SCALE_SUFFIX].tolist() == pytest.approx([0.02, 0.0, 0.1])
    got = decode(sent.tensors, zeros(3, 4), "int8")[A]
    wanted = [[2.54, -1.28, 0.02, 0.0], [0.0] * 4, [-12.7, 0.1, 0.0, 0.1]]
    assert torch.allclose(got, torch.tensor(wanted), atol=1e-6)
    assert torch.allclose(sent.error_feedback[A], state[A] - torch.tensor(wanted), atol=1e-6)
    assert sent.num_bytes == 12 + 3 * 4
    assert sent.relative_error == pytest.approx(norm(sent.error_feedback) / norm(state), rel=1e-6)


def test_each_column_of_b_has_a_scale():
    state = {B: torch.tensor([[1.27, 12.7], [0.01, 0.1], [-0.02, -0.2]])}
    sent = encode(state, zeros(3, 2, name=B), "int8")
    assert sent.tensors[B].tolist() == [[127, 127], [1, 1], [-2, -2]]
    assert sent.tensors[B + SCALE_SUFFIX].tolist() == pytest.approx([0.01, 0.1])
    assert torch.allclose(decode(sent.tensors, zeros(3, 2, name=B), "int8")[B], state[B], atol=1e-6)


def test_bf16_by_hand():
    # bfloat16 has 8 bits of precision: near 1 steps of 1/128, ties to even
    state = {A: torch.tensor([[1.0, 1 + 1 / 128, 1 + 1 / 256, 1 + 3 / 256, -2.5]])}
    sent = encode(state, zeros(1, 5), "bf16")
    got = decode(sent.tensors, zeros(1, 5), "bf16")[A]
    assert got.tolist() == [[1.0, 1 + 1 / 128, 1.0, 1 + 2 / 128, -2.5]]
    assert sent.error_feedback[A].tolist() == [[0.0, 0.0, 1 / 256, -1 / 256, 0.0]]
    assert sent.num_bytes == 10


def test_the_difference_travels_and_not_the_state():
    start, moved = {A: torch.full((1, 3), 1000.0)}, {A: torch.tensor([[1000.5, 1000.0, 999.5]])}
    for transport in LOSSY:
        sent = encode(moved, start, transport)
        assert torch.allclose(decode(sent.tensors, start, transport)[A], moved[A], atol=1e-4)
        assert sent.relative_error < 0.005


def test_fp32_is_bit_for_bit_whatever_the_start():
    state, start = drawn(1), drawn(2, 1e6)
    sent = encode(state, start, "fp32")
    got = decode(sent.tensors, start, "fp32")
    assert all(torch.equal(got[n], state[n]) for n in state)
    assert (sent.error_feedback, sent.relative_error, sent.num_bytes) == ({}, 0.0, 4 * (4 * 33 + 17 * 4))


@pytest.mark.parametrize("transport", LOSSY)
def test_rest_goes_into_the_next_round(transport):
    start, first, second = drawn(0), drawn(1), drawn(2)
    before = encode(first, start, transport)
    after = encode(second, start, transport, before.error_feedback)
    for n in start:
        sent = decode(after.tensors, start, transport)[n].double() - start[n].double()
        wanted = second[n].double() - start[n].double() + before.error_feedback[n].double()
        assert torch.allclose(sent + after.error_feedback[n].double(), wanted, atol=1e-6)


@pytest.mark.parametrize("transport", LOSSY)
@pytest.mark.parametrize("feedback", [True, False])
def test_what_was_decoded_adds_up_to_the_true_differences_but_for_one_rest(transport, feedback):
    state = drawn(0, 1e-2)
    total = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in state.items()}
    heard = {n: t.clone() for n, t in total.items()}
    rest = {}
    bias = drawn(99, 1e-3)  # the same small step in every round: plain rounding loses it again and again
    for round_num in range(1, 60):
        start, noise = drawn(round_num, 1e-2), drawn(1000 + round_num, 0.02)
        update = {n: start[n] + bias[n] + noise[n] * (torch.arange(start[n].shape[-1]) == 0) for n in start}
        sent = encode(update, start, transport, rest if feedback else None)
        got = decode(sent.tensors, start, transport)
        for n in total:
            total[n] += update[n].double() - start[n].double()
            heard[n] += got[n].double() - start[n].double()
        rest = sent.error_feedback
        if feedback:
            assert distance(total, heard) == pytest.approx(norm(rest), abs=1e-6)
            assert sent.relative_error < 0.02
    if not feedback:
        assert distance(total, heard) > 3 * norm(rest)


@pytest.mark.parametrize("transport", ["fp32", *LOSSY])
def test_same_update_gives_the_same_bytes_and_they_survive_the_wire(transport):
    state, start = drawn(1), drawn(2)
    sent, again = encode(state, start, transport), encode(dict(reversed(state.items())), start, transport)
    assert save(sent.tensors) == save(again.tensors)
    through = load(save(sent.tensors))
    assert {n: (t.dtype, tuple(t.shape)) for n, t in through.items()} == layout(start, transport)
    _, [message] = decode_message(encode_message({}, [sent.tensors]))
    got, wanted = decode(message, start, transport), decode(sent.tensors, start, transport)
    assert all(torch.equal(got[n], wanted[n]) for n in wanted)
    assert encoded_num_bytes(start, transport) == sent.num_bytes == sum(t.nbytes for t in through.values())


def test_int8_takes_a_quarter_of_the_bytes():
    wide = {A: torch.zeros(8, 1024), B: torch.zeros(1024, 8)}
    whole = encoded_num_bytes(wide, "fp32")
    assert encoded_num_bytes(wide, "bf16") == whole / 2
    assert encoded_num_bytes(wide, "int8") < 0.26 * whole


@pytest.mark.parametrize("transport", ["fp32", *LOSSY])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(transport, value):
    state = {A: torch.tensor([[1.0, value]])}
    with pytest.raises(ValueError, match=rf"^{A}: not finite"):
        encode(state, zeros(1, 2), transport)


def test_a_value_too_large_for_16_bits_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        encode({A: torch.tensor([[torch.finfo(torch.float32).max]])}, zeros(1, 1), "bf16")


@pytest.mark.parametrize("transport", ["fp32", *LOSSY])
def test_nothing_to_send_is_no_error(transport):
    start = {**drawn(3), "odd.lora_A": torch.zeros(2, 0), "one.lora_A": torch.tensor(2.0), "v.lora_B": torch.ones(3)}
    sent = encode(start, start, transport)
    assert sent.relative_error == 0.0
    got = decode(sent.tensors, start, transport)
    assert all(torch.equal(got[n], start[n]) for n in start)


def test_tiny_values_are_not_lost_but_kept():
    tiny = {A: torch.tensor([[1e-45, 0.0]])}
    sent = encode(tiny, zeros(1, 2), "int8")
    assert sent.tensors[A].tolist() == [[0, 0]]
    assert torch.equal(sent.error_feedback[A], tiny[A])


def test_rest_of_what_is_not_sent_this_time_is_kept():
    rest = {B: torch.ones(17, 4)}
    state, start = drawn(1), drawn(2)
    sent = encode({A: state[A]}, start, "int8", rest)
    assert sent.error_feedback[B] is rest[B]
    assert set(sent.tensors) == {A, A + SCALE_SUFFIX}


def test_a_rest_of_another_shape_and_a_state_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected the shape before it, \(2, 33\), got \(4, 33\)"):
        encode(drawn(1), drawn(2), "int8", {A: torch.zeros(2, 33)})
    for transport in ("fp32", "int8"):
        with pytest.raises(ValueError, match="expected the shape before it, no such tensor"):
            encode(drawn(1), {A: torch.zeros(4, 33)}, transport)


def test_an_unknown_transport_is_refused():
    with pytest.raises(ValueError, match="network.transport: expected one of fp32, bf16, int8, got 'fp8'"):
        encode(drawn(1), drawn(2), "fp8")


def broken(sent, what):
    tensors = dict(sent.tensors)
    if what == "missing":
        del tensors[A + SCALE_SUFFIX]
    elif what == "unknown":
        tensors["x" * 500] = torch.zeros(1)
    elif what == "dtype":
        tensors[A] = tensors[A].to(torch.int16)
    elif what == "shape":
        tensors[A] = tensors[A].T.contiguous()
    elif what == "negative":
        tensors[A + SCALE_SUFFIX] = -tensors[A + SCALE_SUFFIX]
    elif what == "nan":
        tensors[A + SCALE_SUFFIX] = torch.full_like(tensors[A + SCALE_SUFFIX], math.nan)
    elif what == "overflow":
        tensors[A + SCALE_SUFFIX] = torch.full_like(tensors[A + SCALE_SUFFIX], 3e38)
    return tensors


@pytest.mark.parametrize("what", ["missing", "unknown", "dtype", "shape", "negative", "nan", "overflow"])
def test_a_broken_update_is_refused(what):
    start = drawn(2)
    tensors = broken(encode(drawn(1), start, "int8"), what)
    with pytest.raises(ValueError, match="missing|unknown|expected") as caught:
        decode(tensors, start, "int8")
    assert len(str(caught.value)) < 300


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100), min_size=1, max_size=12),
    st.sampled_from(LOSSY),
)
def test_error_of_a_value_is_bounded(values, transport):
    state = {A: torch.tensor([values])}
    sent = encode(state, {A: torch.zeros_like(state[A])}, transport)
    largest = state[A].abs().max().item()
    bound = state[A].abs() / 256 + 1e-38 if transport == "bf16" else torch.full_like(state[A], largest / 254)
    assert bool((sent.error_feedback[A].abs() <= bound * (1 + 1e-5) + 2e-43).all())
    assert 0.0 <= sent.relative_error <= 1.0
