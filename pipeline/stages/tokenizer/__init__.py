"""The kind `tokenizer`: byte-level BPE."""
