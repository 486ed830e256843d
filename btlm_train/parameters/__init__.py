"""The settings of a run (`models`), every key of a parameter file (`keys`), and reading files
(`load`).
"""

from btlm_train.parameters.load import find_params, load_model_config, load_params
from btlm_train.parameters.models import (
    Initializer,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    Params,
    ScheduleSegment,
)

__all__ = [
    "Initializer",
    "LoopConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Params",
    "ScheduleSegment",
    "find_params",
    "load_model_config",
    "load_params",
]
