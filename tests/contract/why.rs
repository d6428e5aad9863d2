//! Where did my gradient go? In the situations that passes, hooks and modes bring.

use wgrad::autograd::{CutKind, Reason, checkpoint, grad, inference_mode, set_grad_enabled};
use wgrad::prelude::*;

use crate::support::*;

/// The kinds of the cuts that are named.
#[track_caller]
fn cuts(reason: &Reason) -> Vec<CutKind> {
    match reason {
        Reason::Cut(cuts) => cuts.iter().map(|c| c.kind).collect(),
        other => panic!("no cut, but {other:?}"),
    }
}

#[test]
fn each_kind_of_cut_is_named_with_its_line() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let w = leaf(device, &[1.0, 2.0]);
        let lose = |cut: &dyn Fn(&Tensor) -> Tensor| {
            x.set_grad(None);
            let loss = (cut(&(&x * 2)) * &w).sum();
            loss.backward().unwrap();
            let why = x.why_no_grad();
            assert!(why.to_string().contains("why.rs:"), "{why}");
            cuts(&why.reason).remove(0)
        };
        assert_eq!(lose(&|t| t.detach()), CutKind::Detach);
        assert!(matches!(lose(&|t| no_grad(|| t * 3)), CutKind::NoGrad(_)));
        assert!(matches!(
            lose(&|t| {
                let _off = set_grad_enabled(false);
                t * 3
            }),
            CutKind::NoGrad(_)
        ));
        assert_eq!(lose(&|t| t.to(I32).to(F32)), CutKind::Cast);
        assert_eq!(lose(&|t| t.gt(1.0).to(F32)), CutKind::NotDifferentiable);
        let marked = |t: &Tensor| {
            one(custom(
                |ctx, i| {
                    let out = &i[0] * 2;
                    ctx.mark_non_differentiable(&[&out]);
                    vec![out]
                },
                |_, _| vec![None],
                &[t],
            ))
        };
        assert_eq!(lose(&marked), CutKind::Marked);
        assert!(w.why_no_grad().to_string().contains("it has a gradient"));
    });
}

#[test]
fn answers_that_are_no_cuts() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let y = &x * &x;
        let reason = |t: &Tensor, loss: &Tensor| t.why_no_grad_from(loss).reason;
        assert!(matches!(reason(&x, &y), Reason::NoPass));
        y.backward().unwrap();
        assert!(matches!(reason(&x, &y), Reason::HasGrad));
        assert!(matches!(reason(&y, &y), Reason::NotALeaf(_)));
        x.set_grad(None);
        assert!(matches!(reason(&x, &y), Reason::Cleared(at) if at.file().ends_with("why.rs")));
        let z = leaf(device, &[1.0]);
        assert!(matches!(reason(&z, &(&x * 2)), Reason::Unreachable));
        assert!(matches!(plain(device, &[1.0]).why_no_grad().reason, Reason::NotRequired));
        assert!(matches!(plain(device, &[1.0]).to(I32).why_no_grad().reason, Reason::NotFloat));
        let c = inference_mode(|| plain(device, &[1.0]));
        assert!(matches!(c.why_no_grad().reason, Reason::Inference));
        // Freed by an earlier pass, that was `grad`.
        let v = leaf(device, &[1.0]);
        let y = &v * &v;
        grad(&[&y], &[&v]).unwrap();
        assert!(matches!(reason(&v, &y), Reason::Freed));
    });
}

#[test]
fn a_gradient_cleared_before_the_mistake_hides_nothing() {
    each(|device| {
        let w = leaf(device, &[1.0]);
        let other = leaf(device, &[1.0]);
        let step = |mistake: bool| {
            w.set_grad(None);
            other.set_grad(None);
            let hidden = &w * 2;
            let hidden = if mistake { hidden.detach() } else { hidden };
            let loss = (hidden * &other).sum();
            loss.backward().unwrap();
            loss
        };
        let _loss = step(false);
        assert!(w.grad().is_some());
        let loss = step(true);
        assert_eq!(cuts(&w.why_no_grad().reason), [CutKind::Detach]);
        assert_eq!(cuts(&w.why_no_grad_from(&loss).reason), [CutKind::Detach]);
        // Cleared after the pass that gave it: that is the answer.
        let _loss = step(false);
        w.set_grad(None);
        assert!(matches!(w.why_no_grad().reason, Reason::Cleared(_)));
    });
}

#[test]
fn a_gradient_cleared_goes_before_a_loss_that_is_gone() {
    each(|device| {
        let w = leaf(device, &[1.0]);
        (&w * 2).backward().unwrap();
        w.set_grad(None);
        assert!(matches!(w.why_no_grad().reason, Reason::Cleared(_)));
        let v = leaf(device, &[1.0]);
        assert!(matches!(v.why_no_grad().reason, Reason::NoLoss));
    });
}

#[test]
fn checkpoints_and_hooks_are_seen_through() {
    each(|device| {
        let (x, w) = (leaf(device, &[1.0]), leaf(device, &[1.0]));
        let inner = w.clone();
        let y = checkpoint(move |i| i[0].exp().detach() * &inner, &[&x]);
        y.backward().unwrap();
        assert_eq!(cuts(&x.why_no_grad().reason), [CutKind::Detach]);
        assert!(w.grad().is_some());
        // Passes within passes are not the last one.
        let (a, b) = (leaf(device, &[1.0]), leaf(device, &[1.0]));
        let loss = a.detach() * &b;
        loss.register_hook(|_| {
            let v = plain(&cpu(), &[1.0]).requires_grad_(true);
            enable_grad(|| (&v * &v).backward()).unwrap();
        })
        .unwrap();
        loss.backward().unwrap();
        assert_eq!(cuts(&a.why_no_grad().reason), [CutKind::Detach]);
    });
}
