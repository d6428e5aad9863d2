//! Templates with what is fused behind them, against the CPU.

use super::*;
use crate::prelude::*;

/// The same on both devices.
fn agree(f: impl Fn(&Device) -> Tensor) {
    let read = |d: &Device| f(d).to(DType::F32).to_vec::<f32>().unwrap();
    let (here, there) = (read(&crate::device::cpu()), read(&crate::device::gpu().unwrap()));
    assert_eq!(here.len(), there.len());
    for (i, (a, b)) in here.iter().zip(&there).enumerate() {
        assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "element {i}: {a} on the CPU, {b} on the GPU");
    }
}

#[test]
fn epilogues_follow_templates() {
    for columns in [7usize, 8] {
        let x: Vec<f32> = (0..6 * columns).map(|i| (i as f32 * 0.7).sin()).collect();
        let at = |d: &Device| tensor(x.clone()).to(d).reshape([6, columns as isize]);
        let rows = |d: &Device| tensor([5i32, 0, 0, 3]).to(d);
        // A scaled copy, a broadcast operand, a transposed one, a bool result.
        agree(|d| at(d).softmax(1).mul(3.0).add(at(d)));
        agree(|d| at(d).softmax(1).add(at(d).select(0, 2)));
        agree(|d| at(d).softmax(1).gt(0.2));
        agree(|d| at(d).matmul(&at(d).t()).relu().mul(0.5));
        agree(|d| at(d).index_select(0, &rows(d)).mul(2.0));
        // Bools, which are numbers in memory.
        agree(|d| at(d).gt(0.0).index_select(0, &rows(d)));
        agree(|d| at(d).gt(0.0).index_select(0, &rows(d)).logical_not());
    }
}

#[test]
fn a_bad_index_comes_out_when_read() {
    // Another test's read of the shared one would take the error.
    let d = Device::new(Arc::new(another(|_, _| {})));
    let x = tensor([1.0, 2.0, 3.0]).to(&d);
    let bad = x.index_select(0, &tensor([0i32, 7]).to(&d));
    let error = bad.to_vec::<f32>().expect_err("the index is out of range");
    assert_eq!(error.kind(), crate::error::ErrorKind::Index, "{error}");
    assert!(error.to_string().contains("structured.rs"), "{error}");
    // Said once; what comes after is whole.
    assert_eq!(x.index_select(0, &tensor([2i32]).to(&d)).to_vec::<f32>().unwrap(), [3.0]);
}
