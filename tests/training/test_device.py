from __future__ import annotations

import pytest
import torch

from fl_lightning.config import FabricConfig
from fl_lightning.errors import InputError
from fl_lightning.training.device import choose_precision, make_fabric, set_matmul_precision

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_that_is_asked_for_is_taken(precision):
    assert choose_precision(precision, "cpu") == precision


def test_auto_is_fp32_on_a_cpu():
    assert choose_precision("auto", "cpu") == "fp32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu_is_bf16_where_it_is_native(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert choose_precision("auto", "cuda") == expected


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(InputError, match=r"fabric\.precision"):
        choose_precision("fp16", "cpu")


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [("cuda", "bf16", ["high"]), ("cuda", "fp16", ["high"]), ("cuda", "fp32", []), ("cpu", "bf16", [])],
)
def test_fp32_products_of_a_computation_in_16_bits_run_in_tf32_on_a_gpu(monkeypatch, device, precision, expected):
    settings = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", settings.append)
    set_matmul_precision(device, precision)
    assert settings == expected


@pytest.mark.parametrize(("precision", "plugin"), [("auto", "32-true"), ("fp32", "32-true"), ("bf16", "bf16-mixed")])
def test_fabric_on_a_cpu_has_the_precision_and_fp32_weights(precision, plugin):
    fabric, dtype = make_fabric(FabricConfig(accelerator="cpu", precision=precision))
    assert (fabric.device.type, fabric.strategy.precision.precision, dtype) == ("cpu", plugin, torch.float32)


@NO_CUDA
def test_auto_accelerator_is_the_cpu_where_there_is_no_gpu():
    assert make_fabric(FabricConfig(accelerator="auto"))[0].device.type == "cpu"


@NO_CUDA
@pytest.mark.parametrize("accelerator", ["cuda", "gpu"])
def test_gpu_that_is_not_there_is_an_input_error(accelerator):
    with pytest.raises(InputError, match=r"fabric\.accelerator: expected .*got " + accelerator):
        make_fabric(FabricConfig(accelerator=accelerator))


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="an MPS device is here")
def test_mps_that_is_not_there_is_an_input_error():
    with pytest.raises(InputError, match="fabric"):
        make_fabric(FabricConfig(accelerator="mps", precision="fp32"))


def test_unknown_strategy_is_an_input_error():
    with pytest.raises(InputError, match="fabric"):
        make_fabric(FabricConfig(accelerator="cpu", strategy="no_such_strategy"))


def test_loggers_are_handed_to_fabric(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(str(tmp_path))
    assert make_fabric(FabricConfig(accelerator="cpu"), [logger])[0].loggers == [logger]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_on_this_gpu_gives_weights_in_the_precision_of_the_computation():
    fabric, dtype = make_fabric(FabricConfig())
    assert fabric.device.type == "cuda"
    assert dtype in (torch.bfloat16, torch.float16)
