# Mask R-CNN, VMamba-B, with parameters, gradients and optimizer state in shards: PyTorch's FSDP through mmengine.
# tools/dist_train.sh configs/distributed/maskrcnn_vmamba_b_fsdp.py 8
_base_ = '../maskrcnn_vmamba_b.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        auto_wrap_policy='mmvmamba.wrap_blocks',
        use_orig_params=True,  # weight decay and learning rates by name
    ),
    state_dict_cfg='full',  # checkpoints are the usual files, whatever the number of processes
)
