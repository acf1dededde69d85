"""`train:` of a kind: its own fields and those passed on to its trainer, checked without importing the trainer."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from pipeline.errors import Problem, nearest
from pipeline.plain_data import JsonObject
from pipeline.stage import Runtime, StageConfig
from pipeline.trainer_fields.classes import RUNTIME_TRAIN_FIELDS, refusal
from pipeline.trainer_fields.table import FieldInfo, GivenFields, table
from pipeline.trainer_fields.values import value_problem, words_of


class TrainFields(StageConfig):
    """Base class of a kind's `train:`; a key that is not a field of the class must be a field of the trainer.

    Attributes:
        trainer: name of the trainer's config class, one of those in the table.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    trainer: ClassVar[str] = "TrainingArguments"

    @classmethod
    def allowed(cls) -> dict[str, FieldInfo]:
        """Return the trainer's fields that may be passed on."""
        own = cls.model_fields
        return {k: v for k, v in table()[cls.trainer].items() if k not in own and refusal(cls.trainer, k) is None}

    @classmethod
    def problems_in(cls, given: GivenFields) -> dict[str, Problem]:
        """Return the problems of the keys in ``given`` that are not fields of the class, by key."""
        bad = {}
        for key, value in given.items():
            if key not in cls.model_fields:
                problem = cls._problem(key, value)
                if problem is not None:
                    bad[key] = problem
        return bad

    @classmethod
    def _problem(cls, key: str, value: object) -> Problem | None:
        instead = refusal(cls.trainer, key)
        if instead is not None and key in table()[cls.trainer]:
            return Problem(f"`{key}` is decided by trueup", remedy=instead)
        allowed = cls.allowed()
        if key not in allowed:
            words = [*cls.model_fields, *allowed]
            return Problem(
                f"unknown key `{key}`", f"a word of this stage or a field of {cls.trainer}", nearest(key, words)
            )
        return value_problem(key, value, allowed[key])

    @model_validator(mode="after")
    def _check_passthrough(self) -> Self:
        extra = self.__pydantic_extra__ or {}
        bad = self.problems_in(extra)
        if bad:
            raise ValidationError.from_exception_data(
                type(self).__name__,
                [
                    InitErrorDetails(type=_custom_error(problem), loc=(key,), input=extra[key])
                    for key, problem in bad.items()
                ],
            )
        for key, value in extra.items():  # 1 and 1.0 must give the same fingerprint
            kind = self.allowed()[key]["type"]
            if kind in {"int", "float"} and value is not None:
                extra[key] = int(value) if kind == "int" else float(value)
        return self

    def passthrough(self) -> JsonObject:
        """Return the fields that are passed on to the trainer, with their values."""
        return dict(self.__pydantic_extra__ or {})

    def fingerprint_data(self) -> JsonObject:
        """Return the fields that can change a result, as JSON data.

        With `load_best_model_at_end`, the evaluation batch size may change which weights are the best.
        """
        data = self.model_dump(mode="json")
        runtime = set(RUNTIME_TRAIN_FIELDS) | set(self.markers(Runtime))
        if data.get("load_best_model_at_end"):
            runtime -= {"per_device_eval_batch_size"}
        return {key: value for key, value in data.items() if key not in runtime}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the JSON schema with the trainer's fields added."""
        schema = handler.resolve_ref_schema(handler(core))
        names = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
        properties = schema.setdefault("properties", {})
        for key, info in sorted(cls.allowed().items()):
            entry: JsonObject = {"description": f"Field of {cls.trainer}."}
            if info["type"] != "any":
                name = names[info["type"]]
                entry["type"] = [name, "null"] if info["optional"] else name
            words = words_of(key, info)
            if words:
                entry["enum"] = [*words, None] if info["optional"] else list(words)
            properties[key] = entry
        schema["additionalProperties"] = False
        return schema


def _custom_error(problem: Problem) -> PydanticCustomError:
    context = {"found": problem.found, "expected": problem.expected, "remedy": problem.remedy}
    return PydanticCustomError("trainer_field", "{found}, {expected}; {remedy}", context)
