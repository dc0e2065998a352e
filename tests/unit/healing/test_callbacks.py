"""The callback that stops a training before its numbers are lost."""

import pytest
import torch
from transformers import TrainerControl, TrainerState

from conversion.errors import TrainingError
from conversion.healing.callbacks import StopWhenNotFinite


def test_weights_that_ran_away_are_not_saved():
    model = torch.nn.Linear(3, 3)
    stop = StopWhenNotFinite(lambda: "the way out")

    def end_of_step(saved):
        control = TrainerControl(should_save=saved)
        stop.on_step_end(None, TrainerState(global_step=7), control, model=model)

    end_of_step(saved=True)
    with torch.no_grad():
        model.weight[1, 2] = torch.inf
    # Looked at where a state is saved: every step would read all weights once more.
    end_of_step(saved=False)
    with pytest.raises(TrainingError, match=r"step 7: .*NaN or infinite; the way out"):
        end_of_step(saved=True)
