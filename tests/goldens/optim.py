"""Writes optim.json: what PyTorch's optimizers and schedulers make of fixed inputs, and a small model's losses.

    python tests/goldens/optim.py > tests/goldens/optim.json
"""

import json
import math

import torch
from torch import nn, optim

torch.set_default_dtype(torch.float64)


def values(n, scale, shift):
    """Numbers that any language computes alike."""
    return [math.sin(i * 0.7 + shift) * scale for i in range(n)]


def grads(step):
    return [values(6, 1.0, step), values(3, 0.5, step + 2.0)]


def run(make):
    params = [
        torch.tensor(values(6, 1.0, 0.3)).reshape(2, 3).requires_grad_(),
        torch.tensor(values(3, 2.0, 1.1)).requires_grad_(),
    ]
    optimizer = make(params)
    trace = []
    for step in range(6):
        for p, g in zip(params, grads(step)):
            p.grad = torch.tensor(g).reshape(p.shape)
        # A parameter without a gradient is passed by.
        if step == 2:
            params[1].grad = None
        optimizer.step()
        trace.append([x for p in params for x in p.detach().flatten().tolist()])
    return trace


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.1),
    "sgd_decay_maximize": lambda p: optim.SGD(p, 0.1, weight_decay=0.05, maximize=True),
    "sgd_momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9),
    "sgd_dampening": lambda p: optim.SGD(p, 0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "sgd_nesterov": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, 0.01),
    "adam_decay": lambda p: optim.Adam(p, 0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1),
    "adam_amsgrad_maximize": lambda p: optim.Adam(p, 0.01, betas=(0.5, 0.6), amsgrad=True, maximize=True),
    "adamw": lambda p: optim.AdamW(p, 0.01),
    "adamw_decay": lambda p: optim.AdamW(p, 0.01, weight_decay=0.2, amsgrad=True),
}

SCHEDULES = {
    "step": lambda o: optim.lr_scheduler.StepLR(o, 3, 0.1),
    "cosine": lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 8, 0.01),
    "linear": lambda o: optim.lr_scheduler.LinearLR(o, 0.25, 1.0, 5),
    "one_cycle": lambda o: optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=13, cycle_momentum=False),
}


def rates(make):
    optimizer = optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    scheduler = make(optimizer)
    out = [optimizer.param_groups[0]["lr"]]
    for _ in range(12):
        optimizer.step()
        scheduler.step()
        out.append(optimizer.param_groups[0]["lr"])
    return out


def clip():
    p = torch.zeros(6, requires_grad=True)
    q = torch.zeros(3, requires_grad=True)
    out = {}
    for name, order in [("2", 2.0), ("1", 1.0), ("3", 3.0), ("inf", math.inf)]:
        p.grad, q.grad = map(torch.tensor, grads(0))
        norm = nn.utils.clip_grad_norm_([p, q], 0.7, order)
        out[name] = [norm.item()] + p.grad.tolist() + q.grad.tolist()
    return out


def training():
    """A classifier of points by the ring they lie in: two hidden layers, full batch."""
    n = 48
    xs = torch.tensor(values(2 * n, 1.5, 0.1)).reshape(n, 2) + torch.tensor(values(2 * n, 0.9, 4.0)[::-1]).reshape(n, 2)
    ys = (xs.norm(dim=1) > 1.2).long() + (xs.norm(dim=1) > 1.9).long()
    sizes = [2, 16, 12, 3]
    layers = []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        layer = nn.Linear(a, b)
        layer.weight.data = torch.tensor(values(a * b, 0.6, i + 0.5)).reshape(b, a)
        layer.bias.data = torch.tensor(values(b, 0.1, i + 9.0))
        layers += [layer, nn.Tanh() if i == 0 else nn.GELU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = optim.AdamW(model.parameters(), 0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(xs), ys)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"x": xs.flatten().tolist(), "y": ys.tolist(), "losses": losses}


def rounded(x):
    if isinstance(x, float):
        return float(f"{x:.12g}")
    if isinstance(x, list):
        return [rounded(v) for v in x]
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return x


golden = {
    "torch": torch.__version__.split("+")[0],
    "optimizers": {name: run(make) for name, make in OPTIMIZERS.items()},
    "schedules": {name: rates(make) for name, make in SCHEDULES.items()},
    "clip": clip(),
    "training": training(),
}
print(json.dumps(rounded(golden), separators=(",", ":")))
