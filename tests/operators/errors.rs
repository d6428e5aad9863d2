//! Bad inputs: refused with the declared kind, a message that names op and shapes, and the caller's line; and
//! everything else goes on as before.

use wgrad::ops::samples::all;
use wgrad::prelude::*;

use crate::Failures;
use crate::common::devices;

#[test]
fn bad_inputs_are_refused() {
    let ops = all();
    let bad: Vec<_> = ops.iter().flat_map(|op| &op.bad).collect();
    assert!(bad.len() > 100, "only {}", bad.len());
    let mut failures = Failures::default();
    for device in devices() {
        for bad in &bad {
            let mut fail =
                |what: String| failures.add(format!("{} (bad.rs:{}) on {device}: {what}", bad.op, bad.line));
            let out = (bad.run)(&device);
            let Some(error) = out.error() else {
                fail(format!("accepted, and made {:?}", out.shape()));
                continue;
            };
            if error.kind() != bad.kind {
                fail(format!("kind {:?} instead of {:?}: {error}", error.kind(), bad.kind));
            }
            let text = error.to_string();
            if error.op() != bad.op || !text.starts_with(&format!("{}: ", bad.op)) {
                fail(format!("op '{}': {error}", error.op()));
            }
            for part in bad.says.iter().filter(|p| !text.contains(*p)) {
                fail(format!("the message lacks '{part}': {error}"));
            }
            let at = error.caller();
            if !at.file().ends_with("bad.rs") || at.line() != bad.line {
                fail(format!("says it happened at {at}"));
            }
            // What is made of it is invalid for the same reason, wherever it is read.
            let later = (&out + 1.0).sum();
            if later.error().map(|e| e.to_string()) != Some(text.clone()) {
                fail(format!("was forgotten: {:?}", later.error()));
            }
            for read in [later.check(), later.to_vec::<f32>().map(drop), later.backward()] {
                if read.as_ref().map_err(ToString::to_string) != Err(text.clone()) {
                    fail(format!("reading gave {read:?}"));
                }
            }
        }
        // And all is well with everything else.
        let x = options().device(&device).requires_grad(true).ones([2, 2]);
        x.exp().sum().backward().unwrap();
        let e = std::f32::consts::E;
        assert!(x.grad().unwrap().to_vec::<f32>().unwrap().iter().all(|v| (v - e).abs() < 1e-5));
    }
    failures.finish(bad.len());
}

/// Indices are known to the device only: those out of range are an error where values are read, and nowhere before.
#[test]
fn indices_out_of_range_are_errors_when_read() {
    for device in devices() {
        let o = || options().device(&device);
        let x = o().requires_grad(true).ones([3, 2]);
        for index in [3, -1, i32::MAX, i32::MIN] {
            let index = o().tensor([0, index]);
            let two = o().ones([2, 2]);
            let results = [
                x.index_select(0, &index),
                x.gather(0, &index.unsqueeze(1)),
                x.embedding(&index),
                x.detach().scatter_add(0, &index.unsqueeze(1).expand([2, 2]), &two),
                x.cross_entropy(&cat(&[&index, &o().tensor([0])], 0)),
            ];
            for (k, out) in results.into_iter().enumerate() {
                assert!(
                    out.error().is_none(),
                    "{k} with {index} known too early on {device}: {:?}",
                    out.error()
                );
                let Err(error) = (&out * 2).sum().to_vec::<f32>() else {
                    panic!("result {k} with index {index} on {device} was read");
                };
                assert_eq!(error.kind(), ErrorKind::Index, "{k} on {device}: {error}");
                assert!(error.caller().file().ends_with("errors.rs"), "{k} on {device}: {error}");
            }
        }
        // And goes on.
        assert_eq!(x.index_select(0, &o().tensor([2, 0])).sum().item::<f32>().unwrap(), 4.0);
    }
}
