"""Models: loading and saving, adapters, the chat format, sampling and log-probabilities."""

import logging

# It warns at every start, on processors with AVX-512 bf16, that a kernel of the hub is missing; nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
