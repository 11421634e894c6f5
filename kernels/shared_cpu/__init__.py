"""What the `cpu` backends of all operators share: the scan compiled by numba, its calling, its threads."""
