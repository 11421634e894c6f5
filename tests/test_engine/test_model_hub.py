"""mmpretrain finds our configs by name."""

import pytest
import yaml

from mmvmamba.checkpoints.published import HOME

pytest.importorskip('mmpretrain')


def test_every_config_is_found_by_name():
    from mmpretrain.apis import ModelHub, list_models

    from mmvmamba.engine import model_hub

    before = set(list_models())
    classifiers = model_hub.register()
    assert model_hub.register() == classifiers
    rows = yaml.safe_load((HOME / 'configs/metafile.yml').read_text())['Models']
    assert set(list_models()) - before == {row['Name'] for row in rows}
    tasks = {row['Name']: {result['Task'] for result in row.get('Results', ())} for row in rows}
    assert classifiers == [name for name, of in tasks.items() if 'Image Classification' in of]
    assert ModelHub.get(rows[0]['Name']).config.filename.endswith(rows[0]['Config'])
