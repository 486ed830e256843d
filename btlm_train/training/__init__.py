"""Training, from the first check to the last figure.

world        ranks and devices           checks       the data fits the model
run_folder   whose folder it is          trainer      state in and out of checkpoints
step         one optimizer step          loop         a whole run
metrics      figures of a run
"""

from btlm_train.training.loop import run_evaluation, starting_point, train
from btlm_train.training.step import optimizer_step
from btlm_train.training.trainer import Trainer
from btlm_train.training.world import World, joined

__all__ = ["Trainer", "World", "joined", "optimizer_step", "run_evaluation", "starting_point", "train"]
