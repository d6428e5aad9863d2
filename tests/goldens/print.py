"""Writes the cases tests/print.rs checks, with PyTorch itself as the judge.

    python print.py > print.txt     # the committed cases
    python print.py 3000 > /tmp/random.txt  # 3000 random ones instead, see tests/print.rs

Large tensors are given by a formula that Python and Rust compute alike, others value by value:
    affine START STEP   START + i*STEP
    lcg N               s(i+1) = (1664525*s(i) + 1013904223) mod 2^32 from s(0) = 1; a float is
                        (s/2^32 - 0.5)*N, an int s mod (2*N + 1) - N, a bool the top bit of s
both in f64 (ints in i64) and then rounded to the kind.
"""

import itertools
import math
import random
import sys

import torch
import torch.nn.functional as F

F32, F64, I64 = torch.float32, torch.float64, torch.int64
INF, NAN = math.inf, math.nan

# PyTorch's own rules decide where a suffix wraps, but on our spelling of the dtype, and with a
# device that this machine need not have.
device, passed = None, []
add_suffixes = torch._tensor_str._add_suffixes


def our_suffixes(text, suffixes, *rest, **options):
    passed[:] = [s.replace("dtype=torch.", "dtype=") for s in suffixes]
    shown = [f"device='{device}'"] * bool(device) + passed
    return add_suffixes(text, shown, *rest, **options)


torch._tensor_str._add_suffixes = our_suffixes


def kind(dtype):
    if dtype == torch.bool:
        return "bool"
    if not dtype.is_floating_point:
        return "int"
    return "f32" if dtype == F32 else "f64"


def listed(values, dtype=None, shape=None):
    """Values one by one, from a list or from a tensor that some operation returned."""
    t = values if isinstance(values, torch.Tensor) else torch.tensor(values, dtype=dtype)
    t = t if shape is None else t.reshape(shape)
    flat = t.detach().flatten()
    if t.dtype == torch.bool:
        flat = flat.int()
    return t, " ".join(["values", *(repr(v) for v in flat.tolist())])


def affine(shape, start, step, dtype=F32):
    values = [start + i * step for i in range(math.prod(shape))]
    return torch.tensor(values, dtype=dtype).reshape(shape), f"affine {start} {step}"


def lcg(shape, n, dtype=F32):
    values, s = [], 1
    for _ in range(math.prod(shape)):
        s = (1664525 * s + 1013904223) % 2**32
        if dtype == torch.bool:
            values.append(bool(s >> 31))
        elif dtype.is_floating_point:
            values.append((s / 2**32 - 0.5) * n)
        else:
            values.append(s % (2 * n + 1) - n)
    return torch.tensor(values, dtype=dtype).reshape(shape), f"lcg {n}"


def case(name, made, on=None, leaf=False, **options):
    global device
    tensor, source = made
    device = on
    tensor = tensor.requires_grad_() if leaf else tensor
    torch.set_printoptions(profile="default", **options)
    text = str(tensor)
    print("==", name)
    print("shape", *tensor.shape)
    print("kind", kind(tensor.dtype))
    print(source)
    if on:
        print("device", on)
    for suffix in passed:
        if suffix.startswith("dtype="):
            print("dtype", suffix[len("dtype=") :])
        elif not suffix.startswith("size="):
            print("suffix", suffix)
    if options:
        print("options", *(f"{key}={str(value).lower()}" for key, value in options.items()))
    print(f"---\n{text}")


def committed():
    # Which style: whole numbers, fixed point or scientific.
    for i, values in enumerate(
        [
            [1.0, 2.0, 3.0], [1.0, 2.5], [0.0, 0.0], [-0.0, 0.0], [-0.0, 0.5], [1.0, -10.0, 100.0],
            [1.0, 1000.0], [1.0, 1001.0], [0.5, 500.0], [0.5, 500.5], [1e8], [1e8 + 8], [1e9, 2e9],
            [-1e8, 1e5 + 1], [2e8, 3e8, 0.0], [1.5e8, 1.25], [1e-4, 2e-4], [0.9999e-4, 1e-3],
            [1e-8, 1e8], [1e-8], [1e-45], [3.4028234663852886e38], [-1e-8, 5.0, 0.0],
            [0.03125, 0.09375, 0.15625], [0.99995, 0.99994], [1.99999, -9.99999], [123456.789],
            [99999.5, 12345.25], [2e-4, 0.01], [16777216.0, 16777217.0], [0.1, 0.2, 0.3], [1 / 3, 2 / 3],
            [9.99995, 0.01], [0.0, 1e-10], [-1.0], [-0.5, 0.25], [100.0, 0.1], [100.5, 0.1],
        ]
    ):  # fmt: skip
        case(f"style {i}", listed(values, F32))
    for i, values in enumerate(
        [
            [NAN], [INF], [-INF], [NAN, INF, -INF], [NAN, 1.0], [INF, 1.0, -2.0], [-INF, 0.0],
            [NAN, 1.5], [INF, -INF, NAN, 0.001], [NAN, 1e-9, 1.0], [INF, 1e12, -3.0],
            [1.0, 10000.0, NAN, -INF, 0.0], [-NAN, 100000.0, 123456.0],
        ]
    ):  # fmt: skip
        case(f"nonfinite {i}", listed(values, F32))
    for i, value in enumerate([0.0, -0.0, 1.0, 3.14159, -2.5, 1e-5, 1e9, NAN, -INF, 1e8, 12345.678]):
        case(f"scalar {i}", listed(value, F32))
    case("scalar int", listed(-7, I64))
    case("scalar bool", listed(True))
    case("scalar f64", listed(2.5, F64))

    case("f64", listed([0.1, 1 / 3, -1e3], F64))
    case("f64 extremes", listed([5e-324, 1.7976931348623157e308, -1e-100, 1e100], F64))
    case("f64 smallest fixed", listed([1e-4, 2e-4], F64))
    case("f64 largest fixed", listed([1e8, 1.5e5], F64))
    case("f64 whole", listed([1e15, 1e15 + 1], F64))
    case("f64 2-D", affine((3, 3), -1.0, 0.3, F64))
    case("f16", listed([0.1, 65504.0, 6e-8], torch.float16))
    case("bf16", listed([0.1, 3.0, 1e30], torch.bfloat16))

    case("int widths", listed([1, -20, 300, -4000], I64))
    case("int extremes", listed([-(2**63), 2**63 - 1, 0], I64))
    case("i32", listed([2**31 - 1, -(2**31)], torch.int32))
    case("u32", listed([2**32 - 1, 7], torch.uint32))
    case("int 2-D", lcg((3, 4), 1000, I64))
    case("int wrap", affine((40,), -5, 7, I64))
    case("int summarised", affine((1001,), 0, 1, I64))
    case("int 2-D summarised", lcg((40, 40), 99999, I64))
    case("bool", listed([True, False]))
    case("all true", listed([True, True, True]))
    case("bool 2-D", lcg((3, 5), 1, torch.bool))
    case("bool wrap", lcg((30,), 1, torch.bool))
    case("bool summarised", lcg((2000,), 1, torch.bool))

    for shape in [(0,), (0, 3), (3, 0), (2, 0, 4), (0, 0), (1, 0, 1, 1)]:
        for dtype in [F32, I64, torch.bool, F64]:
            case(f"empty {shape} {dtype}", (torch.zeros(shape, dtype=dtype), "values"))
    case("empty leaf", (torch.zeros(0, 3), "values"), on="gpu:0", leaf=True)

    for shape in [(1,), (1, 1), (1, 1, 1, 1), (2, 3), (3, 2, 2), (2, 2, 2, 2), (1, 2, 1, 2, 2)]:
        case(f"arange {shape}", affine(shape, 0.0, 1.0))
        case(f"lcg {shape}", lcg(shape, 4.0))
    for n in [9, 10, 12, 13, 17, 18, 19, 20, 100]:
        case(f"wrap {n}", lcg((n,), 2.0))
        case(f"wrap whole {n}", affine((n,), -3.0, 1.0))
    case("wrap scientific", lcg((15,), 1e9))
    case("wrap rows", lcg((2, 25), 20.0))
    case("wrap 3-D", affine((2, 2, 23), 0.0, 0.25))
    case("wrap nan wider than the rest", listed([NAN, 1.0, 0.0, -INF] * 9, F32))
    case("wrap nothing but nan", listed([NAN, INF] * 20, F32))

    case("not summarised", affine((4, 10), 0.0, 1.0), threshold=40)
    case("1-D", lcg((1001,), 10.0))
    case("1-D arange", affine((5000,), 0.0, 1.0))
    case("1-D arange, scientific", affine((20000,), 1.0, 1.0))
    case("2-D", lcg((64, 64), 2.0))
    case("2-D few rows", lcg((6, 200), 2.0))
    case("2-D seven rows", lcg((7, 200), 2.0))
    case("2-D few columns", lcg((300, 4), 2.0))
    case("3-D", lcg((10, 11, 12), 3.0))
    case("3-D thin", affine((2, 3, 200), 0.0, 0.5))
    case("4-D", lcg((8, 3, 7, 8), 1.0))
    case("4-D cut inside", affine((2, 1, 9, 90), -100.0, 1.0))
    case("summary hides the large values", affine((1500,), 0.001, 0.0))
    case("small at the edges, large within", listed([0.5] * 4 + [1e12] + [0.25] * 4, F32), threshold=5)
    case("wide summary wraps", lcg((20, 2000), 1.0), edgeitems=9)

    leaf = lambda *shape: lcg(shape, 2.0)[0].requires_grad_()
    case("leaf", lcg((3,), 2.0), leaf=True)
    case("leaf summarised", lcg((50, 50), 2.0), leaf=True)
    case("leaf device", lcg((2, 2), 2.0), leaf=True, on="gpu:0")
    case("leaf f64 device", lcg((4,), 2.0, F64), leaf=True, on="gpu:0")
    case("device", affine((3,), 0.0, 1.0), on="gpu:1")
    case("scalar leaf", listed(1.5, F32), leaf=True)
    for n in range(4, 10):
        case(f"leaf wraps or not {n}", lcg((n,), 2.0), leaf=True)
    for n in [15, 16, 17]:
        case(f"leaf after a wrapped row {n}", lcg((n,), 2.0), leaf=True)
    for width in [32, 33, 34, 39, 40, 41, 47, 48, 49, 67, 68, 69]:
        case(f"suffixes in {width}", listed([1.5], F64), leaf=True, on="gpu:0", linewidth=width)
    case("add", listed(leaf(3) + 1))
    case("mul", listed(leaf(2, 8) * 2))
    case("sum", listed(leaf(5).sum()))
    case("mean f64", listed(lcg((5,), 2.0, F64)[0].requires_grad_().mean()))
    case("matmul", listed(leaf(2, 3) @ leaf(3, 6)))
    case("log softmax", listed(F.log_softmax(leaf(3, 5), dim=1)))
    case("layer norm", listed(F.layer_norm(leaf(2, 7), (7,))), on="gpu:0")
    case("nll", listed(F.cross_entropy(leaf(3, 5), torch.tensor([0, 1, 2]))))
    case("every suffix", listed(lcg((2, 6), 2.0, F64)[0].requires_grad_().clone()), on="gpu:0")
    case("view summarised", (leaf(2000).view(40, 50), "lcg 2.0"), on="gpu:0")
    case("every suffix wraps", listed(lcg((3,), 2.0, F64)[0].requires_grad_() + 1), on="gpu:0", linewidth=20)

    mixed = [1.0, 123.456, -0.001]
    case("precision 2", listed(mixed[:2], F32), precision=2)
    case("precision 0", listed([0.5, 1.5, 2.5], F32), precision=0)
    case("precision 8", listed(mixed, F32), precision=8)
    for forced, values in itertools.product([True, False], [mixed, [1.0, 2e9], [1.0, 2.0], [0.0], [NAN, 1.0]]):
        case(f"sci_mode {forced} {values}", listed(values, F32), sci_mode=forced)
    case("threshold", affine((10,), 0, 1, I64), threshold=5)
    case("edge items 1", lcg((5, 5, 5), 2.0), threshold=10, edgeitems=1)
    case("no edge items 1-D", lcg((9,), 2.0), threshold=5, edgeitems=0)
    case("no edge items 3-D", lcg((2, 3, 4), 2.0), threshold=5, edgeitems=0)
    case("no edge items, all shown", lcg((3,), 2.0, F64), edgeitems=0)
    case("no edge items, scalar", listed(2.5, F32), threshold=0, edgeitems=0)
    case("narrow", lcg((2, 5), 2.0), linewidth=30)
    case("narrower than an element", lcg((2, 2), 2.0), linewidth=5)


def random_cases(n):
    rng = random.Random(n)

    def number(scale):
        value = rng.choice([rng.uniform(-1, 1), rng.gauss(0, 1), rng.randint(-20, 20) / 16])
        return value * 10.0 ** rng.randint(-scale, scale)

    for i in range(n):
        shape = [rng.choice([1, 2, 3, 5, 7, 8, 11]) for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 4]))]
        if len(shape) == 1:
            shape = [rng.randint(1, 60)]
        while math.prod(shape) > 2000:
            shape[shape.index(max(shape))] = 2
        size = math.prod(shape)
        dtype = rng.choice([F32, F32, F32, F64, I64, torch.int32, torch.bool])
        whole, scale = rng.random() < 0.3, rng.choice([0, 0, 0, 1, 2, 4, 9])
        if dtype == torch.bool:
            values = [rng.random() < 0.7 for _ in range(size)]
        elif not dtype.is_floating_point:
            values = [rng.randint(-(10**scale), 10**scale) for _ in range(size)]
        else:
            values = [number(scale) for _ in range(size)]
            values = [float(round(v)) for v in values] if whole else values
            odd = rng.choice([0, 0, 0.1, 0.9])
            values = [rng.choice([NAN, INF, -INF, 0.0, -0.0]) if rng.random() < odd else v for v in values]
        options = {}
        if rng.random() < 0.3:
            options["precision"] = rng.randint(0, 9)
        if rng.random() < 0.4:
            options["threshold"] = rng.choice([0, 1, 10, 50])
        if rng.random() < 0.3:
            options["edgeitems"] = rng.randint(0, 5)
        if rng.random() < 0.3:
            options["linewidth"] = rng.randint(0, 140)
        if rng.random() < 0.2:
            options["sci_mode"] = rng.random() < 0.5
        made = listed(values, dtype, shape)
        on = rng.choice([None, "gpu:0"])
        case(f"random {i}", made, on, leaf=dtype.is_floating_point and rng.random() < 0.5, **options)


print("# Written by print.py with torch", torch.__version__.split("+")[0])
random_cases(int(sys.argv[1])) if sys.argv[1:] else committed()
