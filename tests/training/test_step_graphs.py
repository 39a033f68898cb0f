"""What a graph repeats is what a step computes.

Without a GPU the recorded work is simply run again, on tensors that keep their places: it sees of a later row what a
CUDA graph would see, and of the first row nothing but its sizes. Attention and dropout's keys are those of a GPU.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from fl_lightning.data.row_padding import pad_row
from fl_lightning.modeling import attention, dropout, low_rank_product
from fl_lightning.modeling import cohort as cohort_module
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.dropout import dropout_stream
from fl_lightning.modeling.lora import create_lora_model
from fl_lightning.module import LoraClientModule
from fl_lightning.training import step_graphs
from fl_lightning.training.step_graphs import StepGraphs
from fl_lightning.training.step_rows import RowMaker

CPU = torch.device("cpu")


def varlen(query, key, value, starts, key_starts, longest, key_longest, *, scale=None, enable_gqa=False, **_):
    """Flash Attention's form for sequences of any length, as it is on a GPU: it reads `starts` on the device."""
    tokens = torch.arange(len(query))
    sequence = torch.searchsorted(starts, tokens, right=True)
    assert int(starts.diff().max()) <= longest
    mask = (sequence[:, None] == sequence[None, :]) & (tokens[:, None] >= tokens[None, :])
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
    return out[0].transpose(0, 1)


@pytest.fixture
def on_gpu(monkeypatch):
    """Attention of variable length."""
    monkeypatch.setattr(attention, "varlen_attn", varlen)
    monkeypatch.setattr(attention, "VARLEN_ARGUMENTS", frozenset({"scale", "enable_gqa", "window_size"}))
    monkeypatch.setattr(attention, "can_use_varlen_attention", lambda *_: True)


@pytest.fixture
def training(micro_model, random_state, make_examples, monkeypatch):
    """(cohort of two clients, its module, a function that gives a step's rows and a function of its targets)."""
    to_tensor = lambda words, device: torch.from_numpy(words.view(np.int64)).to(device)  # noqa: E731
    monkeypatch.setattr(dropout, "_on_device", to_tensor)
    model = create_lora_model(micro_model("qwen"), r=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])
    module = LoraClientModule(model).eval()
    cohort = LoraCohort(model)
    states = [random_state(model, seed) for seed in range(4)]
    cohort.load(states[:2], CPU)

    def steps(pads, seed=0, device=CPU):
        plans = [[[make_examples(3, seed=seed + step)] for step in range(4)], [[make_examples(2, seed=seed + 7)]] * 4]
        streams = [dropout_stream(s) for s in (1, 2)]
        return RowMaker(cohort, streams, device, lambda batch: [batch], pads=pads).steps(plans)

    return cohort, module, states, steps


def by_call(cohort, module, row, num_targets):
    """(losses, gradients) of a row without graphs."""
    for parameter in cohort.parameters():
        parameter.grad = None
    cohort.set_row(row.places)
    losses = module(row.batch).loss / num_targets
    losses.sum().backward()
    return losses.detach(), [p.grad.clone() for p in cohort.parameters()]


def run(graphs, cohort, row, num_targets):
    for parameter in cohort.parameters():
        parameter.grad = None
    return graphs.add_gradients(row, num_targets), [p.grad for p in cohort.parameters()]


def repeat(work):
    """Work that is done again, with its results in the same tensors."""
    outputs = work()

    def again():
        for output, result in zip(outputs, work(), strict=True):
            output.copy_(result)

    return again, outputs


def assert_equal(got, expected):
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-6)
    for one, other in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_padding_changes_no_loss_and_no_gradient(training):
    """With the attention of a CPU."""
    cohort, module, _, steps = training
    padding = []
    with cohort.attached():
        for padded, plain in zip(list(steps(pads=True)), list(steps(pads=False)), strict=True):
            row, other = padded.rows[0], plain.rows[0]
            padding.append(row.batch.num_tokens - other.batch.num_tokens)
            for parameter in cohort.parameters():
                parameter.grad = None
            cohort.set_row(row.places)
            sums = module(row.batch).loss
            (sums[:-1] / padded.num_targets).sum().backward()
            got = (sums[:-1].detach() / padded.num_targets, [p.grad.clone() for p in cohort.parameters()])
            assert_equal(got, by_call(cohort, module, other, plain.num_targets))
    assert max(padding) > 0


def test_a_graph_repeats_other_rows_of_its_size_and_other_clients(training, on_gpu, monkeypatch):
    cohort, module, states, steps = training
    graphs = StepGraphs(module, cohort, contextlib.nullcontext, repeat)
    recorded = []
    record = graphs._record
    graphs._record = lambda work: recorded.append(work) or record(work)
    # All rows of one size, which has room for each of them.
    rows = [step.rows[0].batch for step in steps(pads=True)]
    sizes = step_graphs_sizes(rows)
    monkeypatch.setattr("fl_lightning.training.step_rows.pad_row", lambda batch: pad_row(batch, sizes))
    with cohort.attached():
        for pair in (states[:2], states[2:]):
            cohort.load(pair, CPU)
            for padded, plain in zip(list(steps(pads=True)), list(steps(pads=False)), strict=True):
                expected = by_call(cohort, module, plain.rows[0], plain.num_targets)
                assert_equal(run(graphs, cohort, padded.rows[0], padded.num_targets), expected)
    assert len(recorded) == 1


def step_graphs_sizes(rows):
    from fl_lightning.data.row_padding import RowSizes

    sizes = [RowSizes.of(row) for row in rows]
    most = [max(getattr(s, name) for s in sizes) for name in ("tokens", "targets", "sequences", "longest")]
    return RowSizes(most[0] + 2 * most[1], most[1], most[2] + 8, most[3])


def test_gradients_of_several_rows_add_up(training, on_gpu):
    cohort, module, _, steps = training
    graphs = StepGraphs(module, cohort, contextlib.nullcontext, repeat)
    first, second, *_ = steps(pads=True)
    with cohort.attached():
        alone = [run(graphs, cohort, s.rows[0], s.num_targets)[1] for s in (first, second)]
        for parameter in cohort.parameters():
            parameter.grad = None
        for step in (first, second):
            graphs.add_gradients(step.rows[0], step.num_targets)
    for parameter, a, b in zip(cohort.parameters(), *alone, strict=True):
        torch.testing.assert_close(parameter.grad, a + b)


def test_a_factor_that_does_not_train_gets_no_gradient(training, on_gpu):
    cohort, module, states, steps = training
    cohort.load(states[:2], CPU, "b")
    graphs = StepGraphs(module, cohort, contextlib.nullcontext, repeat)
    step = next(iter(steps(pads=True)))
    with cohort.attached():
        _, gradients = run(graphs, cohort, step.rows[0], step.num_targets)
    assert len(gradients) == 1


@pytest.mark.parametrize("fault", ["wrong", "refused"])
def test_a_graph_that_cannot_be_trusted_is_left_out_with_a_warning(training, on_gpu, log_messages, fault):
    def record(work):
        if fault == "refused":
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = [1.1 * result for result in work()]
        return (lambda: None), outputs

    cohort, module, _, steps = training
    graphs = StepGraphs(module, cohort, contextlib.nullcontext, record)
    with cohort.attached():
        for padded, plain in zip(list(steps(pads=True)), list(steps(pads=False)), strict=True):
            expected = by_call(cohort, module, plain.rows[0], plain.num_targets)
            assert_equal(run(graphs, cohort, padded.rows[0], padded.num_targets), expected)
    reason = {"wrong": "its results differ by 10.0%", "refused": "not permitted when stream is capturing"}[fault]
    assert len(log_messages) == 1
    assert "training.cuda_graphs: going on without" in log_messages[0]
    assert reason in log_messages[0]


def test_out_of_memory_is_for_the_caller(training, on_gpu):
    def record(work):
        raise torch.OutOfMemoryError("CUDA out of memory")

    cohort, module, _, steps = training
    graphs = StepGraphs(module, cohort, contextlib.nullcontext, record)
    step = next(iter(steps(pads=True)))
    with cohort.attached(), pytest.raises(torch.OutOfMemoryError):
        graphs.add_gradients(step.rows[0], step.num_targets)


def test_only_so_many_graphs_are_kept(training, on_gpu, monkeypatch):
    cohort, module, _, steps = training
    monkeypatch.setattr(step_graphs, "MAX_GRAPHS", 2)
    graphs = StepGraphs(module, cohort, contextlib.nullcontext, repeat)
    with cohort.attached():
        for seed in range(4):
            for step in steps(pads=True, seed=100 * seed):
                graphs.add_gradients(step.rows[0], step.num_targets)
    assert len(graphs._graphs) == 2


def test_attention_by_groups_of_lengths_is_not_recorded(training, log_messages):
    """It reads the lengths of the row on the host, so a graph would repeat those of the first one."""
    cohort, module, _, steps = training
    graphs = StepGraphs(module, cohort, contextlib.nullcontext, repeat)
    with cohort.attached():
        for padded, plain in zip(list(steps(pads=True)), list(steps(pads=False)), strict=True):
            expected = by_call(cohort, module, plain.rows[0], plain.num_targets)
            assert_equal(run(graphs, cohort, padded.rows[0], padded.num_targets), expected)
    assert not graphs._graphs
    assert len(log_messages) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_of_this_gpu_give_what_steps_give(training, log_messages):
    cohort, module, states, steps = training
    device = torch.device("cuda")
    module.to(device).bfloat16()
    cohort.load(states[:2], device)
    graphs = StepGraphs(module, cohort, lambda: torch.autocast("cuda", torch.bfloat16))
    with cohort.attached():
        for padded in steps(pads=True, device=device):
            graphs._is_off = True
            expected = run(graphs, cohort, padded.rows[0], padded.num_targets)
            graphs._is_off = False
            got = run(graphs, cohort, padded.rows[0], padded.num_targets)
            for one, other in zip((got[0], *got[1]), (expected[0], *expected[1]), strict=True):
                assert (one - other).norm() <= 0.01 * other.norm()
    assert graphs._graphs
    assert not log_messages


class NoCopiesFromHost(TorchDispatchMode):
    """Refuses operations that bring a tensor from the CPU to the device: a graph would read its old place."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "meta":
            copied = [x for x in args if isinstance(x, torch.Tensor) and x.device.type == "cpu"]
            assert not copied, f"{function} copies from the host"
        return result


def test_what_is_recorded_takes_nothing_from_the_host(training, make_examples, monkeypatch):
    meta = torch.device("meta")
    monkeypatch.setattr(attention, "varlen_attn", lambda q, k, v, *_, **__: q + k + v)
    monkeypatch.setattr(attention, "VARLEN_ARGUMENTS", frozenset({"scale"}))
    monkeypatch.setattr(attention, "can_use_varlen_attention", lambda *_: True)
    monkeypatch.setattr(low_rank_product, "_has_kernel", lambda device, dtype: True)
    monkeypatch.setattr(cohort_module, "compute_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)  # does not know the device
    cohort, module, states, _ = training
    module.to(meta)
    cohort.load(states[:2], meta)
    maker = RowMaker(cohort, [dropout_stream(s) for s in (1, 2)], meta, lambda batch: [batch], pads=True)
    step = maker.step([[make_examples(3, seed=0)], [make_examples(2, seed=1)]])
    graphs = StepGraphs(module, cohort, contextlib.nullcontext, repeat)
    row, num_targets = step.rows[0], step.num_targets
    assert all(x.device == meta for x in graphs._inputs(row, num_targets))
    with cohort.attached():
        with NoCopiesFromHost():
            losses, *_ = graphs._compute(row.batch, row.places, num_targets)
        assert losses.device == meta
        with NoCopiesFromHost(), pytest.raises(AssertionError, match="copies from the host"):
            torch.arange(3).to(meta)
