import json

import pytest
import torch

from dualipo.errors import UserError
from dualipo.training.state import STATE, load_state, save_state


class Net(torch.nn.Module):
    """Everything that makes a resumed training differ: dropout, buffers, tied and frozen weights."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Linear(4, 8).requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(8)
        self.dropout = torch.nn.Dropout(0.3)
        self.up, self.down = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)
        self.down.weight = self.up.weight
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x):
        return self.down(self.dropout(self.up(self.norm(self.frozen(x)))))


def build():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, betas=(0.8, 0.99))
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))


def train(model, optimizer, schedule, begin, end):
    for step in range(begin, end):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        schedule.step()


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_an_interrupted_training_equals_an_unbroken_one(tmp_path):
    model, optimizer, schedule = build()
    train(model, optimizer, schedule, 0, 9)
    unbroken = weights(model)

    model, optimizer, schedule = build()
    assert load_state(tmp_path, model, optimizer) is None
    train(model, optimizer, schedule, 0, 4)
    save_state(tmp_path, 4, model, optimizer, {"curve": [0.1, 0.2], "schedule": schedule.state_dict()["last_epoch"]})
    train(model, optimizer, schedule, 4, 6)  # lost with the process

    model, optimizer, schedule = build()
    torch.manual_seed(99)
    step, extra = load_state(tmp_path, model, optimizer)
    assert (step, extra) == (4, {"curve": [0.1, 0.2], "schedule": 4})
    schedule.last_epoch = extra["schedule"]
    train(model, optimizer, schedule, step, 9)
    resumed = weights(model)
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.99)


def test_frozen_weights_are_left_out_and_tied_ones_stored_once(tmp_path):
    from safetensors import safe_open

    model, optimizer, schedule = build()
    train(model, optimizer, schedule, 0, 1)
    save_state(tmp_path, 1, model, optimizer)
    with safe_open(tmp_path / STATE, "pt") as file:
        names = set(file.keys())
        assert json.loads(file.metadata()["state"])["step"] == 1
    assert {n for n in names if n.startswith("model/") and "norm" not in n} == {"model/up.weight"}
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_momentum_of_none_and_other_plain_values_survive(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = optimizer.state_dict()
    save_state(tmp_path, 1, model, optimizer)
    assert load_state(tmp_path, model, optimizer) == (1, {})
    assert optimizer.state_dict() == before


def test_a_state_that_does_not_fit_or_cannot_be_read_is_refused(tmp_path):
    model, optimizer, _ = build()
    save_state(tmp_path, 1, model, optimizer)
    other = torch.nn.Linear(3, 3)
    with pytest.raises(UserError, match="belongs to another model; remove it"):
        load_state(tmp_path, other, torch.optim.AdamW(other.parameters()))
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable training state"):
        load_state(tmp_path, model, optimizer)
