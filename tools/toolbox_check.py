"""Train the toolboxes' own detectors, segmentation and classification heads on a narrow VMamba: three iterations, an
evaluation.

Every model comes from a base config inside the installed mmdet, mmseg or mmpretrain. Backbone, channels, classes and
data are replaced as a user would, sizes are shrunk to what a CPU does in seconds, and tools/train.py runs it.

Examples:
    python tools/make_shapes_dataset.py data/shapes
    python tools/toolbox_check.py
    python tools/toolbox_check.py retinanet segformer --data data/shapes

One line a model; exits with 1 if one fails.
"""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

TRAIN = Path(__file__).resolve().parent / 'train.py'
CHANNELS = (16, 32, 64, 128)
ITERATIONS, BATCH = 3, 2
SHRINK, SMALLEST = 8, 64  # sizes are divided by the one, down to the other


class Model(NamedTuple):
    """A base config of a toolbox, and what it cannot do here."""

    toolbox: str
    config: str
    evaluates: bool = True


MODELS = {
    'retinanet': Model('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py'),
    'fcos': Model('mmdet', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'),
    'atss': Model('mmdet', 'atss/atss_r50_fpn_1x_coco.py'),
    'cascade': Model('mmdet', 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'),
    'htc': Model('mmdet', 'htc/htc-without-semantic_r50_fpn_1x_coco.py'),
    'yolox': Model('mmdet', 'yolox/yolox_s_8xb8-300e_coco.py'),
    'deformable_detr': Model('mmdet', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'),
    'dino': Model('mmdet', 'dino/dino-4scale_r50_8xb2-12e_coco.py'),
    'mask2former': Model('mmdet', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'),
    'queryinst': Model('mmdet', 'queryinst/queryinst_r50_fpn_1x_coco.py', evaluates=False),
    'segformer': Model('mmseg', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'),
    'setr': Model('mmseg', 'setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512.py'),
    'deeplabv3plus': Model('mmseg', 'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py'),
    'mask2former_seg': Model('mmseg', 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'),
    'upernet': Model('mmseg', 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'),
    # Mixup and CutMix with smoothed labels and RandAugment; averaged weights; binary losses, LAMB and repeated
    # augmentation; several labels an image
    'linear': Model('mmpretrain', 'swin_transformer/swin-tiny_16xb64_in1k.py'),
    'averaged': Model('mmpretrain', 'convnext_v2/convnext-v2-atto_32xb32_in1k.py'),
    'binary': Model('mmpretrain', 'resnet/resnet50_8xb256-rsb-a1-600e_in1k.py'),
    'csra': Model('mmpretrain', 'csra/resnet101-csra_1xb16_voc07-448px.py'),
}
CLASSES = dict(mmdet=(80,), mmseg=(150,), mmpretrain=(1000, 20))  # of COCO, ADE20K, ImageNet and Pascal VOC
# at most so many proposals; and any score counts, as three iterations teach none
FEWER = dict(nms_pre=100, max_per_img=50, num_queries=50, num_proposals=50, score_thr=0.0)


def base_config(model: Model) -> Path:
    """Where the installed toolbox has a config; `mmseg::` finds none with some packages of it.

    Raises:
        FileNotFoundError: the toolbox or the config is not there.
    """
    spec = importlib.util.find_spec(model.toolbox)
    if spec is None:
        raise FileNotFoundError(f'{model.toolbox} is not installed')
    package = Path(spec.submodule_search_locations[0])
    places = [package / '.mim/configs' / model.config, package.parent / 'configs' / model.config]  # wheel, checkout
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f'none of {", ".join(map(str, places))} exists')
    return found


def shrunk(node):
    """A copy of nested config entries with smaller images and fewer proposals."""
    if isinstance(node, dict):
        small = {key: shrunk(value) for key, value in node.items()}
        for key in FEWER.keys() & small.keys():
            small[key] = min(small[key], FEWER[key])
        for key in {'scale', 'crop_size'} & small.keys():  # a classifier's, of squares and shorter sides
            if isinstance(small[key], int) and small[key] >= SMALLEST:
                small[key] = max(small[key] // SHRINK, SMALLEST)
        if str(small.get('type')).endswith('Sampler') and isinstance(small.get('num'), int):
            small['num'] = min(small['num'], 32)
        return small
    if isinstance(node, (list, tuple)):
        if len(node) == 2 and all(isinstance(side, int) and side >= SMALLEST for side in node):
            return tuple(max(side // SHRINK, SMALLEST) for side in node)
        return type(node)(shrunk(each) for each in node)
    return node


def classified(node, old: int, new: int):
    """A copy of nested config entries for another number of classes."""
    if isinstance(node, dict):
        changed = {key: classified(value, old, new) for key, value in node.items()}
        for key in ('num_classes', 'num_things_classes'):
            if changed.get(key) == old:
                changed[key] = new
        weights = changed.get('class_weight')
        if isinstance(weights, list) and len(weights) == old + 1:  # the last is of no object
            changed['class_weight'] = [*weights[:new], weights[-1]]
        return changed
    if isinstance(node, (list, tuple)):
        return type(node)(classified(each, old, new) for each in node)
    return node


def on_vmamba(model: dict) -> dict:
    """A model's config with a narrow VMamba, and what its necks and heads must know of it."""
    backbone = dict(type='mmvmamba.VMamba', arch='tiny_s1l8', embed_dims=CHANNELS[0], depths=(1, 1, 1, 1))
    if 'head' in model:  # of classifiers
        head = dict(model['head'], in_channels=CHANNELS[-1])
        # some backbones of the toolbox average their last map themselves, ours leaves it to the neck
        neck = None if head['type'] == 'CSRAClsHead' else dict(type='GlobalAveragePooling')
        return dict(model, backbone=dict(backbone, out_indices=(3,)), neck=model.get('neck') or neck, head=head)
    first = next((model[key] for key in ('neck', 'panoptic_head') if key in model), None)
    maps = 4
    if first is not None:  # of detectors: the last maps, as many as it takes
        maps = len(first['in_channels'])
        first['in_channels'] = list(CHANNELS[-maps:])
    heads = [model.get('decode_head', {}), model.get('auxiliary_head') or []]  # of segmentors: by index
    for head in [heads[0], *(heads[1] if isinstance(heads[1], list) else [heads[1]])]:
        index = head.get('in_index', -1)
        if isinstance(head.get('in_channels'), list):
            head['in_channels'] = list(CHANNELS)
        elif 'in_channels' in head:
            head['in_channels'] = CHANNELS[index]
        if 'c1_in_channels' in head:
            head['c1_in_channels'] = CHANNELS[0]
    if 'pretrained' in model:
        model['pretrained'] = None
    return dict(model, backbone=dict(backbone, out_indices=tuple(range(4 - maps, 4))))


def labels(data: Path, split: str, classes: list[str], several: bool, folder: Path) -> Path:
    """Write what a classifier is to say of the detectors' images: all their classes, or that of the largest shape."""
    annotated = json.loads((data / f'coco/annotations/instances_{split}2017.json').read_text())
    names = {category['id']: category['name'] for category in annotated['categories']}
    found = {image['id']: [] for image in annotated['images']}
    for shape in sorted(annotated['annotations'], key=lambda shape: -shape['area']):
        found[shape['image_id']].append(classes.index(names[shape['category_id']]))
    files = {image['id']: image['file_name'] for image in annotated['images']}
    if several:
        entries = [dict(img_path=files[image], gt_label=sorted(set(shown))) for image, shown in found.items() if shown]
        path, text = folder / f'{split}.json', json.dumps(dict(metainfo=dict(classes=classes), data_list=entries))
    else:
        lines = [f'{files[image]} {shown[0]}' for image, shown in found.items() if shown]
        path, text = folder / f'{split}.txt', '\n'.join(lines)
    path.write_text(text)
    return path.absolute()


def on_labels(loader: dict, split: str, data: Path, classes: list[str], folder: Path) -> dict:
    """A classifier's data loader whose images are the detectors'."""
    several = loader['dataset']['type'] == 'VOC'
    dataset = dict(
        type='MultiLabelDataset' if several else 'CustomDataset',
        data_root='',
        data_prefix=f'{data}/coco/{split}2017',
        ann_file=str(labels(data, split, classes, several, folder)),
        metainfo=dict(classes=classes),
        pipeline=loader['dataset']['pipeline'],
        test_mode=split != 'train',
    )
    if split == 'train':
        dataset['indices'] = ITERATIONS * BATCH
    return dict(loader, dataset=dataset)


def on_shapes(node, toolbox: str, split: str, data: Path, classes: list[str]):
    """A copy of a data loader's config that reads the shapes dataset."""
    if isinstance(node, list):
        return [on_shapes(each, toolbox, split, data, classes) for each in node]
    if not isinstance(node, dict):
        return node
    node = {key: on_shapes(value, toolbox, split, data, classes) for key, value in node.items()}
    if 'data_prefix' not in node:
        return node
    node['metainfo'] = dict(classes=classes)
    if toolbox == 'mmdet':
        node.update(
            data_root=f'{data}/coco/',
            ann_file=f'annotations/instances_{split}2017.json',
            data_prefix=dict(img=f'{split}2017/'),
        )
    else:  # its ADE20K insists on ADE20K's classes
        folder = dict(train='training', val='validation')[split]
        node.update(
            type='BaseSegDataset',
            data_root=f'{data}/ade',
            data_prefix=dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'),
            img_suffix='.jpg',
            seg_map_suffix='.png',
            reduce_zero_label=True,
        )
    if split == 'train':
        node['indices'] = ITERATIONS * BATCH
    return node


def child_of(model: Model, data: Path, folder: Path) -> str:
    """The text of a config that inherits a toolbox's and trains it on VMamba and the shapes dataset.

    Args:
        model: one of `MODELS`.
        data: the shapes dataset.
        folder: takes a classifier's labels.
    """
    path = base_config(model)
    cfg = Config.fromfile(path)
    kind = model.toolbox
    names = json.loads((data / 'classes.json').read_text())['segmentation' if kind == 'mmseg' else 'detection']
    network = shrunk(on_vmamba(cfg.model.to_dict()))
    preprocessor = cfg.get('data_preprocessor', {})  # of classifiers it has an entry of its own
    entries = dict(model=network) if kind != 'mmpretrain' else dict(model=network, data_preprocessor=preprocessor)
    for old in CLASSES[kind]:
        entries = {key: classified(value, old, len(names)) for key, value in entries.items()}
    for split in ('train', 'val'):
        loader = cfg[f'{split}_dataloader'].to_dict()
        if kind == 'mmpretrain':
            loader = on_labels(loader, split, data, names, folder)
        else:
            loader = on_shapes(loader, kind, split, data, names)
        batch = BATCH if split == 'train' else 1
        entries[f'{split}_dataloader'] = dict(shrunk(loader), batch_size=batch, num_workers=0, persistent_workers=False)
    if kind == 'mmdet':
        ann_file = f'{data}/coco/annotations/instances_val2017.json'
        entries['val_evaluator'] = dict(cfg.val_evaluator.to_dict(), ann_file=ann_file)
    elif entries['val_dataloader']['dataset']['type'] == 'MultiLabelDataset':  # Pascal VOC's needs its difficult ones
        entries['val_evaluator'] = dict(type='AveragePrecision')
    loop = cfg.train_cfg.to_dict()
    loop.pop('dynamic_intervals', None)
    length = dict(max_iters=ITERATIONS, val_interval=ITERATIONS) if 'max_iters' in loop else dict(max_epochs=1)
    entries['train_cfg'] = dict(dict(loop, val_interval=1) if 'max_epochs' in loop else loop, **length)
    lines = [f'_base_ = {str(path)!r}']
    lines += [f'{key} = {dict(value, _delete_=True)!r}' for key, value in entries.items()]
    if kind == 'mmpretrain':
        lines += ['param_scheduler = []']  # whose warm-up alone is longer than the training
    if not model.evaluates:
        lines = [line for line in lines if not line.startswith('val_')]
        lines += ['val_dataloader = val_cfg = val_evaluator = None']
    return '\n'.join([*lines, 'default_hooks = dict(logger=dict(interval=1))', ''])


def judge(work_dir: Path, evaluates: bool) -> str:
    """Why a training that ended is not what was asked for; empty if it is."""
    rows = [json.loads(line) for path in work_dir.glob('*/vis_data/scalars.json') for line in path.open()]
    losses = [row['loss'] for row in rows if 'loss' in row]
    if len(losses) < ITERATIONS:
        return f'{len(losses)} iterations, expected {ITERATIONS}'
    if not all(math.isfinite(loss) for loss in losses):
        return f'losses {losses}'
    if evaluates and not any(key.endswith(('mAP', 'mIoU', 'top1')) for row in rows for key in row):
        return 'no metric'
    return ''


def check(name: str, data: Path, work_dir: Path) -> str:
    """Train one model; returns what is wrong, empty if nothing is."""
    model = MODELS[name]
    work_dir.mkdir(parents=True, exist_ok=True)
    config = work_dir / f'{name}.py'
    try:
        config.write_text(child_of(model, data, work_dir))
    except FileNotFoundError as error:
        return str(error)
    log = work_dir / 'output.txt'
    run = work_dir / time.strftime('%H%M%S')
    with log.open('w') as file:
        command = [sys.executable, TRAIN, config, '--work-dir', run]
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        lines = log.read_text().strip().splitlines() or ['no output']
        return f'exit code {code}: {lines[-1]} (all of it: {log})'
    return judge(run, model.evaluates)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', metavar='MODEL', help=f'(default: all) {", ".join(MODELS)}')
    parser.add_argument('--data', type=Path, default=Path('data/shapes'), help='shapes dataset (default: %(default)s)')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/toolbox_check'), help='configs and logs (default: %(default)s)'
    )
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.models if name not in MODELS]
    if unknown:
        parser.error(f'{", ".join(unknown)}: expected some of {", ".join(MODELS)}')
    if not (arguments.data / 'classes.json').is_file():
        parser.error(
            f'--data {arguments.data}: no shapes dataset; python tools/make_shapes_dataset.py {arguments.data}'
        )
    failed = 0
    for name in arguments.models or MODELS:
        start = time.monotonic()
        wrong = check(name, arguments.data.absolute(), arguments.work_dir / name)
        failed += wrong != ''
        did = 'trains and evaluates' if MODELS[name].evaluates else 'trains'
        print(f'{name:16} {time.monotonic() - start:4.0f} s  {f"FAILED: {wrong}" if wrong else did}', flush=True)
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
