"""Registry nodes of scope `mmvmamba`.

`type='mmvmamba.VMamba'` finds our classes from any toolbox with nothing imported first. Our classes are also put into
mmengine's root nodes, which every toolbox searches last, so that `type='VMamba'` works in mmdet and in mmseg alike
after `custom_imports=dict(imports=['mmvmamba.models'])`.
"""

from mmengine import registry as root

MODELS = root.Registry('model', parent=root.MODELS, scope='mmvmamba', locations=['mmvmamba.models'])
HOOKS = root.Registry('hook', parent=root.HOOKS, scope='mmvmamba', locations=['mmvmamba.engine'])
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
