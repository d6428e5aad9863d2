//! Samples of the elementwise ops, made from the rows of their table.

use super::{Domain, Input, Lie, Sample, Slope, bools, floats, given, ints, positive, real, sample};
use crate::graph::dtype::{Bool, F32, I32};
use crate::ops::elementwise::TABLE;
use crate::ops::record::{Arg, Class, Domain as Rule, Elementwise, Gradient};
use crate::tensor::Tensor;

/// What floats do not survive unless someone takes care.
const SPECIALS: [f64; 9] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0, 120.0, -120.0];
const PAIRS: [f64; 7] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 2.0, -3.0];

pub(super) fn samples() -> Vec<Sample> {
    let mut out: Vec<Sample> = TABLE.iter().flat_map(|row| of_row(row)).collect();
    out.extend(methods());
    out
}

/// PyTorch's expression for a row over operands `x0`, `x1`, …
fn expression(row: &Elementwise, args: &[&str]) -> String {
    let list = args.join(", ");
    match row.op.name {
        "nn.functional.gelu" if row.op.wgsl.contains("tanh") => {
            format!("torch.nn.functional.gelu({list}, approximate='tanh')")
        }
        // Values only flow from the second operand, which is broadcast.
        "fill" => format!("torch.where(torch.ones_like({0}, dtype=torch.bool), {1}, {0})", args[0], args[1]),
        name => format!("torch.{name}({list})"),
    }
}

fn of_row(row: &'static Elementwise) -> Vec<Sample> {
    let n = row.op.arity;
    let domain = match row.domain {
        Rule::Real => Domain::Real,
        Rule::Positive => Domain::Positive,
        Rule::NonZero => Domain::NonZero,
    };
    let whole = move |x: &[Tensor]| row.call(&x.iter().map(Arg::from).collect::<Vec<_>>());
    let names: Vec<String> = (0..n).map(|i| format!("x{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut out = vec![];
    let mut add = |inputs: Vec<Input>| {
        let mut s = sample(row.op.name, expression(row, &names), inputs, whole);
        if !matches!(row.gradient, Gradient::Formula(_)) {
            s = s.flat();
        }
        out.push(s);
    };
    // The mask of `where` stands before operands of the shape of its result.
    let operands = |shapes: [&[usize]; 3], lies: [Lie; 3]| -> Vec<Input> {
        (0..n)
            .map(|i| {
                let input =
                    if row.op.mask_first && i == 0 { bools(shapes[i]) } else { floats(shapes[i], domain) };
                input.lie(lies[i])
            })
            .collect()
    };
    use Lie::{Expanded, Offset, Plain, Strided, Transposed};
    let same = |s: &'static [usize]| [s, s, s];
    add(operands(same(&[2, 3]), [Plain; 3]));
    add(operands(same(&[3, 2]), [Transposed, Strided, Offset]));
    add(operands(same(&[2, 2, 2]), [Strided, Transposed, Expanded]));
    add(operands(same(&[4, 2]), [Expanded, Offset, Transposed]));
    add(operands(same(&[]), [Plain; 3]));
    add(operands(same(&[2, 0]), [Plain; 3]));
    if n > 1 {
        let first_whole = row.op.name == "fill"; // the result has the first operand's shape
        if !first_whole {
            add(operands([&[2, 1, 2], &[3, 1], &[2]], [Plain; 3]));
            add(operands([&[], &[3], &[1]], [Plain; 3]));
        }
        add(operands([&[2, 3], &[3], &[]], [Transposed, Strided, Plain]));
        add(operands([&[2, 0], &[1], &[1, 1]], [Plain; 3]));
    }
    out.extend(of_types(row, &names, domain));
    out.extend(of_specials(row, &names));
    if n == 2 && row.op.name != "fill" {
        out.extend(with_numbers(row, domain));
    }
    out
}

/// Operands of other types, and of mixed ones.
fn of_types(row: &'static Elementwise, names: &[&str], domain: Domain) -> Vec<Sample> {
    let name = row.op.name;
    let n = names.len();
    let shape = &[2, 3][..];
    // Integer powers of negative numbers are fine, negative powers of integers are not.
    let whole = |i: usize| match name {
        "pow" if i == 1 => ints(shape).map(f64::abs),
        "div" => ints(shape).map(|v| if v == 0.0 { 3.0 } else { v }),
        "log" | "log1p" | "sqrt" | "rsqrt" | "reciprocal" => ints(shape).map(|v| v.abs() + 1.0),
        _ => ints(shape),
    };
    let mut lists: Vec<Vec<Input>> = vec![];
    // PyTorch takes floats only where it calls an op a function of neural networks.
    if !name.starts_with("nn.") {
        if row.class != Class::Float || n == 1 || name == "div" {
            lists.push((0..n).map(whole).collect());
        }
        if matches!(row.class, Class::Any | Class::Logic) || matches!(name, "exp" | "eq" | "lt" | "div") {
            lists.push((0..n).map(|_| bools(shape)).collect());
        }
        if n == 2 && name != "fill" {
            lists.push(vec![floats(shape, domain), whole(1)]);
            // A negative number to a fractional power is none.
            let base = if name == "pow" { whole(0).map(|v| v.abs() + 1.0) } else { whole(0) };
            lists.push(vec![base, floats(&[3], domain)]);
            lists.push(vec![floats(&[], domain), whole(1)]);
            if name != "pow" && row.class != Class::Logic {
                let logical = if name == "sub" { ints(&[]) } else { bools(shape) };
                lists.push(vec![whole(0), logical]);
            }
        }
    }
    let mut out = vec![];
    for mut inputs in lists {
        if row.op.mask_first && inputs.first().is_some_and(|i| i.dtype != Bool) {
            inputs[0] = bools(shape);
        }
        // Integers become floats here, and so do their samples' values.
        let text = super::elementwise::expression(row, names);
        let f = move |x: &[Tensor]| row.call(&x.iter().map(Arg::from).collect::<Vec<_>>());
        let mut s = sample(name, text, inputs, f);
        if !matches!(row.gradient, Gradient::Formula(_)) {
            s.gradient = Slope::None;
        }
        out.push(s);
    }
    out
}

/// NaN, infinities and zeros of both signs.
fn of_specials(row: &'static Elementwise, names: &[&str]) -> Vec<Sample> {
    let f = move |x: &[Tensor]| row.call(&x.iter().map(Arg::from).collect::<Vec<_>>());
    let text = expression(row, names);
    let inputs = match names.len() {
        1 => {
            // Drivers' sines of huge numbers differ, and PyTorch's gelu of infinity depends on its neighbours.
            let fits = |v: &&f64| match row.op.name {
                "sin" | "cos" => v.abs() < 100.0 || !v.is_finite(),
                "nn.functional.gelu" => **v != f64::INFINITY,
                _ => true,
            };
            let list: Vec<f64> = SPECIALS.iter().filter(fits).copied().collect();
            vec![given(&[list.len()], &list)]
        }
        2 if row.op.name != "fill" => vec![given(&[7, 1], &PAIRS), given(&[7], &PAIRS)],
        3 if row.op.mask_first => {
            vec![bools(&[3, 1]), given(&[7], &PAIRS), given(&[7], &PAIRS).map(|v| v + 1.0)]
        }
        3 => vec![given(&[7], &PAIRS), given(&[1], &[-1.0]), given(&[], &[1.5])],
        _ => return vec![],
    };
    vec![sample(row.op.name, text, inputs, f).native()]
}

/// A number on either side.
fn with_numbers(row: &'static Elementwise, domain: Domain) -> Vec<Sample> {
    let name = row.op.name;
    let slope = if matches!(row.gradient, Gradient::Formula(_)) { Slope::Smooth } else { Slope::None };
    let mut out = vec![];
    let mut add = |text: String, x: Input, f: Box<dyn Fn(&Tensor) -> Tensor + Send + Sync>| {
        let slope = if x.requires_grad { slope } else { Slope::None };
        let mut s = sample(name, text, vec![x], move |x| f(&x[0]));
        s.gradient = slope;
        out.push(s);
    };
    let call = move |a: Arg, b: Arg| row.call(&[a, b]);
    let shape = &[2, 2][..];
    add(
        format!("torch.{name}(x0, torch.tensor(1.75))"),
        floats(shape, domain),
        Box::new(move |x| call(x.into(), 1.75.into())),
    );
    add(
        format!("torch.{name}(x0, torch.tensor(3))"),
        floats(shape, domain),
        Box::new(move |x| call(x.into(), 3.into())),
    );
    add(
        format!("torch.{name}(torch.tensor(1.75), x0)"),
        floats(shape, domain),
        Box::new(move |x| call(1.75.into(), x.into())),
    );
    let whole = ints(shape).map(|v| v.abs() + 1.0);
    add(
        format!("torch.{name}(x0, torch.tensor(2))"),
        whole.clone(),
        Box::new(move |x| call(x.into(), 2.into())),
    );
    add(format!("torch.{name}(x0, torch.tensor(2.5))"), whole, Box::new(move |x| call(x.into(), 2.5.into())));
    if row.class == Class::Any {
        add(
            format!("torch.{name}(x0, torch.tensor(2))"),
            bools(shape),
            Box::new(move |x| call(x.into(), 2.into())),
        );
        add(
            format!("torch.{name}(x0, torch.tensor(True))"),
            ints(shape),
            Box::new(move |x| call(x.into(), true.into())),
        );
    }
    out
}

/// Methods that are not a row of the table, and writing in place.
fn methods() -> Vec<Sample> {
    let s = &[2, 3][..];
    let mut out = vec![
        sample("pow", "x0 ** 2", vec![real(s)], |x| x[0].pow(2.0)),
        sample("pow", "x0 ** 2", vec![ints(s)], |x| x[0].pow(2)),
        sample("pow", "x0 ** 3", vec![real(s)], |x| x[0].pow(3)),
        sample("pow", "x0 ** -1", vec![positive(s)], |x| x[0].pow(-1)),
        sample("pow", "x0 ** -2.5", vec![positive(s)], |x| x[0].pow(-2.5)),
        sample("pow", "x0 ** 0.5", vec![positive(s)], |x| x[0].pow(0.5)),
        sample("pow", "x0 ** 0", vec![given(&[3], &[0.0, 1.0, -2.0])], |x| x[0].pow(0.0)),
        sample("pow", "x0 ** 1", vec![given(&[3], &[0.0, 1.0, -2.0])], |x| x[0].pow(1.0)),
        sample("pow", "x0 ** 2", vec![given(&[3], &[0.0, 1.0, -2.0])], |x| x[0].pow(2.0)),
        sample(
            "pow",
            "x0 ** x1",
            vec![given(&[4], &[0.0, 0.0, 2.0, 3.0]), given(&[4], &[0.0, 2.0, 0.0, 1.5])],
            |x| x[0].pow(&x[1]),
        )
        .kink(),
        sample("square", "torch.square(x0)", vec![real(s)], |x| x[0].square()),
        sample("relu", "torch.relu(x0)", vec![given(&[3], &[0.0, 1.0, -1.0])], |x| x[0].relu()).kink(),
        sample("abs", "torch.abs(x0)", vec![given(&[3], &[0.0, 1.0, -1.0])], |x| x[0].abs()).kink(),
        sample("round", "torch.round(x0)", vec![given(&[6], &[0.5, 1.5, 2.5, -0.5, -1.5, 1e9])], |x| {
            x[0].round()
        })
        .kink(),
        sample(
            "maximum",
            "torch.maximum(x0, x1)",
            vec![given(&[3], &[1.0, 2.0, 3.0]), given(&[3], &[1.0, 3.0, 2.0])],
            |x| x[0].maximum(&x[1]),
        )
        .kink(),
        sample(
            "minimum",
            "torch.minimum(x0, x1)",
            vec![given(&[3], &[1.0, 2.0, 3.0]), given(&[3], &[1.0, 3.0, 2.0])],
            |x| x[0].minimum(&x[1]),
        )
        .kink(),
        sample("clamp", "torch.clamp(x0, -1, 1)", vec![real(&[3, 4])], |x| x[0].clamp(-1, 1)),
        sample("clamp", "torch.clamp(x0, -1.0, 1.0)", vec![given(&[4], &[-1.0, 1.0, 0.0, 2.0])], |x| {
            x[0].clamp(-1.0, 1.0)
        })
        .kink(),
        sample(
            "clamp",
            "torch.clamp(x0, x1, x2)",
            vec![given(&[5], &[-1.0, 1.0, 0.0, 2.0, -3.0]), given(&[5], &[-1.0; 5]), given(&[5], &[1.0; 5])],
            |x| x[0].clamp(&x[1], &x[2]),
        )
        .kink(),
        sample(
            "clamp",
            "torch.clamp(x0, x1, x2)",
            vec![given(&[3], &[0.0, 1.5, 3.0]), given(&[3], &[2.0; 3]), given(&[3], &[1.0; 3])],
            |x| x[0].clamp(&x[1], &x[2]),
        )
        .kink(),
        sample("clamp", "torch.clamp(x0, 1.0, -1.0)", vec![real(s)], |x| x[0].clamp(1.0, -1.0)),
        sample("clamp", "torch.clamp(x0, -1, 2)", vec![ints(s)], |x| x[0].clamp(-1, 2)),
        sample("nn.functional.gelu", "torch.nn.functional.gelu(x0)", vec![real(s)], |x| x[0].gelu()),
        sample(
            "nn.functional.gelu",
            "torch.nn.functional.gelu(x0, approximate='tanh')",
            vec![real(s)],
            |x| x[0].gelu_tanh(),
        ),
        sample("where", "torch.where(x1, x0, 0.5)", vec![real(s), bools(s)], |x| x[0].where_(&x[1], 0.5)),
        sample("where", "torch.where(x1, x0, x2)", vec![ints(s), bools(&[3]), real(&[2, 1])], |x| {
            x[0].where_(&x[1], &x[2])
        }),
        sample(
            "where",
            "torch.where(x1, x0, x2)",
            vec![given(&[2], &[1.0, f64::NAN]), bools(&[2]).map(|_| 1.0), given(&[2], &[f64::NAN, 2.0])],
            |x| x[0].where_(&x[1], &x[2]),
        )
        .native(),
        sample("neg", "5.0 * (x0 + 1.0) ** 2 - -x0 / 2", vec![real(s)], |x| {
            5.0 * (&x[0] + 1.0).pow(2.0) - -&x[0] / 2
        }),
        sample("sub", "1 - x0", vec![ints(s)], |x| 1 - &x[0]),
        sample("div", "1 / x0", vec![positive(s)], |x| 1.0 / &x[0]),
        sample("logical_not", "~x0", vec![bools(s)], |x| !&x[0]),
        sample("erf", "torch.erf(x0)", vec![real(&[30]).map(|v| v * 1.5)], |x| x[0].erf()),
        sample("tanh", "torch.tanh(x0)", vec![real(&[30]).map(|v| v * 6.0)], |x| x[0].tanh()),
        sample("exp", "torch.exp(x0)", vec![real(&[30]).map(|v| v * 30.0)], |x| x[0].exp()).flat(),
        sample("log", "torch.log(x0)", vec![positive(&[30]).map(|v| v * v * v * v)], |x| x[0].log()).flat(),
        sample("sin", "torch.sin(x0)", vec![real(&[30]).map(|v| v * 8.0)], |x| x[0].sin()).flat(),
        sample("cos", "torch.cos(x0)", vec![real(&[30]).map(|v| v * 8.0)], |x| x[0].cos()).flat(),
        sample("expm1", "torch.expm1(x0)", vec![real(&[30]).map(|v| v / 512.0)], |x| x[0].expm1()).flat(),
        sample("log1p", "torch.log1p(x0)", vec![real(&[30]).map(|v| v / 512.0)], |x| x[0].log1p()).flat(),
    ];
    macro_rules! in_place {
        ($($name:literal $expression:literal ($($input:expr),*) $f:expr;)*) => {
            $(out.push(sample($name, $expression, vec![$($input),*], $f));)*
        };
    }
    in_place! {
        "add" "x0.clone().add_(x1)" (real(s), real(&[3])) |x| x[0].clone_data().add_(&x[1]);
        "add" "x0.clone().add_(2)" (ints(s)) |x| x[0].clone_data().add_(2);
        "sub" "x0.clone().sub_(x1)" (real(s), real(&[3])) |x| x[0].clone_data().sub_(&x[1]);
        "mul" "x0.clone().mul_(x1)" (real(s), real(&[1])) |x| x[0].clone_data().mul_(&x[1]);
        "mul" "x0.clone().mul_(x1)" (real(s), ints(s)) |x| x[0].clone_data().mul_(&x[1]);
        "div" "x0.clone().div_(x1)" (real(s), positive(s)) |x| x[0].clone_data().div_(&x[1]);
        "pow" "x0.clone().pow_(x1)" (positive(s), real(s)) |x| x[0].clone_data().pow_(&x[1]);
        "clamp" "x0.clone().clamp_(-1, 1)" (real(s)) |x| x[0].clone_data().clamp_(-1, 1);
        "exp" "x0.clone().exp_()" (real(s)) |x| x[0].clone_data().exp_();
        "sqrt" "x0.clone().sqrt_()" (positive(s)) |x| x[0].clone_data().sqrt_();
        "neg" "x0.clone().neg_()" (real(s)) |x| x[0].clone_data().neg_();
        "abs" "x0.clone().abs_()" (real(s)) |x| x[0].clone_data().abs_();
        "relu" "x0.clone().relu_()" (real(s)) |x| x[0].clone_data().relu_();
        "tanh" "x0.clone().tanh_()" (real(s)) |x| x[0].clone_data().tanh_();
        "sigmoid" "x0.clone().sigmoid_()" (real(s)) |x| x[0].clone_data().sigmoid_();
        "fill" "x0.clone().fill_(x1)" (real(s), real(&[])) |x| x[0].clone_data().fill_(&x[1]);
        "fill" "x0.clone().fill_(2.5)" (real(s)) |x| x[0].clone_data().fill_(2.5);
        "fill" "x0.clone().fill_(2.0)" (ints(s)) |x| x[0].clone_data().fill_(2.0);
        "fill" "x0.clone().zero_()" (real(s)) |x| x[0].clone_data().zero_();
        "copy" "x0.clone().copy_(x1)" (real(s), real(&[3])) |x| x[0].clone_data().copy_(&x[1]);
        "copy" "x0.clone().copy_(x1)" (real(s), ints(&[2, 1])) |x| x[0].clone_data().copy_(&x[1]);
    }
    out.push(
        sample("copy", "x0.clone().copy_(x1)", vec![ints(s), real(s)], |x| x[0].clone_data().copy_(&x[1]))
            .flat(),
    );
    let castable = given(&[6], &[0.0, 1.0, -1.75, 2.5, -0.0, 3.999]);
    for (name, dtype) in [("float32", F32), ("int32", I32), ("bool", Bool)] {
        let text = format!("x0.to(torch.{name})");
        out.push(sample("to", &*text, vec![castable.clone()], move |x| x[0].to(dtype)).kink());
        out.push(sample("to", &*text, vec![ints(s).lie(Lie::Transposed)], move |x| x[0].to(dtype)));
        out.push(sample("to", &*text, vec![bools(s)], move |x| x[0].to(dtype)));
    }
    // What has no float result has no gradient.
    for s in &mut out {
        if s.expression.contains("to(torch.int32)") || s.expression.contains("to(torch.bool)") {
            s.gradient = Slope::None;
        }
    }
    let special = given(&[4], &[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0]);
    out.push(sample("to", "x0.to(torch.bool)", vec![special], |x| x[0].to(Bool)).native());
    out
}
