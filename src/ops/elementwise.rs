//! The table of elementwise operators: a row is the whole declaration of an op.
//!
//! `name GradName (operands) class -> result, wgsl, cpu, cost, saves, gradient`. The gradient's formulas are
//! those of PyTorch's `tools/autograd/derivatives.yaml`.

use smallvec::smallvec;

use super::record::{A, Arg, B, C, Call, Class, Domain, Elementwise, Gradient, OUT, Out};
use crate::autograd::Grads;
use crate::block;
use crate::graph::program::MapOp;
use crate::tensor::Tensor;

/// The gradients by operand, each computed only if it is needed.
macro_rules! grads {
    ($c:ident, $($grad:expr),+) => {{
        let mut out = Grads::new();
        $(
            let i = out.len();
            out.push(if $c.needs(i) { Some($grad) } else { None });
        )+
        out
    }};
}

macro_rules! elementwise {
    ($(
        $(#[doc = $doc:literal])*
        $kind:ident $id:ident $method:ident $name:literal $grad_name:literal $arity:literal $class:ident -> $out:ident on $domain:ident {
            wgsl: $wgsl:literal $(| $wgsl_int:literal)?,
            cpu: $cpu:expr,
            cost: $cost:literal,
            saves: $saves:expr,
            grad: $grad:expr,
        }
    )*) => {
        $(
            pub static $id: Elementwise = Elementwise {
                op: MapOp {
                    name: $name,
                    arity: $arity,
                    mask_first: elementwise!(@mask $kind),
                    wgsl: $wgsl,
                    wgsl_int: elementwise!(@or $($wgsl_int)?),
                    cpu: $cpu,
                    cost: $cost,
                },
                class: Class::$class,
                out: Out::$out,
                grad_name: $grad_name,
                saves: $saves,
                gradient: $grad,
                domain: Domain::$domain,
            };
        )*
        /// Every row, for tests and docs.
        pub static TABLE: &[&Elementwise] = &[$(&$id),*];
        impl Tensor {
            $(elementwise!(@method $kind $id $method $name [$($doc)*]);)*
        }
    };
    (@mask masked) => { true };
    (@mask $kind:ident) => { false };
    (@or $e:literal) => { $e };
    (@or) => { "" };
    (@method unary $id:ident $method:ident $name:literal [$($doc:literal)*]) => {
        $(#[doc = $doc])*
        #[doc = concat!("\n\nAs [`torch.", $name, "`](https://docs.pytorch.org/docs/stable/generated/torch.", $name, ".html).")]
        #[track_caller]
        pub fn $method(&self) -> Tensor {
            $id.call(&[self.into()])
        }
    };
    (@method binary $id:ident $method:ident $name:literal [$($doc:literal)*]) => {
        $(#[doc = $doc])*
        #[doc = concat!("\n\nAs [`torch.", $name, "`](https://docs.pytorch.org/docs/stable/generated/torch.", $name, ".html).")]
        #[track_caller]
        pub fn $method(&self, other: impl Into<Arg>) -> Tensor {
            $id.call(&[self.into(), other.into()])
        }
    };
    (@method $other:ident $($rest:tt)*) => {};
}

/// A gradient that is zero wherever it is defined.
fn zero(c: &Call<'_>, g: &Tensor) -> Grads {
    let _ = c;
    smallvec![Some(g.zeros_like())]
}

elementwise! {
    /// Sum, element by element. Operands broadcast, types promote; `other` may be a number.
    binary ADD add "add" "AddBackward0" 2 Any -> Same on Real {
        wgsl: "a + b",
        cpu: block!(num |a, b| a.add(b); bool |a, b| a || b),
        cost: 1, saves: 0,
        grad: Gradient::Formula(|c, g| grads!(c, g.clone(), g.clone())),
    }
    /// Difference, element by element.
    binary SUB sub "sub" "SubBackward0" 2 Num -> Same on Real {
        wgsl: "a - b",
        cpu: block!(num |a, b| a.sub(b)),
        cost: 1, saves: 0,
        grad: Gradient::Formula(|c, g| grads!(c, g.clone(), g.neg())),
    }
    /// Product, element by element.
    binary MUL mul "mul" "MulBackward0" 2 Any -> Same on Real {
        wgsl: "a * b",
        cpu: block!(num |a, b| a.mul(b); bool |a, b| a && b),
        cost: 1, saves: A | B,
        grad: Gradient::Formula(|c, g| grads!(c, g.mul(c.arg(1)), g.mul(c.arg(0)))),
    }
    /// Quotient, element by element; of integers it is float32.
    binary DIV div "div" "DivBackward0" 2 Float -> Same on NonZero {
        wgsl: "a / b",
        cpu: block!(float |a, b| a / b),
        cost: 4, saves: A | B,
        grad: Gradient::Formula(|c, g| grads!(
            c,
            g.div(c.arg(1)),
            g.neg().mul(c.input(0).div(c.arg(1)).div(c.arg(1)))
        )),
    }
    /// The negative of each element.
    unary NEG neg "neg" "NegBackward0" 1 Num -> Same on Real {
        wgsl: "-a" | "T(0) - a",
        cpu: block!(num |a| a.neg()),
        cost: 1, saves: 0,
        grad: Gradient::Formula(|c, g| grads!(c, g.neg())),
    }
    plain POW _pow "pow" "PowBackward0" 2 Num -> Same on Positive {
        wgsl: "w_pow(a, b)" | "T(w_powi(I(a), I(b)))",
        cpu: block!(num |a, b| a.pow(b)),
        cost: 30, saves: A | B | OUT,
        grad: Gradient::Formula(pow_grad),
    }
    /// `e` to the power of each element.
    unary EXP exp "exp" "ExpBackward0" 1 Float -> Same on Real {
        wgsl: "w_exp(a)",
        cpu: block!(float |a| a.exp()),
        cost: 10, saves: OUT,
        grad: Gradient::Formula(|c, g| grads!(c, g.mul(c.output()))),
    }
    /// `e` to the power of each element, minus one, accurate near zero.
    unary EXPM1 expm1 "expm1" "Expm1Backward0" 1 Float -> Same on Real {
        wgsl: "w_expm1(a)",
        cpu: block!(float |a| a.exp_m1()),
        cost: 14, saves: OUT,
        grad: Gradient::Formula(|c, g| grads!(c, g.mul(c.output().add(1.0)))),
    }
    /// The natural logarithm of each element.
    unary LOG log "log" "LogBackward0" 1 Float -> Same on Positive {
        wgsl: "w_log(a)",
        cpu: block!(float |a| a.ln()),
        cost: 10, saves: A,
        grad: Gradient::Formula(|c, g| grads!(c, g.div(c.arg(0)))),
    }
    /// The natural logarithm of one plus each element, accurate near zero.
    unary LOG1P log1p "log1p" "Log1PBackward0" 1 Float -> Same on Positive {
        wgsl: "w_log1p(a)",
        cpu: block!(float |a| a.ln_1p()),
        cost: 14, saves: A,
        grad: Gradient::Formula(|c, g| grads!(c, g.div(c.input(0).add(1.0)))),
    }
    /// The square root of each element.
    unary SQRT sqrt "sqrt" "SqrtBackward0" 1 Float -> Same on Positive {
        wgsl: "sqrt(a)",
        cpu: block!(float |a| a.sqrt()),
        cost: 4, saves: OUT,
        grad: Gradient::Formula(|c, g| grads!(c, g.div(c.output().mul(2.0)))),
    }
    /// One over the square root of each element.
    unary RSQRT rsqrt "rsqrt" "RsqrtBackward0" 1 Float -> Same on Positive {
        wgsl: "T(1) / sqrt(a)",
        cpu: block!(float |a| a.rsqrt()),
        cost: 5, saves: OUT,
        grad: Gradient::Formula(|c, g| grads!(c, g.mul(-0.5).mul(c.output().mul(c.output()).mul(c.output())))),
    }
    /// One over each element.
    unary RECIPROCAL reciprocal "reciprocal" "ReciprocalBackward0" 1 Float -> Same on NonZero {
        wgsl: "T(1) / a",
        cpu: block!(float |a| T::of(1.0) / a),
        cost: 4, saves: OUT,
        grad: Gradient::Formula(|c, g| grads!(c, g.neg().mul(c.output().mul(c.output())))),
    }
    /// The absolute value of each element.
    unary ABS abs "abs" "AbsBackward0" 1 Num -> Same on NonZero {
        wgsl: "abs(a)",
        cpu: block!(num |a| a.abs()),
        cost: 1, saves: A,
        grad: Gradient::Formula(|c, g| grads!(c, g.mul(c.input(0).sign()))),
    }
    /// -1, 0 or 1, by the sign of each element.
    unary SIGN sign "sign" "SignBackward0" 1 Num -> Same on NonZero {
        wgsl: "select(select(T(0), T(1), a > T(0)), T(-1), a < T(0))" | "T(a > T(0)) - T(a < T(0))",
        cpu: block!(num |a| a.sign()),
        cost: 3, saves: 0,
        grad: Gradient::Formula(zero),
    }
    /// The largest integer not above each element.
    unary FLOOR floor "floor" "FloorBackward0" 1 Num -> Same on NonZero {
        wgsl: "floor(a)" | "a",
        cpu: block!(float |a| a.floor(); num |a| a),
        cost: 1, saves: 0,
        grad: Gradient::Formula(zero),
    }
    /// The smallest integer not below each element.
    unary CEIL ceil "ceil" "CeilBackward0" 1 Num -> Same on NonZero {
        wgsl: "ceil(a)" | "a",
        cpu: block!(float |a| a.ceil(); num |a| a),
        cost: 1, saves: 0,
        grad: Gradient::Formula(zero),
    }
    /// The nearest integer, halves to even.
    unary ROUND round "round" "RoundBackward0" 1 Num -> Same on NonZero {
        wgsl: "round(a)" | "a",
        cpu: block!(float |a| a.round(); num |a| a),
        cost: 1, saves: 0,
        grad: Gradient::Formula(zero),
    }
    /// The sine of each element, in radians.
    unary SIN sin "sin" "SinBackward0" 1 Float -> Same on Real {
        wgsl: "w_sin(a)",
        cpu: &crate::backend::cpu::math::sin::kernel,
        cost: 12, saves: A,
        grad: Gradient::Formula(|c, g| grads!(c, g.mul(c.input(0).cos()))),
    }
    /// The cosine of each element, in radians.
    unary COS cos "cos" "CosBackward0" 1 Float -> Same on Real {
        wgsl: "w_cos(a)",
        cpu: &crate::backend::cpu::math::cos::kernel,
        cost: 12, saves: A,
        grad: Gradient::Formula(|c, g| grads!(c, g.neg().mul(c.input(0).sin()))),
    }
    /// The hyperbolic tangent of each element.
    unary TANH tanh "tanh" "TanhBackward0" 1 Float -> Same on Real {
        wgsl: "w_tanh(a)",
        cpu: block!(float |a| a.tanh()),
        cost: 14, saves: OUT,
        grad: Gradient::Formula(|c, g| grads!(c, {
            let y = c.output();
            g.mul(y.mul(&y).neg().add(1.0))
        })),
    }
    /// `1 / (1 + exp(-x))` of each element.
    unary SIGMOID sigmoid "sigmoid" "SigmoidBackward0" 1 Float -> Same on Real {
        wgsl: "w_sigmoid(a)",
        cpu: block!(float |a| a.sigmoid()),
        cost: 14, saves: OUT,
        grad: Gradient::Formula(|c, g| grads!(c, {
            let y = c.output();
            g.mul(y.neg().add(1.0)).mul(&y)
        })),
    }
    /// The error function of each element.
    unary ERF erf "erf" "ErfBackward0" 1 Float -> Same on Real {
        wgsl: "w_erf(a)",
        cpu: block!(float |a| a.erf()),
        cost: 16, saves: A,
        grad: Gradient::Formula(|c, g| grads!(c, {
            let x = c.input(0);
            g.mul(x.mul(&x).neg().exp().mul(std::f64::consts::FRAC_2_SQRT_PI))
        })),
    }
    /// Each element, or 0 if it is negative.
    unary RELU relu "relu" "ReluBackward0" 1 Num -> Same on NonZero {
        wgsl: "max_nan(a, T(0))" | "max(a, T(0))",
        cpu: block!(num |a| a.maximum(T::default())),
        cost: 1, saves: OUT,
        grad: Gradient::Formula(|c, g| grads!(c, THRESHOLD.call(&[c.output().gt(0.0).into(), g.into(), 0.0.into()]))),
    }
    /// `x * sigmoid(x)` of each element, also called swish.
    unary SILU silu "nn.functional.silu" "SiluBackward0" 1 Float -> Same on Real {
        wgsl: "a * w_sigmoid(a)",
        cpu: block!(float |a| a * a.sigmoid()),
        cost: 15, saves: A,
        grad: Gradient::Formula(|c, g| grads!(c, {
            let x = c.input(0);
            let s = x.sigmoid();
            g.mul(s.mul(x.mul(s.neg().add(1.0)).add(1.0)))
        })),
    }
    plain GELU _gelu "nn.functional.gelu" "GeluBackward0" 1 Float -> Same on Real {
        wgsl: "T(0.5) * a * (T(1) + w_erf(a * T(0.70710678118654752440)))",
        cpu: block!(float |a| T::of(0.5) * a * (T::of(1.0) + (a * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf())),
        cost: 20, saves: A,
        grad: Gradient::Formula(|c, g| grads!(c, {
            let x = c.input(0);
            let cdf = x.mul(std::f64::consts::FRAC_1_SQRT_2).erf().add(1.0).mul(0.5);
            // The density of the normal distribution: exp(-x^2/2) / sqrt(2 pi).
            let pdf = x.mul(&x).mul(-0.5).exp().mul(0.398_942_280_401_432_7);
            g.mul(cdf.add(x.mul(&pdf)))
        })),
    }
    plain GELU_TANH _gelu_tanh "nn.functional.gelu" "GeluBackward0" 1 Float -> Same on Real {
        wgsl: "T(0.5) * a * (T(1) + w_tanh(T(0.7978845608028654) * (a + T(0.044715) * a * a * a)))",
        cpu: block!(float |a| T::of(0.5) * a
            * (T::of(1.0) + (T::of(0.797_884_560_802_865_4) * (a + T::of(0.044715) * a * a * a)).tanh())),
        cost: 22, saves: A,
        grad: Gradient::Formula(|c, g| grads!(c, {
            let x = c.input(0);
            let x2 = x.mul(&x);
            let t = x2.mul(0.044715).add(1.0).mul(&x).mul(0.797_884_560_802_865_4).tanh();
            let inner = x2.mul(3.0 * 0.044715).add(1.0).mul(0.797_884_560_802_865_4);
            let slope = t.mul(&t).neg().add(1.0).mul(&x).mul(&inner);
            g.mul(t.add(1.0).add(slope).mul(0.5))
        })),
    }
    /// The larger of two elements; NaN if either is. Where they are equal, each gets half of the gradient.
    binary MAXIMUM maximum "maximum" "MaximumBackward0" 2 Num -> Same on Real {
        wgsl: "max_nan(a, b)" | "max(a, b)",
        cpu: block!(num |a, b| a.maximum(b)),
        cost: 3, saves: A | B,
        grad: Gradient::Formula(|c, g| grads!(
            c,
            extremum_grad(g, c.input(0).gt(c.arg(1)), c.input(0).eq(c.arg(1))),
            extremum_grad(g, c.input(0).lt(c.arg(1)), c.input(0).eq(c.arg(1)))
        )),
    }
    /// The smaller of two elements; NaN if either is. Where they are equal, each gets half of the gradient.
    binary MINIMUM minimum "minimum" "MinimumBackward0" 2 Num -> Same on Real {
        wgsl: "min_nan(a, b)" | "min(a, b)",
        cpu: block!(num |a, b| a.minimum(b)),
        cost: 3, saves: A | B,
        grad: Gradient::Formula(|c, g| grads!(
            c,
            extremum_grad(g, c.input(0).lt(c.arg(1)), c.input(0).eq(c.arg(1))),
            extremum_grad(g, c.input(0).gt(c.arg(1)), c.input(0).eq(c.arg(1)))
        )),
    }
    plain CLAMP _clamp "clamp" "ClampBackward1" 3 Num -> Same on Real {
        wgsl: "min_nan(max_nan(a, b), c)" | "min(max(a, b), c)",
        cpu: block!(num |a, b, c| a.maximum(b).minimum(c)),
        cost: 4, saves: A | B | C,
        grad: Gradient::Formula(clamp_grad),
    }
    masked WHERE _where "where" "WhereBackward0" 3 Any -> Same on Real {
        wgsl: "select(c, b, a)",
        cpu: block!(mask all |m, a, b| if m { a } else { b }),
        cost: 1, saves: A,
        grad: Gradient::Formula(|c, g| grads!(
            c,
            g.clone(), // the mask needs none
            WHERE.call(&[c.arg(0), g.into(), 0.0.into()]),
            WHERE.call(&[c.arg(0), 0.0.into(), g.into()])
        )),
    }
    masked THRESHOLD _threshold "where" "ThresholdBackward0" 3 Any -> Same on Real {
        wgsl: "select(c, b, a)",
        cpu: block!(mask all |m, a, b| if m { a } else { b }),
        cost: 1, saves: A,
        grad: Gradient::Formula(|c, g| grads!(
            c,
            g.clone(),
            WHERE.call(&[c.arg(0), g.into(), 0.0.into()]),
            WHERE.call(&[c.arg(0), 0.0.into(), g.into()])
        )),
    }
    /// Whether elements are equal, as bools.
    binary EQ eq "eq" "" 2 Any -> Bool on Real {
        wgsl: "a == b",
        cpu: block!(all |a, b| a == b => bool),
        cost: 1, saves: 0, grad: Gradient::None,
    }
    /// Whether elements differ, as bools.
    binary NE ne "ne" "" 2 Any -> Bool on Real {
        wgsl: "!(a == b)", // `!=` is false for NaN on some drivers
        cpu: block!(all |a, b| a != b => bool),
        cost: 1, saves: 0, grad: Gradient::None,
    }
    /// Whether elements are less, as bools.
    binary LT lt "lt" "" 2 Num -> Bool on Real {
        wgsl: "a < b",
        cpu: block!(num |a, b| a < b => bool),
        cost: 1, saves: 0, grad: Gradient::None,
    }
    /// Whether elements are less or equal, as bools.
    binary LE le "le" "" 2 Num -> Bool on Real {
        wgsl: "a <= b",
        cpu: block!(num |a, b| a <= b => bool),
        cost: 1, saves: 0, grad: Gradient::None,
    }
    /// Whether elements are greater, as bools.
    binary GT gt "gt" "" 2 Num -> Bool on Real {
        wgsl: "a > b",
        cpu: block!(num |a, b| a > b => bool),
        cost: 1, saves: 0, grad: Gradient::None,
    }
    /// Whether elements are greater or equal, as bools.
    binary GE ge "ge" "" 2 Num -> Bool on Real {
        wgsl: "a >= b",
        cpu: block!(num |a, b| a >= b => bool),
        cost: 1, saves: 0, grad: Gradient::None,
    }
    /// Whether both are true (not zero).
    binary LOGICAL_AND logical_and "logical_and" "" 2 Logic -> Bool on Real {
        wgsl: "a & b",
        cpu: block!(bool |a, b| a && b),
        cost: 1, saves: 0, grad: Gradient::None,
    }
    /// Whether either is true (not zero).
    binary LOGICAL_OR logical_or "logical_or" "" 2 Logic -> Bool on Real {
        wgsl: "a | b",
        cpu: block!(bool |a, b| a || b),
        cost: 1, saves: 0, grad: Gradient::None,
    }
    /// Whether each element is false (zero).
    unary LOGICAL_NOT logical_not "logical_not" "" 1 Logic -> Bool on Real {
        wgsl: "!a",
        cpu: block!(bool |a| !a),
        cost: 1, saves: 0, grad: Gradient::None,
    }
    /// Whether each element is NaN.
    unary ISNAN isnan "isnan" "" 1 Float -> Bool on Real {
        wgsl: "is_nan(a)",
        cpu: block!(float |a| a.is_nan() => bool),
        cost: 1, saves: 0, grad: Gradient::None,
    }
    plain CLONE _clone "clone" "CloneBackward0" 1 Any -> Same on Real {
        wgsl: "a",
        cpu: block!(all |a| a),
        cost: 1, saves: 0,
        grad: Gradient::Formula(|c, g| grads!(c, g.clone())),
    }
    // Like `clone`, for values that replace all others: no gradient flows to what was there before.
    plain FILL _fill "fill" "FillBackward0" 2 Any -> Same on Real {
        wgsl: "b",
        cpu: block!(all |_a, b| b),
        cost: 1, saves: 0,
        grad: Gradient::Formula(|c, g| grads!(c, g.zeros_like(), g.clone())),
    }
}

fn pow_grad(c: &Call<'_>, g: &Tensor) -> Grads {
    let by_base = |exponent: Arg| match exponent {
        // d x^0 / dx is 0 everywhere, at x = 0 too.
        Arg::Scalar(s) if s.as_f64() == 0.0 => g.zeros_like(),
        Arg::Scalar(s) => g.mul(c.input(0).pow(s.as_f64() - 1.0).mul(s)),
        Arg::Tensor(e) => {
            let slope = e.mul(c.input(0).pow(e.sub(1.0)));
            g.mul(WHERE.call(&[e.eq(0.0).into(), 0.0.into(), slope.into()]))
        }
    };
    let by_exponent = || {
        let (base, e) = (c.input(0), c.input(1));
        let slope = c.output().mul(base.log());
        // 0^e is 0 for all e > 0, and counted so at e = 0.
        let flat = base.eq(0.0).logical_and(e.ge(0.0));
        g.mul(WHERE.call(&[flat.into(), 0.0.into(), slope.into()]))
    };
    grads!(c, by_base(c.arg(1)), by_exponent())
}

fn extremum_grad(g: &Tensor, wins: Tensor, ties: Tensor) -> Tensor {
    let half = WHERE.call(&[ties.into(), g.mul(0.5).into(), 0.0.into()]);
    WHERE.call(&[wins.into(), g.into(), half.into()])
}

fn clamp_grad(c: &Call<'_>, g: &Tensor) -> Grads {
    let (x, lo, hi) = (c.input(0), c.arg(1), c.arg(2));
    let pick = |mask: Tensor| WHERE.call(&[mask.into(), g.into(), 0.0.into()]);
    let inside = x.gt(&lo).logical_and(x.lt(&hi));
    if !c.needs(1) && !c.needs(2) && matches!((&lo, &hi), (Arg::Scalar(_), Arg::Scalar(_))) {
        return grads!(c, pick(inside));
    }
    // Tensors as bounds share the gradient with an operand that is equal to one of them.
    let shared = |mask: Tensor, tie: Tensor| WHERE.call(&[tie.into(), g.mul(0.5).into(), pick(mask).into()]);
    let (at_lo, at_hi) = (x.eq(&lo), x.eq(&hi));
    let tie = at_lo.ne(&at_hi);
    let (lo_over, none) = (c.input(1).gt(&hi), at_lo.logical_and(&at_hi));
    grads!(
        c,
        shared(inside.logical_or(&none), tie.logical_and(lo_over.logical_not())),
        shared(
            x.lt(&lo).logical_and(lo_over.logical_not()),
            at_lo.logical_and(at_hi.logical_not()).logical_and(lo_over.logical_not())
        ),
        shared(
            x.gt(&hi).logical_or(&lo_over),
            at_hi.logical_and(at_lo.logical_not()).logical_and(lo_over.logical_not())
        )
    )
}

impl Tensor {
    /// Each element to the power of `exponent`, a number or a tensor.
    ///
    /// As [`torch.pow`](https://docs.pytorch.org/docs/stable/generated/torch.pow.html).
    #[track_caller]
    pub fn pow(&self, exponent: impl Into<Arg>) -> Tensor {
        let exponent = exponent.into();
        let whole = matches!(&exponent, Arg::Scalar(s) if s.as_f64() == 2.0 && self.dtype().is_float());
        // Squares are frequent, and one product: `x * x` has the same gradient, under pow's name.
        if whole { SQUARE.call(&[self.into(), exponent]) } else { POW.call(&[self.into(), exponent]) }
    }

    /// The square of each element.
    #[track_caller]
    pub fn square(&self) -> Tensor {
        self.pow(2.0)
    }

    /// The Gaussian error linear unit `x * Phi(x)`, Phi being the normal distribution's function
    /// ([Hendrycks and Gimpel 2016](https://arxiv.org/abs/1606.08415)).
    #[track_caller]
    pub fn gelu(&self) -> Tensor {
        GELU.call(&[self.into()])
    }

    /// [`gelu`](Tensor::gelu) in its `tanh` approximation.
    #[track_caller]
    pub fn gelu_tanh(&self) -> Tensor {
        GELU_TANH.call(&[self.into()])
    }

    /// Each element, or the bound that it lies beyond. Bounds are numbers or tensors.
    ///
    /// As [`torch.clamp`](https://docs.pytorch.org/docs/stable/generated/torch.clamp.html).
    #[track_caller]
    pub fn clamp(&self, min: impl Into<Arg>, max: impl Into<Arg>) -> Tensor {
        CLAMP.call(&[self.into(), min.into(), max.into()])
    }

    /// Elements of `self` where `condition` holds, else of `other`.
    ///
    /// As [`torch.Tensor.where`](https://docs.pytorch.org/docs/stable/generated/torch.where.html).
    #[track_caller]
    pub fn where_(&self, condition: &Tensor, other: impl Into<Arg>) -> Tensor {
        WHERE.call(&[condition.into(), self.into(), other.into()])
    }
}

static SQUARE: Elementwise = Elementwise {
    op: MapOp {
        name: "pow",
        arity: 2,
        mask_first: false,
        wgsl: "a * a",
        wgsl_int: "",
        cpu: block!(float | a, _b | a * a),
        cost: 1,
    },
    class: Class::Float,
    out: Out::Same,
    grad_name: "PowBackward0",
    saves: A,
    gradient: Gradient::Formula(|c, g| grads!(c, g.mul(c.input(0).mul(2.0)))),
    domain: Domain::Real,
};
