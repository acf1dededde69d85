"""The kind `pretrain`: next-token prediction."""
