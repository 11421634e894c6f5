"""Three lists that must agree: the names of a config, the categories of a file, the classes of the heads."""

import difflib
from collections import Counter
from collections.abc import Iterator

from .report import shorten

_NO_CLASSIFIERS = ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg', 'pretrained')
# heads of another vocabulary: object or not, stuff segmentation beside instances, identities
_OTHER_CLASSES = ('rpn_head', 'semantic_head', 'reid')
_ANY_CLASSES = ('language_model', 'text_encoder', 'tracker')  # of models that do not learn the names of a dataset
_COMPARED = 50  # names for which the nearest are looked for


def classes_fault(classes, repeats: bool = False) -> str | None:
    """What is wrong with the names of a config by themselves.

    Args:
        classes: `metainfo['classes']`.
        repeats: whether one name may stand for several classes: two of ImageNet's are called crane.
    """
    if isinstance(classes, str):
        return f'metainfo.classes is the text {classes!r}; expected a tuple of names, such as ({classes!r},)'
    if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
        return f'metainfo.classes is {classes!r}; expected a tuple of names'
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if not classes:
        return 'metainfo.classes is empty; expected a tuple of names'
    return f'metainfo.classes repeats {twice}' if twice and not repeats else None


def against_file(classes: list[str], categories: list[str]) -> Iterator[tuple[str, str]]:
    """Compare the names of a config with the categories of a file; yields `(level, text)`.

    The toolboxes hand labels out in the file's order to whatever names match, so a name that is missing shifts all
    later labels, and another order permutes them; mmdet's metric does the same with its own file.
    """
    both = f'The config has {_listed(classes)}; the file has {_listed(categories)}'
    named, there = set(classes), set(categories)  # V3Det has 13,204
    missing = [name for name in classes if name not in there]
    if missing:
        yield 'error', f'no category is called {shorten(map(repr, missing), 10)}{_hint(missing, categories)}. {both}'
        return
    found = [name for name in categories if name in named]
    if found != list(classes):
        moved = [f'{new!r} would be trained as {old!r}' for new, old in zip(found, classes, strict=False) if new != old]
        yield (
            'error',
            f"labels are handed out in the file's order, and it differs from the config's: {', '.join(moved[:3])}. "
            f"Write the config's names in the file's order, or sort the file's categories. {both}",
        )
    extra = [name for name in categories if name not in named]
    if extra:
        yield 'note', f'{len(extra)} categories that the config does not name are left out: {_quoted(extra)}'


def against_folders(classes: list[str], folders: list[str]) -> Iterator[tuple[str, str]]:
    """Compare the names of a config with class folders; yields `(level, text)`.

    mmpretrain hands labels out in the folders' alphabetical order and takes the config's names in theirs, so other
    orders give classes each other's names. Folders may be called otherwise, as ImageNet's are.
    """
    both = f'The config has {_listed(classes)}; the folders are {_listed(folders)}'
    named, there = set(classes), set(folders)
    if len(classes) != len(folders):
        parts = [('without a folder', [n for n in classes if n not in there])]
        parts += [('without a name', [n for n in folders if n not in named])]
        said = '; '.join(f'{what}: {shorten(map(repr, those), 10)}' for what, those in parts if those)
        yield 'error', f'{len(folders)} folders for {len(classes)} names; {said}. {both}'
        return
    common = [
        (new, old) for new, old in zip(classes, folders, strict=True) if new != old and {new, old} & (named & there)
    ]
    if common:
        moved = ', '.join(f'images of {old!r} would be called {new!r}' for new, old in common[:3])
        yield (
            'error',
            f"labels are handed out in the folders' alphabetical order, and the config's differs: {moved}. Write the "
            f"config's names in the folders' order. {both}",
        )


def against_heads(model: dict, metainfo: dict) -> Iterator[tuple[str, str]]:
    """Compare names with every `num_classes` of a model; yields `(key, text)`.

    Args:
        model: its config.
        metainfo: of the dataset; its `classes`, and of panoptic ones `thing_classes` and `stuff_classes`.
    """
    classes = metainfo['classes']
    things = metainfo.get('thing_classes')
    allowed = {len(classes)} | ({len(things)} if things else set())
    for key, head in heads(model):
        count = head.get('num_classes')
        if count is not None and count not in allowed and not _is_binary(head, classes):
            yield f'{key}.num_classes', f'is {count}, but the dataset names {shorten_names(classes)}'
        parts = [head.get(f'num_{kind}_classes') for kind in ('things', 'stuff')]
        if None in parts:
            continue
        expected = [len(things), len(classes) - len(things)] if things else [len(classes), 0]
        if parts != expected and (things or sum(parts) != len(classes)):
            yield (
                f'{key}.num_things_classes',
                f'and num_stuff_classes are {parts[0]} and {parts[1]}; expected {expected[0]} and {expected[1]}, as '
                f'the dataset names {shorten_names(classes)}',
            )


def other_folders(training: list[str], folders: list[str]) -> Iterator[tuple[str, str]]:
    """Compare the class folders of an evaluation with those of training; yields `(level, text)`."""
    lacks = [name for name in training if name not in folders]
    more = [name for name in folders if name not in training]
    said = [f'{what} {shorten(map(repr, those), 10)}' for what, those in (('lacks', lacks), ('adds', more)) if those]
    yield (
        'error',
        f'its class folders are not those of training: {" and ".join(said)}. Labels are numbers of folders in '
        f'alphabetical order, so the later ones shift; an empty folder keeps its number',
    )


def against_checkpoint(classes: list[str], learnt: list[str]) -> Iterator[tuple[str, str]]:
    """Compare the names of a data set with those that a checkpoint learnt; yields `(level, text)`.

    Labels are numbers, so names in another order give classes each other's results. Other numbers of names do not fit
    the heads, which is said elsewhere.
    """
    if len(classes) != len(learnt):
        return
    moved = [f'{old!r} is {new!r} here' for new, old in zip(classes, learnt, strict=True) if new != old]
    if moved and set(classes) == set(learnt):
        yield 'error', f'the checkpoint learnt the same classes in another order: {", ".join(moved[:3])}'
    elif moved:
        yield 'warning', f'the checkpoint learnt {len(moved)} classes under other names: {", ".join(moved[:3])}'


def against_preprocessor(model: dict, classes: list[str]) -> Iterator[tuple[str, str]]:
    """Compare names with the number of classes by which mmpretrain's batch augmentation writes labels."""
    count = (model.get('data_preprocessor') or {}).get('num_classes')
    if count is not None and count != len(classes) and any(head.get('num_classes') for _, head in heads(model)):
        yield 'model.data_preprocessor.num_classes', f'is {count}, but the dataset names {shorten_names(classes)}'


def one_class(model: dict, classes: list[str]) -> Iterator[str]:
    """Yield the keys of segmentation heads that a single class teaches nothing."""
    for key, head in heads(model) if len(classes) == 1 else ():
        losses = head.get('loss_decode') or {}
        losses = losses if isinstance(losses, (list, tuple)) else [losses]
        learns = any(loss.get('use_sigmoid') for loss in losses) or 'loss_cls' in head
        if key.rpartition('.')[2].partition('[')[0] in ('decode_head', 'auxiliary_head') and not learns:
            yield key


def ignored_label(model: dict) -> int:
    """The label of pixels that a segmentor's loss leaves out."""
    head = model.get('decode_head') or {}
    head = head[-1] if isinstance(head, (list, tuple)) else head
    return head.get('ignore_index', 255)


def learns_names(model: dict) -> bool:
    """Whether a model's labels are the names of the data set it is trained on; not so with an open vocabulary."""
    return not any(word in model for word in _ANY_CLASSES)


def heads(model: dict, key: str = 'model') -> Iterator[tuple[str, dict]]:
    """Yield `(key, config)` of every part that says how many of the dataset's classes it tells apart."""
    if not learns_names(model):
        return
    counts = any(f'num_{kind}classes' in model for kind in ('', 'things_', 'stuff_'))
    # STDC's head of edges, and mask heads that have one mask for all classes
    if counts and 'boundary_threshold' not in model and not model.get('class_agnostic'):
        yield key, model
    for name, value in model.items():
        if name in _NO_CLASSIFIERS or any(word in name for word in _OTHER_CLASSES):
            continue
        several = isinstance(value, (list, tuple))
        for i, part in enumerate(value if several else [value]):
            if isinstance(part, dict):
                yield from heads(part, f'{key}.{name}[{i}]' if several else f'{key}.{name}')


def _is_binary(head: dict, classes: list[str]) -> bool:
    """Whether a head of one sigmoid tells two classes apart."""
    losses = head.get('loss_decode') or {}
    losses = losses if isinstance(losses, (list, tuple)) else [losses]
    return len(classes) == 2 and head['num_classes'] == 1 and any(loss.get('use_sigmoid') for loss in losses)


def _hint(missing: list[str], categories: list[str]) -> str:
    folded = {_folded(name): name for name in categories}
    same = [folded[_folded(name)] for name in missing if _folded(name) in folded]
    if same:
        return f' (but {shorten(map(repr, same), 10)}: case, spaces or hyphens differ)'
    near = dict.fromkeys(one for name in missing[:_COMPARED] for one in difflib.get_close_matches(name, categories, 1))
    return f' (but {shorten(map(repr, near))})' if near else ''


def _folded(name: str) -> str:
    return ''.join(letter for letter in name.casefold() if letter.isalnum())


def shorten_names(names: list[str]) -> str:
    """How many there are, and the first."""
    return f'{len(names)}: {shorten(map(repr, names), 10)}'


def _quoted(names: list[str]) -> str:
    return ', '.join(map(repr, names))


def _listed(names: list[str]) -> str:
    return f'{len(names)}: {_quoted(names) or "none"}'
