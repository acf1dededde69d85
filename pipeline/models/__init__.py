"""Models: loading and saving, adapters, the chat format, sampling and log-probabilities."""

import logging

# On processors with AVX-512 bf16 bitsandbytes warns at every start that a kernel from the hub is missing. Nothing here
# uses that kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
