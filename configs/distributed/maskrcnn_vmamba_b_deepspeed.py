# Mask R-CNN, VMamba-B, with optimizer state and gradients in shards: DeepSpeed's ZeRO-2 through mmengine. Needs
# `pip install deepspeed`. Not run by us.
# tools/dist_train.sh configs/distributed/maskrcnn_vmamba_b_deepspeed.py 8
_base_ = '../maskrcnn_vmamba_b.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    bf16=dict(enabled=True),
    inputs_to_half=['inputs'],
    zero_optimization=dict(stage=2, overlap_comm=True, contiguous_gradients=True),
)
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
