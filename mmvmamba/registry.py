"""Registry nodes of scope `mmvmamba`.

`type='mmvmamba.VMamba'` finds our classes from any toolbox with nothing imported first. Our classes are also put into
mmengine's root nodes, which every toolbox searches last, so that `type='VMamba'` works in mmdet and in mmseg alike
after `custom_imports=dict(imports=['mmvmamba.models'])`.

The package's name goes into mmengine's list of packages with a `model-index.yml`, so that the inferencers of the
toolboxes find our configs by name with `scope='mmvmamba'`. The configs name their toolbox by `_scope_` where an
inferencer builds from them.
"""

from mmengine import registry as root
from mmengine.config.utils import MODULE2PACKAGE

MODULE2PACKAGE.setdefault('mmvmamba', 'mmvmamba')

MODELS = root.Registry('model', parent=root.MODELS, scope='mmvmamba', locations=['mmvmamba.models'])
DATASETS = root.Registry(
    'dataset',
    parent=root.DATASETS,
    scope='mmvmamba',
    locations=['mmvmamba.datasets'],
)
HOOKS = root.Registry('hook', parent=root.HOOKS, scope='mmvmamba', locations=['mmvmamba.engine'])
OPTIM_WRAPPERS = root.Registry(
    'optimizer wrapper', parent=root.OPTIM_WRAPPERS, scope='mmvmamba', locations=['mmvmamba.engine']
)
OPTIM_WRAPPER_CONSTRUCTORS = root.Registry(
    'optimizer wrapper constructor',
    parent=root.OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmvmamba',
    locations=['mmvmamba.engine'],
)
FUNCTIONS = root.Registry('function', parent=root.FUNCTIONS, scope='mmvmamba', locations=['mmvmamba.engine'])


def register_model(cls: type) -> type:
    """Class decorator: register in scope `mmvmamba` and in mmengine's root."""
    MODELS.register_module(module=cls)
    root.MODELS.register_module(module=cls)
    return cls


def is_type(type_, name: str, registry: root.Registry) -> bool:
    """Whether a config's `type` means what `registry` calls `name`.

    Args:
        type_: a name, a name with scopes (`'mmengine.Pretrained'`), the path of a class, a class, or None.
        name: as registered, without a scope.
        registry: where both are looked up if they are not the same word.
    """
    if isinstance(type_, str):
        if type_.rpartition('.')[2] == name:
            return True
        if '.' not in type_:
            return False
    return type_ is not None and (registry.get(type_) if isinstance(type_, str) else type_) is registry.get(name)
