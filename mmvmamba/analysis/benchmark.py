"""Benchmarks: each function measures one question in one run and returns rows for a table."""

import functools
import itertools
import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from mmvmamba.models import ChannelVim, FastChannelVim, FastVim, VMamba
from mmvmamba.models.layers import ss2d as ss2d_layer

from . import drawing
from .memory import peak_memory
from .timing import Times, failures, interleaved


def swin_t() -> nn.Module:
    """mmdet's Swin-T, the yardstick of the field."""
    from mmdet.models import SwinTransformer

    model = SwinTransformer(embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
    model.train(False)  # its train() returns nothing
    return model


def resnet50() -> nn.Module:
    """mmdet's ResNet-50."""
    from mmdet.models import ResNet

    model = ResNet(50)
    model.train(False)
    return model


def convnext_t() -> nn.Module:
    """mmpretrain's ConvNeXt-T, with the maps of all stages."""
    from mmpretrain.models import ConvNeXt

    model = ConvNeXt('tiny', out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
    model.train(False)
    return model


def _scan_is_a_copy(model: nn.Module, image: torch.Tensor) -> None:
    """Run a VMamba whose scans only copy: what everything else of the network takes."""

    def copy(x, *arguments, **options):
        return F.layer_norm(x.clone(), (x.shape[-1],), *arguments[5:7])

    original, ss2d_layer.ss2d_norm = ss2d_layer.ss2d_norm, copy
    try:
        model(image)
    finally:
        ss2d_layer.ss2d_norm = original


def _ratio_rows(question: str, times: dict[str, Times], base: str) -> list[dict]:
    return [
        {
            'question': question,
            'candidate': label,
            'p20 s': f'{t.p20:.3f}',
            'p50 s': f'{t.p50:.3f}',
            'p80 s': f'{t.p80:.3f}',
            f'time of {base} / this': f'{times[base].p50 / t.p50:.2f}',
        }
        for label, t in times.items()
    ]


def cpu(repeat: int, loop: bool, loop_training: bool) -> list[dict]:
    """VMamba-T on the CPU, float32, batch 1, evaluation: beside Swin-T, without its scans, and with a loop for a scan.

    Args:
        repeat: measured rounds.
        loop: also time the reference's loop over positions, once, at 800 x 1280.
        loop_training: also time a training step with it, once, at 512 x 512 (minutes).

    Returns:
        A row per candidate; ratios are to the `cpu` backend of the same run.
    """
    ours = 'VMamba-T'
    model, swin = VMamba('tiny_s1l8', backend='cpu').eval(), swin_t()
    slow = VMamba('tiny_s1l8', backend='reference').eval()
    rows = []
    with torch.no_grad():
        for height, width in ((512, 512), (800, 1280)):
            image = torch.randn(1, 3, height, width)
            candidates = {
                ours: functools.partial(model, image),
                'VMamba-T, scans replaced by copies': functools.partial(_scan_is_a_copy, model, image),
                'Swin-T': functools.partial(swin, image),
            }
            times = interleaved(candidates, repeat)
            if loop and height == 800:
                times |= _once('VMamba-T, scan a loop in PyTorch', functools.partial(slow, image))
            rows += _ratio_rows(f'{height} x {width}, evaluation', times, ours)
    image = torch.randn(1, 3, 512, 512)

    def step(network):
        sum(out.mean() for out in network.train()(image)).backward()

    times = interleaved({ours: lambda: step(model)}, min(repeat, 2))
    if loop_training:
        times |= _once('VMamba-T, scan a loop in PyTorch', lambda: step(slow))
    return rows + _ratio_rows('512 x 512, training step', times, ours)


def _once(label, function) -> dict[str, Times]:
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    return {label: Times(seconds, seconds, seconds)}


def scaling(repeat: int, sides: list[int], plot: Path) -> list[dict]:
    """Time and peak memory of backbones on square images, batch 1, evaluation; saves a plot.

    Args:
        repeat: measured rounds.
        sides: of the images, in pixels.
        plot: picture to write.

    Returns:
        A row per side and backbone.
    """
    backbones = {'VMamba-T': VMamba('tiny_s1l8').eval(), 'Swin-T': swin_t(), 'ResNet-50': resnet50()}
    rows, curves = [], {name: ([], []) for name in backbones}
    with torch.no_grad():
        for side in sides:
            image = torch.randn(1, 3, side, side)
            candidates = {name: functools.partial(model, image) for name, model in backbones.items()}
            times = interleaved(candidates, repeat)
            for name, candidate in candidates.items():
                memory = peak_memory(candidate)
                seconds = times[name].p50
                curves[name][0].append(seconds)
                curves[name][1].append(memory / 2**20)
                rows.append(
                    {
                        'side': side,
                        'backbone': name,
                        'p50 s': f'{seconds:.3f}',
                        'us per pixel': f'{seconds / side**2 * 1e6:.3f}',
                        'peak MiB': f'{memory / 2**20:.0f}',
                    }
                )
    drawing.scaling(sides, curves, plot, f'CPU, {torch.get_num_threads()} threads, batch 1, float32, evaluation')
    return rows


def model(
    configs: list[str],
    sides: list[int],
    batch: int,
    shapes: list[tuple[int, int, int]] | None,
    train: bool,
    amp: bool,
    every: bool,
    repeat: int,
    plot: Path,
) -> list[dict]:
    """Throughput, latency and peak memory of configs' backbones, beside Swin-T, ResNet-50 and ConvNeXt-T.

    Args:
        configs: config files.
        sides: of the square images, in pixels.
        batch: images at a time.
        shapes: batch, height and width of images, instead of `sides` and `batch`; or None.
        train: time a forward and a backward pass in training mode instead of inference.
        amp: autocast to bfloat16.
        every: time inference and training, each without and with autocast.
        repeat: measured rounds.
        plot: picture over `sides` to write, where one mode of them is all that is asked for.

    Returns:
        A row per shape, mode and backbone; one that cannot run says why.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    backbones = _with_yardsticks(configs)
    modes = list(itertools.product((False, True), repeat=2)) if every else [(train, amp)]
    rows = []
    for shape, (train, amp) in itertools.product(shapes or [(batch, side, side) for side in sides], modes):
        rows += _model_rows(backbones, shape, train, amp, repeat, device)
    if shapes is None and not every:
        curves = {name: ([], []) for name, backbone in backbones.items() if not isinstance(backbone, str)}
        for row in rows:
            if row['backbone'] in curves:
                values = row['images/s'], row['peak MiB']
                speed, memory = (float(value) if value else math.nan for value in values)
                curves[row['backbone']][0].append(1 / speed if speed else math.nan)
                curves[row['backbone']][1].append(memory)
        title = f'{device}, batch {batch}, {rows[0]["mode"]}, {rows[0]["dtype"]}'
        drawing.scaling(sides, curves, plot, title)
    return rows


def _with_yardsticks(configs: list[str]) -> dict[str, nn.Module | str]:
    """Backbones of configs, and those that they are compared with or what these lack."""
    backbones: dict[str, nn.Module | str] = {Path(path).stem: _backbone_of(path) for path in configs}
    for name, build in {'Swin-T': swin_t, 'ResNet-50': resnet50, 'ConvNeXt-T': convnext_t}.items():
        try:
            backbones[name] = build()
        except ImportError as error:
            backbones[name] = f'{error.name} is not installed'
    return backbones


def _model_rows(backbones: dict, shape: tuple[int, int, int], train: bool, amp: bool, repeat: int, device: str):
    """A row per backbone, of one shape of images in one mode."""
    image = torch.randn(shape[0], 3, *shape[1:], device=device)
    about = {
        'images': ' x '.join(map(str, shape)),
        'mode': 'training' if train else 'inference',
        'dtype': 'bf16' if amp else 'fp32',
    }
    candidates = {
        name: functools.partial(_run, backbone.to(device), image, train, amp)
        for name, backbone in backbones.items()
        if not isinstance(backbone, str)
    }
    found = measured(candidates, repeat, device)
    for name, backbone in backbones.items():
        t, memory = found.get(name, (backbone, 0))
        keys = ('images/s', 'p20 ms', 'p50 ms', 'p80 ms', 'peak MiB')
        if isinstance(t, str):
            yield {**about, 'backbone': name, **dict.fromkeys(keys, ''), 'note': t}
            continue
        values = [f'{shape[0] / t.p50:.2f}', *(f'{value * 1e3:.1f}' for value in (t.p20, t.p50, t.p80))]
        figures = dict(zip(keys, [*values, f'{memory / 2**20:.0f}'], strict=True))
        yield {**about, 'backbone': name, **figures, 'note': ''}


def measured(candidates, repeat: int, device: str) -> dict[str, tuple[Times | str, int]]:
    """Times and peak memory of functions; of one that fails, what it said."""
    memory, failed = {}, {}
    for name, candidate in candidates.items():
        try:
            candidate()
            memory[name] = peak_memory(candidate)
        except failures() as error:  # too little memory, or the backend asked for cannot run
            failed[name] = f'{type(error).__name__}: {error}'.splitlines()[0]
    times = interleaved({name: candidates[name] for name in memory}, repeat, device)
    return {name: (times[name], memory[name]) if name in times else (failed[name], 0) for name in candidates}


def _backbone_of(path: str) -> nn.Module:
    from mmengine.registry import MODELS, init_default_scope

    from mmvmamba.engine import launch

    cfg = launch.load_config(path)
    init_default_scope(launch.task_of(cfg))
    return MODELS.build(cfg.model.backbone)


def _run(backbone, image, train, amp):
    """One inference, or one forward and backward pass."""
    backbone.train(train)
    with torch.set_grad_enabled(train), torch.autocast(image.device.type, torch.bfloat16, enabled=amp):
        outs = backbone(image)
    if train:
        sum(out.float().mean() for out in outs).backward()


def profile(height: int, width: int, repeat: int) -> list[dict]:
    """Where the time of VMamba-T and FastVim-T goes on the CPU, batch 1, evaluation: shares of PyTorch's operators.

    Args:
        height, width: of the image.
        repeat: profiled runs, after one that is not.

    Returns:
        A row per operator that takes at least one per cent.
    """
    rows = []
    image = torch.randn(1, 3, height, width)
    for name, model in {'VMamba-T': VMamba('tiny_s1l8'), 'FastVim-T': FastVim('tiny', out_indices=(23,))}.items():
        model.eval()
        with torch.no_grad():
            model(image)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                for _ in range(repeat):
                    model(image)
        events = profiler.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        for event in sorted(events, key=lambda event: -event.self_cpu_time_total):
            share = event.self_cpu_time_total / total
            if share >= 0.01:
                milliseconds = event.self_cpu_time_total / 1e3 / repeat
                row = {'backbone': name, 'operator': event.key, 'ms': f'{milliseconds:.0f}', 'share': f'{share:.1%}'}
                rows.append(row)
    return rows


def pooled(
    repeat: int,
    sides: list[int],
    backend: str,
    archs: list[str],
    amp: bool,
    plot: Path,
    channels: list[int] | None = None,
    alone: bool = False,
) -> list[dict]:
    """FastVims beside the same networks scanning every token (`pool=None`), batch 1, evaluation; saves a plot.

    Args:
        repeat: measured rounds.
        sides: of the square images, in pixels.
        backend: of the scans; beside it the pooled network on the torch backend.
        archs: of FastVim.
        amp: autocast to bfloat16.
        plot: picture to write.
        channels: of images, for FastChannelVim beside ChannelVim; None for FastVim.
        alone: the pooled network only.

    Returns:
        A row per arch, number of channels and side; a network that cannot run says why.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    rows, ratios = [], {}
    for arch, count in itertools.product(archs, channels or [None]):
        networks = {name: one.eval().to(device) for name, one in _pooled_networks(arch, count, backend, alone).items()}
        label = {'FastVim': arch} if count is None else {'FastChannelVim': arch, 'channels': count}
        curve = ratios.setdefault(', '.join(map(str, label.values())), [])
        for side in sides:
            image = torch.randn(1, count or 3, side, side, device=device)
            candidates = {
                name: functools.partial(_run, network, image, False, amp) for name, network in networks.items()
            }
            found = measured(candidates, repeat, device)
            seconds = {name: t.p50 if isinstance(t, Times) else math.nan for name, (t, _) in found.items()}
            row = label | {'side': side} | {f'{name} s': f'{value:.4f}' for name, value in seconds.items()}
            if count is not None:
                row |= {f'{name} MiB': f'{memory / 2**20:.0f}' for name, (_, memory) in found.items()}
            whole = next((name for name in seconds if name in ('pool=None', 'ChannelVim')), None)
            if whole:
                curve.append(seconds[whole] / seconds['pooled'])
                row[f'{whole} / pooled'] = f'{curve[-1]:.2f}'
            rows.append(row | {'note': '; '.join(f'{n}: {t}' for n, (t, _) in found.items() if isinstance(t, str))})
    if not alone:
        drawing.speedups(
            sides,
            ratios,
            plot,
            f'{"FastVim" if channels is None else "FastChannelVim"}, {backend} backend, {device}, batch 1',
        )
    return rows


def _pooled_networks(arch: str, channels: int | None, backend: str, alone: bool) -> dict[str, nn.Module]:
    """The pooled network of an arch by name, and those beside it."""
    if channels is None:
        of_tokens = {'pool=None': FastVim(arch, pool=None, backend=backend)}
        kind = functools.partial(FastVim, arch)
    else:
        of_tokens = {'ChannelVim': ChannelVim(arch, in_channels=channels, backend=backend)}
        kind = functools.partial(FastChannelVim, arch, in_channels=channels)
    networks = {'pooled': kind(backend=backend)}
    return networks if alone else networks | of_tokens | {'pooled, torch backend': kind(backend='torch')}
