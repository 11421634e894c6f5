# Mask R-CNN as ViTDet builds it: a simple pyramid on one map, and heads with layer normalisation.
# The backbone and neck.in_channels are left to the config that inherits.
_base_ = './mask_rcnn_fpn.py'

norm_cfg = dict(type='LN2d')
model = dict(
    neck=dict(_delete_=True, type='SimpleFPN', out_channels=256, num_outs=5),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
