"""Registry nodes of scope `mmvmamba`.

`type='mmvmamba.VMamba'` finds our classes from any toolbox with nothing imported first, whatever the kind. A class that
needs a toolbox is imported when its name is asked for, so one toolbox is enough for what needs that one. Our classes
are also put into mmengine's root nodes, which every toolbox searches last, so that `type='VMamba'` works in mmdet and
in mmseg alike after `custom_imports=dict(imports=['mmvmamba.models'])`.

The package's name goes into mmengine's list of packages with a `model-index.yml`, so that the inferencers of the
toolboxes find our configs by name with `scope='mmvmamba'`. The configs name their toolbox by `_scope_` where an
inferencer builds from them.
"""

from importlib import import_module

from mmengine import registry as root
from mmengine.config.utils import MODULE2PACKAGE

from .torchvision_stubs import define_missing_operators

define_missing_operators()  # before a toolbox imports torchvision
MODULE2PACKAGE.setdefault('mmvmamba', 'mmvmamba')


class _Registry(root.Registry):
    """A node that also finds what its packages import only when asked for it by name (PEP 562)."""

    def __init__(self, name: str, parent: root.Registry, package: str):
        super().__init__(name, parent=parent, scope='mmvmamba', locations=[package])
        self._package = package

    def get(self, key: str) -> type | None:
        """The class of a name, imported if it has not been.

        Raises:
            ImportError: the class is ours and its toolbox cannot be imported.
        """
        getattr(import_module(self._package), str(key).rpartition('.')[2], None)
        return super().get(key)


MODELS = _Registry('model', root.MODELS, 'mmvmamba.models')
DATASETS = _Registry('dataset', root.DATASETS, 'mmvmamba.datasets')
TRANSFORMS = _Registry('transform', root.TRANSFORMS, 'mmvmamba.datasets')
PARAM_SCHEDULERS = _Registry('parameter scheduler', root.PARAM_SCHEDULERS, 'mmvmamba.engine')
HOOKS = _Registry('hook', root.HOOKS, 'mmvmamba.engine')
OPTIM_WRAPPERS = _Registry('optimizer wrapper', root.OPTIM_WRAPPERS, 'mmvmamba.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _Registry(
    'optimizer wrapper constructor', root.OPTIM_WRAPPER_CONSTRUCTORS, 'mmvmamba.engine'
)
FUNCTIONS = _Registry('function', root.FUNCTIONS, 'mmvmamba.engine')


def import_on_request(package: str, homes: dict[str, tuple[str, str]]):
    """A module's `__getattr__` (PEP 562) for classes that need a toolbox.

    Args:
        package: its `__name__`.
        homes: class name to the module below `package` that defines it, and the toolbox which that module imports.
    """

    def load(name: str):
        if name not in homes:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        module, toolbox = homes[name]
        try:
            return getattr(import_module(f'{package}.{module}'), name)
        except ImportError as error:
            raise ImportError(f'{package}.{name} needs {toolbox}, which cannot be imported: {error}') from error

    return load


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
    found = registry.get(type_) if isinstance(type_, str) else type_
    return found is not None and found is registry.get(name)
