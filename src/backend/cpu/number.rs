//! What Rust types stand for the dtypes in CPU kernels, and what may be done with them.

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Not, Sub};

use bytemuck::Pod;
use half::f16;

use super::math;
use crate::graph::dtype::DType;

/// A value of any dtype.
pub trait Value: Copy + PartialEq + PartialOrd + Default + Send + Sync + 'static {
    /// How it lies in memory.
    type Stored: Pod + Send + Sync;
    const DTYPE: DType;
    fn load(stored: Self::Stored) -> Self;
    fn store(self) -> Self::Stored;
    /// Whether it counts as true: not zero (NaN does).
    #[inline(always)]
    fn truth(self) -> bool {
        self != Self::default()
    }
}

/// A number. Integers wrap; no operation panics.
pub trait Num: Value {
    const ZERO: Self;
    const ONE: Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// Integers truncate, and give 0 for a divisor of 0.
    fn div(self, other: Self) -> Self;
    /// Quotient rounded down.
    fn floor_div(self, other: Self) -> Self;
    /// Remainder of `div`: has the sign of `self` (`torch.fmod`).
    fn fmod(self, other: Self) -> Self;
    /// Remainder of `floor_div`: has the sign of `other` (`torch.remainder`).
    fn remainder(self, other: Self) -> Self;
    fn neg(self) -> Self;
    fn abs(self) -> Self;
    /// -1, 0 or 1; NaN stays.
    fn sign(self) -> Self;
    /// The greater; NaN if either is.
    fn maximum(self, other: Self) -> Self;
    /// The lesser; NaN if either is.
    fn minimum(self, other: Self) -> Self;
    fn pow(self, other: Self) -> Self;
}

pub trait Int:
    Num + BitAnd<Output = Self> + BitOr<Output = Self> + BitXor<Output = Self> + Not<Output = Self>
{
    /// Shifts by 32 or more give 0 (or -1 to the right of a negative number).
    fn shl(self, by: Self) -> Self;
    fn shr(self, by: Self) -> Self;
}

macro_rules! value {
    ($($t:ty = $dtype:ident),*) => {$(
        impl Value for $t {
            type Stored = $t;
            const DTYPE: DType = DType::$dtype;
            #[inline(always)]
            fn load(stored: $t) -> $t { stored }
            #[inline(always)]
            fn store(self) -> $t { self }
        }
    )*};
}
value! { u32 = U32, i32 = I32, f32 = F32, f64 = F64 }

impl Value for f16 {
    type Stored = u16;
    const DTYPE: DType = DType::F16;
    #[inline(always)]
    fn load(stored: u16) -> f16 {
        f16::from_bits(stored)
    }
    #[inline(always)]
    fn store(self) -> u16 {
        self.to_bits()
    }
}

impl Value for bool {
    type Stored = u32;
    const DTYPE: DType = DType::Bool;
    #[inline(always)]
    fn load(stored: u32) -> bool {
        stored != 0
    }
    #[inline(always)]
    fn store(self) -> u32 {
        u32::from(self)
    }
}

macro_rules! int {
    ($($t:ident: $abs:ident $sign:ident;)*) => {$(
        impl Num for $t {
            const ZERO: $t = 0;
            const ONE: $t = 1;
            #[inline(always)]
            fn add(self, other: $t) -> $t { self.wrapping_add(other) }
            #[inline(always)]
            fn sub(self, other: $t) -> $t { self.wrapping_sub(other) }
            #[inline(always)]
            fn mul(self, other: $t) -> $t { self.wrapping_mul(other) }
            #[inline(always)]
            fn div(self, other: $t) -> $t { if other == 0 { 0 } else { self.wrapping_div(other) } }
            #[inline(always)]
            fn floor_div(self, other: $t) -> $t {
                let (q, r) = (Num::div(self, other), self.fmod(other));
                if r != 0 && (r ^ other) >> ($t::BITS - 1) != 0 && $t::MIN != 0 { q.wrapping_sub(1) } else { q }
            }
            #[inline(always)]
            fn fmod(self, other: $t) -> $t { if other == 0 { 0 } else { self.wrapping_rem(other) } }
            #[inline(always)]
            fn remainder(self, other: $t) -> $t {
                let r = self.fmod(other);
                if r != 0 && (r ^ other) >> ($t::BITS - 1) != 0 && $t::MIN != 0 { r.wrapping_add(other) } else { r }
            }
            #[inline(always)]
            fn neg(self) -> $t { self.wrapping_neg() }
            #[inline(always)]
            fn abs(self) -> $t { int!(@$abs self) }
            #[inline(always)]
            fn sign(self) -> $t { int!(@$sign self) }
            #[inline(always)]
            fn maximum(self, other: $t) -> $t { if self > other { self } else { other } }
            #[inline(always)]
            fn minimum(self, other: $t) -> $t { if self < other { self } else { other } }
            #[inline(always)]
            fn pow(self, other: $t) -> $t {
                let inverse = $t::MIN != 0 && other >> ($t::BITS - 1) != 0;
                match (inverse, self) {
                    (false, _) => self.wrapping_pow(other as u32),
                    (true, 1) => 1,
                    // -1 has no other inverse powers that are whole.
                    (true, v) if v.wrapping_add(1) == 0 => if other & 1 == 0 { 1 } else { v },
                    (true, _) => 0,
                }
            }
        }
        impl Int for $t {
            #[inline(always)]
            fn shl(self, by: $t) -> $t { if (by as u32) < $t::BITS { self << by } else { 0 } }
            #[inline(always)]
            fn shr(self, by: $t) -> $t { self >> (by as u32).min($t::BITS - 1) >> u32::from(by as u32 > $t::BITS - 1) }
        }
    )*};
    (@signed_abs $v:ident) => { $v.wrapping_abs() };
    (@signed_sign $v:ident) => { $v.signum() };
    (@unsigned_abs $v:ident) => { $v };
    (@unsigned_sign $v:ident) => { $v.min(1) };
}
int! { i32: signed_abs signed_sign; u32: unsigned_abs unsigned_sign; }

/// A floating-point number. Names and edge cases are `std`'s where it has the function, else PyTorch's.
pub trait Real:
    Num
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + std::ops::Neg<Output = Self>
{
    fn of(v: f64) -> Self;
    fn is_nan(self) -> bool;
    fn is_inf(self) -> bool;
    fn is_finite(self) -> bool;
    fn copysign(self, sign: Self) -> Self;
    fn signbit(self) -> bool;
    fn sqrt(self) -> Self;
    fn floor(self) -> Self;
    fn ceil(self) -> Self;
    fn trunc(self) -> Self;
    /// To the nearest, halves to even.
    fn round(self) -> Self;
    fn exp(self) -> Self;
    /// `exp` of what is not above 0, faster; results too small to be normal numbers may be 0.
    fn exp_not_above_0(self) -> Self;
    fn exp2(self) -> Self;
    fn exp_m1(self) -> Self;
    fn ln(self) -> Self;
    fn ln_1p(self) -> Self;
    fn log2(self) -> Self;
    fn log10(self) -> Self;
    fn sin(self) -> Self;
    fn cos(self) -> Self;
    fn tan(self) -> Self;
    fn asin(self) -> Self;
    fn acos(self) -> Self;
    fn atan(self) -> Self;
    fn atan2(self, x: Self) -> Self;
    fn sinh(self) -> Self;
    fn cosh(self) -> Self;
    fn tanh(self) -> Self;
    fn asinh(self) -> Self;
    fn acosh(self) -> Self;
    fn atanh(self) -> Self;
    fn sigmoid(self) -> Self;
    fn erf(self) -> Self;
    fn erfc(self) -> Self;
    fn lgamma(self) -> Self;
    #[inline(always)]
    fn rsqrt(self) -> Self {
        Self::ONE / self.sqrt()
    }
    #[inline(always)]
    fn recip(self) -> Self {
        Self::ONE / self
    }
}

macro_rules! real {
    ($t:ident, $pow:path, { $($std:ident)* }, { $($ours:ident = $path:path),* $(,)? }) => {
        impl Num for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            #[inline(always)]
            fn add(self, other: $t) -> $t { self + other }
            #[inline(always)]
            fn sub(self, other: $t) -> $t { self - other }
            #[inline(always)]
            fn mul(self, other: $t) -> $t { self * other }
            #[inline(always)]
            fn div(self, other: $t) -> $t { self / other }
            #[inline(always)]
            fn floor_div(self, other: $t) -> $t {
                // From the exact remainder, as PyTorch does: the quotient itself may round up past a whole number.
                let r = self % other;
                let q = (self - r) / other;
                let q = if r != 0.0 && (r < 0.0) != (other < 0.0) { q - 1.0 } else { q };
                let whole = q.floor();
                let whole = if q - whole > 0.5 { whole + 1.0 } else { whole };
                let whole = if q == 0.0 { $t::copysign(0.0, self / other) } else { whole };
                if other == 0.0 { self / other } else { whole }
            }
            #[inline(always)]
            fn fmod(self, other: $t) -> $t { self % other }
            #[inline(always)]
            fn remainder(self, other: $t) -> $t {
                let r = self % other;
                if r != 0.0 && (r < 0.0) != (other < 0.0) { r + other } else { r }
            }
            #[inline(always)]
            fn neg(self) -> $t { -self }
            #[inline(always)]
            fn abs(self) -> $t { $t::abs(self) }
            #[inline(always)]
            fn sign(self) -> $t {
                // Of NaN it is 0, as in PyTorch.
                let s = if self < 0.0 { -1.0 } else { 0.0 };
                if self > 0.0 { 1.0 } else { s }
            }
            #[inline(always)]
            fn maximum(self, other: $t) -> $t {
                // Not less and not NaN keeps `self`; a NaN in `other` fails the comparison and is taken.
                if $t::is_nan(self) || self >= other { self } else { other }
            }
            #[inline(always)]
            fn minimum(self, other: $t) -> $t {
                if $t::is_nan(self) || self <= other { self } else { other }
            }
            #[inline(always)]
            fn pow(self, other: $t) -> $t { $pow(self, other) }
        }
        impl Real for $t {
            #[inline(always)]
            fn of(v: f64) -> $t { v as $t }
            #[inline(always)]
            fn is_nan(self) -> bool { $t::is_nan(self) }
            #[inline(always)]
            fn is_inf(self) -> bool { $t::is_infinite(self) }
            #[inline(always)]
            fn is_finite(self) -> bool { $t::is_finite(self) }
            #[inline(always)]
            fn copysign(self, sign: $t) -> $t { $t::copysign(self, sign) }
            #[inline(always)]
            fn signbit(self) -> bool { $t::is_sign_negative(self) }
            #[inline(always)]
            fn round(self) -> $t { self.round_ties_even() }
            #[inline(always)]
            fn atan2(self, x: $t) -> $t { $t::atan2(self, x) }
            $(#[inline(always)]
            fn $std(self) -> $t { $t::$std(self) })*
            $(#[inline(always)]
            fn $ours(self) -> $t { $path(self) })*
        }
    };
}

real!(f32, math::pow, { sqrt floor ceil trunc log10 asin acos atan sinh cosh asinh acosh atanh }, {
    exp = math::exp, exp_not_above_0 = math::exp_not_above_0, exp2 = math::exp2, exp_m1 = math::exp_m1, ln = math::ln, ln_1p = math::ln_1p,
    log2 = math::log2, sin = math::sin, cos = math::cos, tan = math::tan, tanh = math::tanh,
    sigmoid = math::sigmoid, erf = math::erf, erfc = libm::erfcf, lgamma = libm::lgammaf,
});
real!(f64, f64::powf, {
    sqrt floor ceil trunc exp exp2 exp_m1 ln ln_1p log2 log10 sin cos tan asin acos atan sinh cosh tanh
    asinh acosh atanh
}, { exp_not_above_0 = f64::exp, sigmoid = math::sigmoid64, erf = libm::erf, erfc = libm::erfc, lgamma = libm::lgamma });

/// Conversion of values as PyTorch's `to`: floats truncate, and saturate where the target has no such value
/// (NaN gives 0), as WGSL does; to bool is `!= 0`.
pub trait Cast<To> {
    fn cast(self) -> To;
}

macro_rules! cast {
    ($($from:ty => $($to:ty)+;)*) => {$(
        $(impl Cast<$to> for $from {
            #[inline(always)]
            fn cast(self) -> $to { self as $to }
        })+
        impl Cast<f16> for $from {
            #[inline(always)]
            fn cast(self) -> f16 { f16::from_f64(self as f64) }
        }
        impl Cast<$from> for f16 {
            #[inline(always)]
            fn cast(self) -> $from { self.to_f32() as $from }
        }
        impl Cast<bool> for $from {
            #[inline(always)]
            fn cast(self) -> bool { self.truth() }
        }
        impl Cast<$from> for bool {
            #[inline(always)]
            fn cast(self) -> $from { u32::from(self) as $from }
        }
    )*};
}
cast! {
    u32 => u32 i32 f32 f64;
    i32 => u32 i32 f32 f64;
    f32 => u32 i32 f32 f64;
    f64 => u32 i32 f32 f64;
}
impl Cast<f16> for f16 {
    #[inline(always)]
    fn cast(self) -> f16 {
        self
    }
}
impl Cast<bool> for f16 {
    #[inline(always)]
    fn cast(self) -> bool {
        self.truth()
    }
}
impl Cast<f16> for bool {
    #[inline(always)]
    fn cast(self) -> f16 {
        if self { f16::ONE } else { f16::ZERO }
    }
}
impl Cast<bool> for bool {
    #[inline(always)]
    fn cast(self) -> bool {
        self
    }
}
