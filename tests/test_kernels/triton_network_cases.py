"""Tests of networks whose operators are the Triton ones, collected as `triton_cases.py` is."""

import contextlib

import pytest
import torch
from golden_runs import VMAMBAS, check_backbone, check_classifier
from mmvmamba.kernels.testing import assert_close
from triton_runs import DEVICE, FLOAT32, INTERPRETED, LOGITS, MARKS, OLDEST_TRITON

from mmvmamba.models import VMamba

pytest.importorskip('triton', minversion=OLDEST_TRITON)

STAGES = 2 if INTERPRETED else 4
SMALL = dict(embed_dims=8, depths=(1,) * STAGES, out_indices=range(STAGES), drop_path_rate=0.0, backend='triton')

pytestmark = MARKS


@pytest.fixture(autouse=True)
def exact_convolutions():
    """cudnn would round to ten bits and sum in any order."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


# the interpreter takes up to minutes for the others, whose scans have cases of their own
@pytest.mark.parametrize('name', ('cascade',) if INTERPRETED else VMAMBAS)
def test_golden_backbone(name, data_dir):
    check_backbone(data_dir / f'vmamba_{name}.safetensors', 'triton', FLOAT32, FLOAT32, DEVICE)


if not INTERPRETED:  # as above: a minute and a half

    def test_golden_classifier(data_dir):
        pytest.importorskip('mmpretrain')
        check_classifier(data_dir / 'cls_vmamba.safetensors', 'triton', LOGITS, FLOAT32, DEVICE)


def network(**changes) -> VMamba:
    torch.manual_seed(1)
    return VMamba(**dict(SMALL, **changes)).to(DEVICE)


def images(seed=2, height=20, width=28) -> torch.Tensor:
    """No map that a convolution halves is one pixel wide: there oneDNN's bfloat16 gradient reads unwritten memory."""
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def loss_of(model, image):
    return sum(out.float().square().mean() for out in model(image))


def gradients(model, image, context=contextlib.nullcontext):
    model.zero_grad()
    with context():
        loss = loss_of(model, image)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_runs_are_bit_identical():
    model, image = network(), images()
    first, second = gradients(model, image), gradients(model, image)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_checkpointing_changes_nothing():
    model, image = network(), images()
    plain = gradients(model, image)
    for stage in model.layers:
        stage.with_cp = True
    for name, grad in gradients(model, image).items():
        assert torch.equal(grad, plain[name]), name


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Half precision changes a little, the backend nothing beyond that."""
    image = images()
    ours, reference = network(), network(backend='reference')
    with torch.autocast(DEVICE, dtype):
        outs, expected = ours(image), reference(image)
    for out, other in zip(outs, expected, strict=True):
        assert out.dtype == other.dtype
        assert_close('out', out.float(), other.float(), 3e-2 if dtype == torch.bfloat16 else 5e-3)
    grads = gradients(ours, image, lambda: torch.autocast(DEVICE, dtype))
    assert all(grad.isfinite().all() and grad.dtype == torch.float32 for grad in grads.values())


@pytest.mark.parametrize('arch', ['tiny_s1l8', 'tiny_v0'])
def test_compiled_training_steps_equal_the_eager_ones(arch):
    """Two steps, so that the second one's gradients see what the first has written."""
    changes = dict(arch=arch, d_state=2, depths=(1,), out_indices=(0,)) if INTERPRETED else dict(arch=arch)
    trained = []
    for compiled in (False, True):
        model = network(**changes)
        run = torch.compile(model, fullgraph=True, backend='aot_eager' if INTERPRETED else 'inductor')
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(run if compiled else model, images(step, 12, 12)).backward()
            optimizer.step()
        trained.append(dict(model.named_parameters()))
    for name, eager in trained[0].items():
        assert_close(name, trained[1][name], eager, FLOAT32)
        assert_close(name, trained[1][name].grad, eager.grad, 10 * FLOAT32)


if torch.cuda.is_available():  # what only a GPU has

    def test_a_cuda_graph_replays_a_training_step():
        """Capturing fails at any host synchronisation; the replay must follow new values in the same buffers."""
        model, image = network(), images()
        expected = {seed: gradients(model, images(seed)) for seed in (3, 4)}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss_of(model, image).backward()
        torch.cuda.current_stream().wait_stream(stream)
        model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss_of(model, image).backward()
        for seed, grads in expected.items():
            image.copy_(images(seed))
            for parameter in model.parameters():
                parameter.grad.zero_()
            graph.replay()
            for name, parameter in model.named_parameters():
                assert_close(name, parameter.grad, grads[name], FLOAT32)
