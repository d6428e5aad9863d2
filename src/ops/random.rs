//! Random numbers: Philox 4x32-10 ([Salmon et al. 2011](https://doi.org/10.1145/2063384.2063405)), a function
//! of seed and position, so that both backends draw the same bits.

use super::record::{Arg, Caller, map};
use crate::backend::cpu::philox;
use crate::graph::device::Device;
use crate::graph::dtype::Scalar;
use crate::graph::dtype::{DType, F32, U32};
use crate::graph::layout::Layout;
use crate::graph::node::{Node, NodeOp, Operand};
use crate::graph::program::MapOp;
use crate::tensor::Tensor;

/// 32 random bits. Operands: position, and the stream's seed and offset in low and high words.
pub static BITS: MapOp = MapOp {
    name: "random",
    arity: 5,
    mask_first: false,
    wgsl: "philox_uniform_u32(a, b, c, d, e)",
    wgsl_int: "",
    cpu: &philox::bits_kernel,
    cost: 60,
};

/// Uniform in [0, 1) from 32 bits: the upper 24, which a float holds exactly.
pub static UNIFORM: MapOp = MapOp {
    name: "rand",
    arity: 1,
    mask_first: false,
    wgsl: "R(a >> U(8)) * R(5.9604644775390625e-8)",
    wgsl_int: "",
    cpu: &philox::uniform_kernel,
    cost: 2,
};

/// A draw from the normal distribution, in integer arithmetic up to the last step, so that its bits are equal on
/// all devices. Operands as of [`BITS`].
pub static NORMAL: MapOp = MapOp {
    name: "randn",
    arity: 5,
    mask_first: false,
    wgsl: "philox_normal(a, b, c, d, e)",
    wgsl_int: "",
    cpu: &philox::normal_kernel,
    cost: 200,
};

/// Draws `shape` elements from the device's stream.
fn draw(op: &'static MapOp, result: DType, device: &Device, shape: &[usize], caller: Caller) -> Tensor {
    let layout = Layout::contiguous(shape);
    let stream = device.draw(layout.numel());
    let word = |v: u64, shift: u32| Operand::Scalar(Scalar::Int(i64::from((v >> shift) as u32)));
    let inputs = smallvec::smallvec![
        Operand::Index(layout),
        word(stream.seed, 0),
        word(stream.seed, 32),
        word(stream.offset, 0),
        word(stream.offset, 32)
    ];
    let op = NodeOp::Map { op, operand: U32 };
    Tensor::from_node(Node::record(device, result, shape, op, inputs, caller))
}

pub(crate) fn uniform(device: &Device, dtype: DType, shape: &[usize], caller: Caller) -> Tensor {
    let bits = draw(&BITS, U32, device, shape, caller);
    let unit = map(&UNIFORM, U32, F32, device, shape, &[Arg::from(&bits)], caller);
    super::cast::to_dtype(&unit, dtype, caller)
}

pub(crate) fn normal(device: &Device, dtype: DType, shape: &[usize], caller: Caller) -> Tensor {
    super::cast::to_dtype(&draw(&NORMAL, F32, device, shape, caller), dtype, caller)
}

/// Integers in `[low, high)`: the range scaled by 32 random bits, of which each value gets its share to within
/// one in 2^32.
pub(crate) fn integers(device: &Device, low: i64, high: i64, shape: &[usize], caller: Caller) -> Tensor {
    let bits = draw(&BITS, U32, device, shape, caller);
    let args = [Arg::from(&bits), Arg::from((high - low) as u32 as i64)];
    let scaled = map(&BELOW, U32, U32, device, shape, &args, caller);
    super::cast::to_dtype(&scaled, crate::graph::dtype::I32, caller).add(low)
}

/// `(bits * n) >> 32`.
static BELOW: MapOp = MapOp {
    name: "randint",
    arity: 2,
    mask_first: false,
    wgsl: "mul_hi(a, b)",
    wgsl_int: "",
    cpu: &philox::mul_hi_kernel,
    cost: 10,
};

impl Tensor {
    /// Each element set to zero with probability `p`, the others scaled by `1 / (1 - p)`, while `training`; else
    /// the tensor itself (`torch.nn.functional.dropout`,
    /// [Srivastava et al. 2014](https://jmlr.org/papers/v15/srivastava14a.html)).
    #[track_caller]
    pub fn dropout(&self, p: f64, training: bool) -> Tensor {
        let caller = std::panic::Location::caller();
        if self.error().is_some() {
            return self.clone();
        }
        if !(0.0..=1.0).contains(&p) {
            let message = format!("dropout probability has to be between 0 and 1, but got {p}");
            let kind = crate::error::ErrorKind::Argument;
            return Tensor::invalid(crate::error::Error::at(caller, kind, "dropout", message));
        }
        if !training || p == 0.0 {
            return self.clone();
        }
        let keep = uniform(self.device(), F32, self.shape(), caller).ge(p);
        let scale = if p == 1.0 { 0.0 } else { 1.0 / (1.0 - p) };
        self.mul(scale).where_(&keep, 0.0)
    }
}
