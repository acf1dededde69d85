"""The fields of a trainer's own configuration that `train:` may pass on.

`table.json` has the fields of the installed trl and transformers (`python -m pipeline.trainer_fields` makes it),
`classes.py` says of each whether it changes the result, is runtime, or is refused; `values.py` which values it takes,
`needs.py` beside what it has an effect, `contradictions.py` beside what it is wrong. What stands inside a field has
`schedules.py`, `optimizers.py` and `generation.py`. Knows nothing of recipes or of any single kind. Imports neither
trl nor transformers, except to make the table.
"""

from pipeline.trainer_fields.classes import CONTROLLED, RUNTIME_TRAIN_FIELDS
from pipeline.trainer_fields.fields import TrainFields

__all__ = ["CONTROLLED", "RUNTIME_TRAIN_FIELDS", "TrainFields"]
