"""The loss of a step against the formula of docs/method.md, worked out on plain model outputs."""

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from conversion.healing.callbacks import SaveInTime
from conversion.healing.teacher import LiveTeacher
from conversion.healing.text import training_order
from conversion.healing.trainer import HealingTrainer
from tests.support.tiny import tiny_llama


def formula(student, teacher, ids, offset, w, u):
    """(1 - w) KL + w CE + u mean_{l,t} |h_lt - h*_lt|^2 / |h*_lt|^2, every second position."""
    ours, theirs = (m(ids, output_hidden_states=True) for m in (student, teacher))
    at = range(offset, ids.shape[1] - 1, 2)
    p, q = (out.logits[:, at].double().softmax(-1) for out in (theirs, ours))
    kl = (p * (p / q).log()).sum(-1).mean()
    following = ids[:, [t + 1 for t in at]]
    ce = -q.gather(-1, following[..., None]).log().mean()
    errors = [
        float(((h - g).square().sum(-1) / g.square().sum(-1)).mean())
        for h, g in zip(ours.hidden_states[1:], theirs.hidden_states[1:], strict=True)
    ]
    return float((1 - w) * kl + w * ce + u * sum(errors) / len(errors))


@pytest.mark.parametrize(("w", "u"), [(0.0, 0.0), (1.0, 0.0), (0.3, 0.0), (0.3, 2.0)])
@torch.no_grad()
def test_the_loss_is_the_formulas(tmp_path, w, u):
    student, teacher = tiny_llama(seed=1), tiny_llama(seed=2)
    trainer = HealingTrainer(
        model=student,
        teacher=LiveTeacher(teacher, hidden=u > 0),
        lm_weight=w,
        hidden_weight=u,
        stride=2,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]),
    )
    ids = torch.randint(256, (3, 33), generator=torch.Generator().manual_seed(0))
    for step in (0, 1):
        trainer.state.global_step = step
        found = trainer.compute_loss(student, {"input_ids": ids})
        # float32 against float64, sums of a few hundred terms.
        expected = formula(student, teacher, ids, step, w, u)
        assert float(found) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_figures_are_of_every_position(tmp_path):
    student, teacher = tiny_llama(seed=1), tiny_llama(seed=2)
    trainer = HealingTrainer(
        model=student,
        teacher=LiveTeacher(teacher),
        stride=4,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]),
    )
    ids = torch.randint(256, (2, 33), generator=torch.Generator().manual_seed(0))
    losses = [float(student(row[None], labels=row[None]).loss) for row in ids]
    found = trainer.measure(ids)
    expected = float(torch.tensor(losses).mean().exp())
    assert found["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert found["divergence"] > 0
    assert trainer.measure(ids[:0]) == {}


def test_every_window_comes_once_before_one_comes_again():
    ids = torch.arange(7)[:, None]
    order = training_order(ids, 17, seed=3).tolist()
    assert len(order) == 17
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7] != order[7:14]
    assert order == training_order(ids, 17, seed=3).tolist()
    assert order != training_order(ids, 17, seed=4).tolist()


def test_a_state_is_asked_for_in_time_and_where_the_curve_has_a_point(tmp_path):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], logging_steps=3, save_steps=50
    )
    # As an interrupted run with other settings left it.
    state = TrainerState(save_steps=100)
    for minutes, asked in ((1e-9, [3, 6]), (60, [])):
        callback = SaveInTime(minutes)
        callback.on_train_begin(arguments, state, TrainerControl())
        found = []
        for state.global_step in range(1, 8):
            control = TrainerControl()
            callback.on_step_end(arguments, state, control)
            if control.should_save:
                found.append(state.global_step)
        assert found == asked
    assert state.save_steps == 50
