//! Element types and their rules: sizes, names, promotion. Everything that depends on a dtype's identity
//! alone stands here, so that a new dtype is a change to this file and to the kernels.

use std::fmt;

use half::f16;

/// The element type of a tensor.
///
/// `Bool` is stored as a 32-bit 0 or 1 on every backend, because WGSL has no smaller host-shareable type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    Bool,
    U32,
    I32,
    /// Stored in 16 bits; arithmetic is done in [`F32`], and rounded where a result is stored.
    F16,
    F32,
    /// On the CPU only: WGSL has no 64-bit float.
    F64,
}

pub use DType::{Bool, F16, F32, F64, I32, U32};

impl DType {
    pub const ALL: [DType; 6] = [Bool, U32, I32, F16, F32, F64];

    /// Bytes of one stored element.
    pub const fn size(self) -> usize {
        match self {
            F16 => 2,
            F64 => 8,
            Bool | U32 | I32 | F32 => 4,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, F16 | F32 | F64)
    }

    /// PyTorch's name for it, without the `torch.`.
    pub const fn name(self) -> &'static str {
        match self {
            Bool => "bool",
            U32 => "uint32",
            I32 => "int32",
            F16 => "float16",
            F32 => "float32",
            F64 => "float64",
        }
    }

    /// The type in which values of this type are computed (`opmath_type` in PyTorch's kernels).
    pub const fn opmath(self) -> DType {
        match self {
            F16 => F32,
            other => other,
        }
    }

    /// The type of a result that mixes tensors of both types (`torch.promote_types`): the higher category of
    /// bool < integer < float wins, and within one category the wider. `u32` with `i32` gives `i32`, the
    /// default integer here as `int64` is PyTorch's.
    pub fn promote(self, other: DType) -> DType {
        match (self, other) {
            (U32, I32) | (I32, U32) => I32,
            (a, b) => a.max(b),
        }
    }

    /// The type of `tensor op scalar`: a scalar only widens the category, never the width within it.
    pub fn promote_scalar(self, scalar: Scalar) -> DType {
        match scalar {
            Scalar::Float(_) if !self.is_float() => F32,
            Scalar::Int(_) if self == Bool => I32,
            _ => self,
        }
    }
}

impl DType {
    /// The numbers in `bytes`, which hold elements of this type; part of one at the end is left out.
    pub fn numbers(self, bytes: &[u8]) -> Vec<f64> {
        fn all<T: Element>(bytes: &[u8]) -> Vec<f64>
        where
            Scalar: From<T>,
        {
            T::from_bytes(bytes).into_iter().map(|v| Scalar::from(v).as_f64()).collect()
        }
        let bytes = &bytes[..bytes.len() / self.size() * self.size()];
        match self {
            Bool => all::<bool>(bytes),
            U32 => all::<u32>(bytes),
            I32 => all::<i32>(bytes),
            F16 => all::<f16>(bytes),
            F32 => all::<f32>(bytes),
            F64 => all::<f64>(bytes),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A number given by the host. It is a parameter of a kernel, not part of it: two graphs that differ in
/// scalars share one plan.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Scalar {
    Bool(bool),
    Int(i64),
    Float(f64),
}

impl Scalar {
    pub fn as_f64(self) -> f64 {
        match self {
            Scalar::Bool(v) => f64::from(u8::from(v)),
            Scalar::Int(v) => v as f64,
            Scalar::Float(v) => v,
        }
    }

    /// The bits of this number converted to `dtype`, in the low bytes. Integers wrap, as PyTorch's do.
    pub fn bits(self, dtype: DType) -> u64 {
        let int = match self {
            Scalar::Float(v) => v as i64,
            Scalar::Int(v) => v,
            Scalar::Bool(v) => i64::from(v),
        };
        match dtype {
            Bool => u64::from(self.as_f64() != 0.0),
            U32 | I32 => u64::from(int as u32),
            F32 => match self {
                // i64 -> f32 directly: through f64 it would round twice.
                Scalar::Int(v) => u64::from((v as f32).to_bits()),
                _ => u64::from((self.as_f64() as f32).to_bits()),
            },
            F16 => u64::from(f16::from_f64(self.as_f64()).to_bits()),
            F64 => self.as_f64().to_bits(),
        }
    }
}

macro_rules! scalar_from {
    ($($kind:ident as $wide:ty: $($t:ty)*;)*) => {$($(
        impl From<$t> for Scalar {
            fn from(v: $t) -> Scalar { Scalar::$kind(v as $wide) }
        }
    )*)*};
}
scalar_from! { Bool as bool: bool; Int as i64: i32 i64 u32 usize isize; Float as f64: f32 f64; }

impl From<f16> for Scalar {
    fn from(v: f16) -> Scalar {
        Scalar::Float(v.to_f64())
    }
}

/// A Rust type that is the element of a tensor.
pub trait Element: Copy + Send + Sync + fmt::Debug + PartialEq + 'static {
    const DTYPE: DType;
    fn to_bytes(values: &[Self]) -> Vec<u8>;
    /// The values stored in `bytes`, which hold elements of `DTYPE`.
    fn from_bytes(bytes: &[u8]) -> Vec<Self>;
}

macro_rules! element {
    ($($t:ty = $dtype:ident),*) => {$(
        impl Element for $t {
            const DTYPE: DType = $dtype;
            fn to_bytes(values: &[Self]) -> Vec<u8> { bytemuck::cast_slice(values).to_vec() }
            fn from_bytes(bytes: &[u8]) -> Vec<Self> { bytemuck::pod_collect_to_vec(bytes) }
        }
    )*};
}
element! { u32 = U32, i32 = I32, f32 = F32, f64 = F64 }

impl Element for f16 {
    const DTYPE: DType = F16;
    fn to_bytes(values: &[f16]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_ne_bytes()).collect()
    }
    fn from_bytes(bytes: &[u8]) -> Vec<f16> {
        u16s(bytes).map(f16::from_bits).collect()
    }
}

/// The 16-bit words in `bytes`.
pub(crate) fn u16s(bytes: &[u8]) -> impl ExactSizeIterator<Item = u16> + '_ {
    bytes.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
}

impl Element for bool {
    const DTYPE: DType = Bool;
    fn to_bytes(values: &[Self]) -> Vec<u8> {
        values.iter().flat_map(|&v| u32::from(v).to_ne_bytes()).collect()
    }
    fn from_bytes(bytes: &[u8]) -> Vec<Self> {
        u32::from_bytes(bytes).into_iter().map(|v| v != 0).collect()
    }
}
