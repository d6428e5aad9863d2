//! Epilogues that run as a kernel of their own.

use crate::graph::kernel::Structured;
use crate::graph::program::{Access, Inst, Program, Store};

/// Bytes of operands from which an epilogue is cut off: what a core's cache holds.
const LARGE: usize = 1 << 20;

/// The op with nothing but a store of its result behind it, and its epilogue as a program that reads that back.
///
/// A kernel that works in tiles meets every operand of its epilogue far from where it met it last. Where that
/// waits for memory each time, as on a CPU, passing over everything once more in order is cheaper. The result waits
/// in a buffer that the epilogue fills anyway. `None` where there is none, or little to gain.
pub fn apart(s: &Structured) -> Option<(Structured, Program)> {
    let post = &s.post;
    let whole = |a: &&Access| {
        (a.layout.shape.iter().zip(&a.layout.strides)).all(|(&size, &stride)| size == 1 || stride != 0)
    };
    let operands = || post.loads.iter().chain(post.stores.iter().map(|s| &s.to)).filter(whole);
    let bytes: usize = operands().map(|a| a.layout.numel() * a.dtype.size()).sum();
    if operands().count() < 3 || bytes < LARGE {
        return None;
    }
    let anchor = post.insts.iter().position(|i| matches!(i, Inst::Anchor(_)))? as u16;
    let fits = |store: &&Store| {
        let binding = store.to.binding;
        let shared = post.loads.iter().any(|l| l.binding == binding)
            || post.stores.iter().filter(|s| s.to.binding == binding).count() > 1;
        store.to.dtype == s.out_dtype && store.to.layout.is_contiguous() && !shared
    };
    let stores = || post.stores.iter().filter(fits);
    let place = stores().find(|s| s.value == anchor).or_else(|| stores().next())?.to.clone();
    let mut after = post.clone();
    for inst in &mut after.insts {
        if matches!(inst, Inst::Anchor(_)) {
            *inst = Inst::Load(post.loads.len() as u16);
        }
    }
    after.loads.push(place.clone());
    after.stores.retain(|s| s.value != anchor || s.to.binding != place.binding);
    if after.stores.is_empty() {
        return None;
    }
    let bare = Program {
        shape: post.shape.clone(),
        insts: vec![Inst::Anchor(s.out_dtype)],
        stores: vec![Store { value: 0, to: place }],
        ..Program::default()
    };
    Some((Structured { post: bare, ..s.clone() }, after))
}
