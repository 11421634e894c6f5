# Mask R-CNN, VMamba-B, with gradients and optimizer state in shards: DeepSpeed's ZeRO-2 through mmengine. Needs
# `pip install deepspeed==0.18.2`; mmengine does not know newer ones. In float32: DeepSpeed would make all parameters
# half precision, which mmcv's non-maximum suppression does not take.
# Checkpoints are folders: WORK_DIR/zero_to_fp32.py, which DeepSpeed leaves there, makes one file of each.
# tools/dist_train.sh configs/distributed/maskrcnn_vmamba_b_deepspeed.py 8
_base_ = '../maskrcnn_vmamba_b.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    # what else would be optim_wrapper.clip_grad is gradient_clipping here
    zero_optimization=dict(stage=2, overlap_comm=True, contiguous_gradients=True),
)
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
