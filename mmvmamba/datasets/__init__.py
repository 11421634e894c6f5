"""Datasets of the toolboxes that check what they load, each imported when it is asked for: one toolbox is enough."""

from mmvmamba.registry import import_on_request

__getattr__ = import_on_request(
    __name__,
    {
        'CheckedADE20KDataset': ('segmentation', 'mmseg'),
        'CheckedCocoDataset': ('detection', 'mmdet'),
        'CheckedCustomDataset': ('classification', 'mmpretrain'),
        'CheckedImageNet': ('classification', 'mmpretrain'),
        'CheckedSegDataset': ('segmentation', 'mmseg'),
        'JumpCPDataset': ('multichannel', 'mmengine'),
        'LoadPlanes': ('planes', 'mmengine'),
        'MultiChannelFolder': ('multichannel', 'mmengine'),
        'PadAndRandomCrop': ('planes', 'mmengine'),
        'RandomDefocus': ('planes', 'mmengine'),
        'RandomFlipOrRotate': ('planes', 'mmengine'),
        'RandomHoles': ('planes', 'mmengine'),
    },
)
