"""The fields of a trainer's configuration (trl, transformers) that `train:` may pass on.

`table.json` lists the fields of the installed trl and transformers (written by `python -m pipeline.trainer_fields`).
`classes.py` says whether a field changes the result, is runtime, or is refused. `values.py` has the values a field
takes, `needs.py` the fields it needs to have an effect, `contradictions.py` the fields it contradicts. `schedules.py`,
`optimizers.py` and `generation.py` check the arguments inside a field. Knows nothing of recipes or of any single kind.
Imports trl and transformers only to write the table.
"""

from pipeline.trainer_fields.classes import CONTROLLED, RUNTIME_TRAIN_FIELDS
from pipeline.trainer_fields.fields import TrainFields

__all__ = ["CONTROLLED", "RUNTIME_TRAIN_FIELDS", "TrainFields"]
