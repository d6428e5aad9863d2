"""Computes with PyTorch what tests/operators compares with.

    WGRAD_SAMPLES=/tmp/samples.jsonl cargo test --test operators write_samples
    python tests/goldens/make.py /tmp/samples.jsonl

Types and shapes are those of the inputs' own types; values and gradients are computed in float64, but for samples
marked native. Gradients start from a fixed one, entry i of which is (i * 7 % 11 - 5) / 4 + 1/8.
"""

import json
import math
import pathlib
import sys

import torch


def evaluate(sample, double):
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    names = {"torch": torch}
    inputs = []
    for i, x in enumerate(sample["inputs"]):
        dtype = getattr(torch, x["dtype"])
        if double and dtype.is_floating_point:
            dtype = torch.float64
        t = torch.tensor(x["values"], dtype=torch.float64).reshape(x["shape"]).to(dtype)
        t.requires_grad_(x["grad"] and sample["grad"])
        names[f"x{i}"] = t
        inputs.append(t)
    return eval(sample["expression"], names), inputs


def words(t):
    return " ".join(f"{v:.12g}" for v in t.detach().to(torch.float64).flatten().tolist())


def main():
    lines = [f"# Written by make.py with torch {torch.__version__.split('+')[0]}: key, dtype and shape; values; gradients by input."]
    wrong = []
    samples = [json.loads(line) for line in open(sys.argv[1])]
    for sample in sorted({s["key"]: s for s in samples}.values(), key=lambda s: s["key"]):
        try:
            typed, _ = evaluate(sample, False)
            exact, inputs = evaluate(sample, not sample["native"])
            lines.append(" ".join(["=", sample["key"], str(typed.dtype).split(".")[1], *map(str, typed.shape)]))
            lines.append(f"v {words(exact)}".rstrip())
            if sample["grad"] and exact.dtype.is_floating_point:
                start = torch.tensor([(i * 7 % 11 - 5) / 4 + 0.125 for i in range(exact.numel())])
                exact.backward(start.reshape(exact.shape).to(exact.dtype))
                for i, x in enumerate(inputs):
                    if x.requires_grad:
                        g = torch.zeros_like(x) if x.grad is None else x.grad
                        lines.append(f"g {i} {words(g)}".rstrip())
        except Exception as error:
            wrong.append(f"{sample['expression']} of {[(x['dtype'], x['shape']) for x in sample['inputs']]}: {error}")
    if wrong:
        sys.exit("\n".join(wrong))
    path = pathlib.Path(__file__).parent / "operators.txt"
    path.write_text("\n".join(lines) + "\n")
    print(f"{len(samples)} samples, {path.stat().st_size} bytes")


main()
