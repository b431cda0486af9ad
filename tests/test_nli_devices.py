"""Other devices than the CPU. torch's meta device, which holds no data, stands in for a GPU.

Its operations fail where tensors of two devices meet, but for look-ups in embeddings and products
of matrices alone. What a GPU could tell, and it cannot, is made up: values that come back to the
CPU, random generators, autocast.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters_app.nli.base_model import Base, BaseModelError, load_base, put_parameters
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.predict import Predictor
from adapters_app.nli.train import Anchors, below_adapter, multiplies_bf16, train
from tests.test_nli_model import ARCHITECTURES, EXAMPLES, PAIRS
from tests.tiny import tiny_base

GPU = torch.device("meta")
CONFIG = TrainConfig(epochs=1, batch_size=8, min_steps=0, precision="fp32", interpolation=0.5)


@pytest.fixture(params=ARCHITECTURES)
def on_gpu(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    """A base on the stand-in."""
    base = load_base(tiny_base(tmp_path / "base", request.param))
    model = base.own_copy()
    if request.param != "deberta-v2":  # which has no other attention than this
        model.set_attn_implementation("eager")
    real = {name: getattr(torch.Tensor, name) for name in ("cpu", "item", "__bool__")}
    made_up = {
        "cpu": lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype),
        "item": lambda _: 0.0,
        "__bool__": lambda _: False,
    }
    for name, method in real.items():
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, method=method, invent=made_up[name]: (
                invent(self) if self.is_meta else method(self)
            ),
        )
    monkeypatch.setattr(torch, "Generator", lambda *_: torch.default_generator)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    return replace(base, model=model.to(GPU))


@pytest.mark.parametrize("layer_share", [1.0, 0.5])
def test_a_training_keeps_its_tensors_on_one_device(on_gpu: Base, layer_share: float) -> None:
    config = replace(CONFIG, layer_share=layer_share)
    anchors = Anchors.answered_by(on_gpu, PAIRS)
    known = [example.pair for example in EXAMPLES]
    lower = below_adapter(on_gpu, [*known, *PAIRS], config)
    result = train(on_gpu, EXAMPLES, config, evaluate=PAIRS, anchors=anchors, lower=lower)
    assert on_gpu.device == GPU
    assert Predictor(on_gpu, result.epochs[-1].artifact).logits(PAIRS).shape == (len(PAIRS), 3)


def test_the_stand_in_finds_what_is_left_behind(on_gpu: Base) -> None:
    vectors = {
        name: torch.zeros(parameter.shape)
        for name, parameter in on_gpu.model.named_parameters()
        if parameter.dim() == 1
    }
    put_parameters(on_gpu.model, vectors)
    with pytest.raises(RuntimeError, match="device"):
        Predictor(on_gpu).logits(PAIRS)


def test_a_gpu_gets_as_many_pairs_a_pass_as_fit(on_gpu: Base) -> None:
    done: list[int] = []
    Predictor(on_gpu).logits(PAIRS[:3] * 30, on_batch=done.append)
    assert done == [90]


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True)])
def test_bf16_that_a_gpu_only_emulates_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: bool
) -> None:
    asked = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", {asked: capability}.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert multiplies_bf16(asked) is native


def test_a_device_that_is_not_here_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="device 'cuda:99' cannot be used"):
        load_base(tiny_base(tmp_path), device="cuda:99")
