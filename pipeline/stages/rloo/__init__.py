"""The kind `rloo`: REINFORCE leave-one-out."""
