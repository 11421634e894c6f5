"""Our configs by name in mmpretrain, whose inferencers have a hub of their own and take no scope."""

from mmvmamba.checkpoints import CheckpointError
from mmvmamba.checkpoints.published import HOME


def register() -> list[str]:
    """Let `mmpretrain.get_model` and `ImageClassificationInferencer` find our configs by name.

    Weights are the published ones, loaded through `mmvmamba.checkpoints`. A second call changes nothing.

    Returns:
        The names of the classifiers.

    Raises:
        ImportError: no mmpretrain.
        CheckpointError: an installation without the configs' metafile.
    """
    from mmpretrain.apis import ModelHub, list_models
    from modelindex.load_model_index import load

    import mmvmamba.models  # noqa: F401  what the configs are built of

    if HOME is None:
        raise CheckpointError('this installation has no configs/metafile.yml, so there are no names to register')
    index = str(HOME / 'model-index.yml')
    found = load(index)
    found.build_models_with_collections()
    names = [model.name for model in found.models]
    list_models()  # mmpretrain's own, which it registers at the first question
    if not any(ModelHub.has(name.lower()) for name in names):
        ModelHub.register_model_index(index, config_prefix=HOME)
    tasks = {model.name: {result.task for result in model.results or ()} for model in found.models}
    return [name for name in names if 'Image Classification' in tasks[name]]
