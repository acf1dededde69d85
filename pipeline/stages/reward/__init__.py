"""The kind `reward`: a reward model of preference pairs."""
