"""Between text and token ids: chat templates, control tokens, what tokenizers must agree on."""
