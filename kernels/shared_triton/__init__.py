"""What the `triton` backends of all operators share."""
