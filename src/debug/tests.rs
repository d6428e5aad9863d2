//! Ops that are deliberately wrong on one backend, and how they are found.

use std::panic::Location;

use super::{Bisection, Diff, KernelDiff};
use crate::block;
use crate::device::Device;
use crate::graph::dtype::F32;
use crate::graph::program::MapOp;
use crate::ops::record::{Arg, map};
use crate::tensor::Tensor;

/// An op whose two kernels are not the same function.
static WRONG: MapOp = MapOp {
    name: "wrong",
    arity: 1,
    mask_first: false,
    wgsl: "a + T(1)",
    wgsl_int: "",
    cpu: block!(float | a | a + T::of(1.5)),
    cost: 1,
};

/// A device of the test's own: of one that is shared, other threads may run what is pending.
fn device() -> Option<Device> {
    let found = crate::backend::gpu::pick(None).ok().map(|backend| Device::new(backend));
    assert!(found.is_some() || std::env::var("WGRAD_REQUIRE_GPU").as_deref() != Ok("1"), "no adapter");
    found
}

fn diff<R>(device: &Device, f: impl FnOnce() -> R) -> crate::Result<(R, Diff)> {
    super::diff(|| {
        let made = f();
        device.flush();
        made
    })
}

fn bisect<R>(device: &Device, f: impl FnOnce() -> R) -> crate::Result<(R, Bisection)> {
    super::bisect(|| {
        let made = f();
        device.flush();
        made
    })
}

#[track_caller]
fn wrong(x: &Tensor) -> Tensor {
    map(&WRONG, F32, F32, x.device(), x.shape(), &[Arg::from(x)], Location::caller())
}

#[test]
fn the_first_wrong_kernel_is_named() {
    let Some(device) = device() else { return };
    let x = crate::options().device(&device).full([2, 3], 3.0);
    let line = line!() + 3;
    let (y, report) = diff(&device, || {
        let right = x.exp().sum();
        let wrong = wrong(&x);
        (right, wrong)
    })
    .unwrap();
    let first = report.first().unwrap();
    assert!(report.kernels.len() > 1 && first.label.contains("wrong"), "{report}");
    assert_eq!((first.caller.file(), first.caller.line()), (file!(), line), "{report}");
    assert_eq!(first.local.map(|g| (g.value, g.reference)), Some((4.0, 4.5)));
    assert!(report.to_string().contains("ulps"), "{report}");
    drop(y);

    let (_, report) = diff(&device, || x.exp().sum_dim(1, false)).unwrap();
    assert!(report.first().is_none() && !report.kernels.is_empty(), "{report}");
    assert!(report.kernels[0].save(std::env::temp_dir()).is_err(), "nothing is kept of what agrees");
}

#[test]
fn errors_are_local_where_they_are_made_and_inherited_from_there_on() {
    let Some(device) = device() else { return };
    let x = crate::options().device(&device).rand([4, 8]);
    x.check().unwrap();
    // Three kernels, and two more in a later flush.
    let (_, report) = diff(&device, || {
        let a = x.softmax(1);
        let b = wrong(&a.matmul(&x.t())).matmul(&x);
        let c = b.square().sum();
        c.check().unwrap();
        (&c * 2.0).exp().check().unwrap();
        c
    })
    .unwrap();
    let at = |label: &str| report.kernels.iter().position(|k| k.label.contains(label)).unwrap();
    let (bad, late) = (report.kernels.iter().position(KernelDiff::differs).unwrap(), at("exp"));
    assert!(bad > 0 && report.kernels[..bad].iter().all(|k| k.inherited.is_none_or(|g| !g.differs())));
    assert!(late > bad && !report.kernels[late].differs(), "{report:#}");
    assert!(report.kernels[late].inherited.unwrap().differs(), "it was given wrong numbers: {report:#}");
    assert_eq!(report.first_inherited().unwrap().label, report.kernels[bad].label);
    assert!(format!("{report:#}").lines().count() > report.kernels.len());
}

#[test]
fn the_op_in_a_fused_kernel_is_named() {
    let Some(device) = device() else { return };
    let x = crate::options().device(&device).rand([5, 7]).requires_grad_(true);
    x.check().unwrap();
    let line = line!() + 3;
    let (_, report) = diff(&device, || {
        let y = (&x * 2.0).exp() + &x.t().contiguous().t();
        let y = wrong(&y);
        (y.sqrt() * &x).detach()
    })
    .unwrap();
    let op = report.first().unwrap().op.clone().unwrap();
    assert_eq!((op.op.as_str(), op.caller.line(), op.alone), ("wrong", line, true), "{op}");
    assert!((op.gap.reference - op.gap.value - 0.5).abs() < 1e-6, "{op}");

    // Before and behind a reduction, and behind a product.
    let line = line!() + 1;
    let (_, report) = diff(&device, || wrong(&x.exp()).sum_dim(1, false) * 2).unwrap();
    let op = report.first().unwrap().op.clone().unwrap();
    assert_eq!((op.op.as_str(), op.caller.line()), ("wrong", line), "{report}");
    let (_, report) = diff(&device, || wrong(&(&x + 1).sum_dim(0, false)).neg().detach()).unwrap();
    assert_eq!(report.first().unwrap().op.clone().unwrap().op, "wrong", "{report}");
    let (_, report) = diff(&device, || (wrong(&x.matmul(&x.t())) * 3).detach()).unwrap();
    assert_eq!(report.first().unwrap().op.clone().unwrap().op, "wrong", "{report}");

    // Behind sums that a weight's gradient computes besides.
    let on = crate::options().device(&device);
    let (images, w, g) =
        (on.rand([2, 3, 6, 6]), on.rand([4, 3, 3, 3]).requires_grad_(true), on.rand([2, 4, 4, 4]));
    device.flush();
    let (_, report) = diff(&device, || {
        let y = images.conv2d(&w, None);
        (crate::autograd::grad_with(&[&y], &[&w], &g).unwrap(), wrong(&g.sum_dim([0, 2, 3], false)))
    })
    .unwrap();
    assert_eq!(report.kernels.len(), 1, "{report}");
    assert_eq!(report.first().unwrap().op.clone().unwrap().op, "wrong", "{report}");
}

/// A whole kernel that is wrong is its own culprit.
#[test]
fn the_anchor_of_a_kernel_is_named() {
    let Some(device) = device() else { return };
    let text = "@compute @workgroup_size(64)
        fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
            let i = invocation(id, groups);
            if i < params.numel { store(i, x[i] * 2.0); }
        }";
    let op = crate::custom::kernel("wrong_kernel", ["x"]).wgsl(text).fuses();
    let op =
        op.cpu(|_, x, out| out.iter_mut().zip(x[0]).for_each(|(o, x)| *o = x * 2.25)).register().unwrap();
    let x = crate::options().device(&device).ones([6]);
    let (_, report) = diff(&device, || op.call(&[&x.exp()]).neg()).unwrap();
    let found = report.first().unwrap().op.clone().unwrap();
    assert_eq!((found.op.as_str(), found.caller.file()), ("wrong_kernel", file!()), "{report}");
}

#[test]
fn a_long_run_is_halved() {
    let Some(device) = device() else { return };
    let x = crate::options().device(&device).rand([4, 8]);
    let run = |bad: usize| {
        let mut y = x.clone();
        let mut kept = vec![];
        for step in 0..6 {
            for _ in 0..5 {
                y = y.softmax(1).matmul(&x.t()).matmul(&x);
            }
            y = if step == bad { wrong(&y) } else { &y + 1.0 };
            y = y.softmax(1);
            y.check().unwrap();
            kept.push(y.clone());
        }
        kept
    };
    let (_, found) = bisect(&device, || run(9)).unwrap();
    assert!(found.culprit.is_none() && found.flushes >= 6 && found.runs == 0, "{found}");
    let (_, found) = bisect(&device, || run(3)).unwrap();
    assert_eq!(
        (found.flushes, found.culprit.as_ref().is_some_and(KernelDiff::differs)),
        (4, true),
        "{found}"
    );
    let op = found.culprit.clone().and_then(|k| k.op).unwrap();
    assert_eq!(op.op, "wrong", "{found}");
    assert!(found.runs <= 6, "halving 17 kernels takes five runs and a look: {found}");
    // Writes in place, and memory that takes turns, change nothing.
    let (_, found) = bisect(&device, || {
        let y = crate::options().device(&device).rand([6, 6]);
        y.i(1).fill_(2.0);
        y.i((.., 2)).copy_(&y.i((.., 3)));
        let z = crate::cat(&[&y, &y.exp()], 0);
        z.i(3).add_(wrong(&y.i(0)));
        z.sum().check().unwrap();
        z
    })
    .unwrap();
    assert_eq!(found.culprit.and_then(|k| k.op).unwrap().op, "wrong");
}

#[cfg(feature = "io")]
#[test]
fn a_kernel_is_saved_and_run_again() {
    let Some(device) = device() else { return };
    let x = crate::options().device(&device).rand([5, 7]);
    let (_, report) =
        diff(&device, || (wrong(&(&x * 2.5)).sum_dim(1, false) + 1.5, wrong(&x.gt(0.5).to(F32)))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let bad: Vec<&KernelDiff> = report.kernels.iter().filter(|k| k.differs()).collect();
    assert!(!bad.is_empty());
    for (i, kernel) in bad.iter().enumerate() {
        let at = folder.path().join(i.to_string());
        kernel.save(&at).unwrap();
        let again = super::replay(&at).unwrap();
        assert!(again.differs() && again.changed.is_none(), "the same device gives the same bits: {again}");
        assert_eq!((again.label.as_str(), again.gap), (kernel.label.as_str(), kernel.local));
        assert!(again.to_string().contains("DIFFERS"), "{again}");
        let program = std::fs::read_to_string(at.join("program.txt")).unwrap();
        assert!(program.contains("= wrong(v") && program.contains("tests.rs"), "{program}");
    }
    // A template with its params, and an op that flags bad indices.
    let text = "@compute @workgroup_size(64)
        fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
            let i = invocation(id, groups);
            if i < params.numel { store(i, x[i] * 2.0); }
        }";
    let op = crate::custom::kernel("wrong_saved", ["x"]).wgsl(text).fuses();
    let op =
        op.cpu(|_, x, out| out.iter_mut().zip(x[0]).for_each(|(o, x)| *o = x * 2.25)).register().unwrap();
    let index = crate::options().device(&device).tensor([0, 2, 1]);
    for run in [&(|| op.call(&[&x]) * 3) as &dyn Fn() -> Tensor, &|| wrong(&x.index_select(0, &index))] {
        let (_, report) = diff(&device, run).unwrap();
        let at = folder.path().join("template");
        report.first().unwrap().save(&at).unwrap();
        let again = super::replay(&at).unwrap();
        assert!(again.differs() && again.changed.is_none(), "{again}");
    }
}

#[cfg(feature = "io")]
#[test]
fn damaged_files_are_told_of() {
    let Some(device) = device() else { return };
    let x = crate::options().device(&device).rand([5, 7]);
    let (_, report) = diff(&device, || wrong(&(&x * 2.5))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let fails = |said: &str| {
        let error = super::replay(at).unwrap_err();
        assert!(error.to_string().contains(said), "{error}, not: {said}");
    };
    fails("kernel.toml");
    let save = || report.first().unwrap().save(at).unwrap();
    save();
    let whole = std::fs::read_to_string(at.join("kernel.toml")).unwrap();
    let change = |from: &str, to: &str| {
        assert!(whole.contains(from), "{whole}");
        std::fs::write(at.join("kernel.toml"), whole.replacen(from, to, 1)).unwrap();
    };
    change("format = 1", "format = 7");
    fails("format 7 is not known");
    change("format = 1", "format 1");
    fails("neither a section nor key = value");
    change("dtype = \"float32\"", "dtype = \"float8\"");
    fails("no type float8");
    change("bytes = 140", "bytes = 1400");
    fails("140 bytes of float32, not 1400");
    change("entry = \"main\"", "entry = \"start\"");
    fails("start");
    change("workgroups = [", "workgroups = [1, ");
    fails("three numbers");
    change("workgroups = [", "workgroups = [99999999");
    assert!(super::replay(at).is_err());
    std::fs::write(at.join("kernel.toml"), [0xff, 0xfe]).unwrap();
    fails("kernel.toml");
    save();
    for file in ["kernel_0.wgsl", "inputs.safetensors", "expected.safetensors", "actual.safetensors"] {
        let path = at.join(file);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(super::replay(at).is_err(), "{file} cut short");
        std::fs::remove_file(&path).unwrap();
        fails(file);
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(super::replay(at).unwrap().differs());
}
