//! A thousand steps of each feature of autograd end with the live buffers they began with. A file of its own with one
//! test, for other tests' buffers would count as well.

mod common;

use std::sync::{Arc, Mutex};

use common::devices;
use wgrad::autograd::{
    Context, Function, checkpoint, checkpoint_sequential, grad, grad_with, inference_mode, save_on_cpu,
    saved_tensors_hooks,
};
use wgrad::prelude::*;

struct Exp;

impl Function for Exp {
    fn forward(&self, ctx: &mut Context, inputs: &[Tensor]) -> Vec<Tensor> {
        let out = inputs[0].exp();
        ctx.save_for_backward(&[&inputs[0], &out]);
        ctx.insert(inputs[0].clone());
        vec![out]
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        vec![grads[0].as_ref().map(|g| g * &ctx.saved_tensors()[1])]
    }
}

struct Double;

impl Function for Double {
    fn forward(&self, ctx: &mut Context, inputs: &[Tensor]) -> Vec<Tensor> {
        ctx.mark_dirty(&[&inputs[0]]);
        vec![inputs[0].mul_(2)]
    }

    fn backward(&self, _: &Context, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        vec![grads[0].as_ref().map(|g| g * 2)]
    }
}

fn create() -> Backward {
    Backward::new().create_graph(true)
}

fn nested(x: &Tensor, depth: usize) -> Tensor {
    match depth {
        0 => x.tanh(),
        _ => checkpoint(move |x| nested(&x[0].sin(), depth - 1) * &x[0], &[x]),
    }
}

type Step = fn(&Tensor);

/// Each uses its leaf's gradient at the end, so that everything is computed.
const FEATURES: [(&str, Step); 17] = [
    ("hooks", |w| {
        let seen: Arc<Mutex<Vec<Tensor>>> = Arc::default();
        let keep = seen.clone();
        let y = w * w;
        y.register_hook(|g| g * 2).unwrap();
        y.grad_fn().unwrap().register_prehook(|_| ());
        y.grad_fn()
            .unwrap()
            .register_hook(move |i, _| keep.lock().unwrap().extend(i.iter().flatten().cloned()));
        let handle = w.register_hook(|g| g + 1).unwrap();
        let after = w.register_post_accumulate_grad_hook(|w| drop(w.grad().unwrap().mul_(2))).unwrap();
        y.sum().backward().unwrap();
        handle.remove();
        after.remove();
    }),
    ("hooks that are never called", |w| {
        let y = (w * w).exp();
        let held = y.detach();
        y.register_hook(move |g| g * &held).unwrap();
        drop(y);
        (w * w).sum().backward().unwrap();
    }),
    ("a hook that fails", |w| {
        let y = (w * w).exp();
        y.register_hook(|g| g.reshape([9])).unwrap();
        assert!(y.sum().backward().is_err());
        (w * w).sum().backward().unwrap();
    }),
    ("saved-tensor hooks", |w| {
        saved_tensors_hooks(|t| t * 2, |t| t / 2, || w.square().exp().sum()).backward().unwrap();
    }),
    ("saved on the host", |w| save_on_cpu(|| w.square().exp().sum()).backward().unwrap()),
    ("functions", |w| Exp.apply(&[&Exp.apply(&[w])[0]])[0].sum().backward().unwrap()),
    ("functions twice differentiated", |w| {
        let y = Exp.apply(&[w]).remove(0).sum();
        grad_with(&[&y], &[w], create()).unwrap()[0].sum().backward().unwrap();
    }),
    ("functions that write", |w| {
        let y = w * 1;
        Double.apply(&[&y.narrow(0, 0, 2)]);
        y.square().sum().backward().unwrap();
    }),
    ("checkpoint", |w| checkpoint(|x| x[0].exp().dropout(0.5, true).tanh(), &[w]).sum().backward().unwrap()),
    ("checkpoint, retained and dropped", |w| {
        let parts: Vec<fn(&Tensor) -> Tensor> = vec![Tensor::exp, Tensor::tanh, Tensor::sin];
        let y = checkpoint_sequential(parts, 2, w).sum();
        y.backward_with(Backward::new().retain_graph(true)).unwrap();
        drop(checkpoint(|x| x[0].exp(), &[&y]));
    }),
    ("nested checkpoints", |w| {
        let y = nested(w, 3).sum();
        grad_with(&[&y], &[w], create()).unwrap()[0].square().sum().backward().unwrap();
    }),
    ("double backward", |w| {
        (w * w * w).sum().backward_with(create()).unwrap();
        let g = w.grad().unwrap();
        w.set_grad(None);
        g.square().sum().backward().unwrap();
    }),
    ("double backward into itself", |w| {
        // In PyTorch this is a cycle that must be broken by hand.
        (w * w * w).sum().backward_with(create()).unwrap();
    }),
    ("cuts", |w| {
        let held = no_grad(|| w * 3) + (w * 2).detach() + w.gt(0.0).to(F32);
        let loss = (&held * w).sum();
        loss.backward().unwrap();
        assert!(
            !held.why_no_grad().to_string().is_empty() && !w.why_no_grad_from(&loss).to_string().is_empty()
        );
    }),
    ("inference mode", |w| {
        let c = inference_mode(|| (w * 3).exp());
        (w * c).sum().backward().unwrap();
    }),
    ("writes in place on views", |w| {
        let y = w * 1;
        let (a, b) = (y.narrow(0, 0, 2), y.view([2, 2]).t());
        a.mul_(w.narrow(0, 1, 2));
        b.i(0).exp_();
        a.retain_grad();
        y.add_(1);
        (a.sum() + b.square().sum()).backward().unwrap();
        assert!(a.grad().is_some());
    }),
    ("retain_grad and grad()", |w| {
        let y = w * w;
        y.retain_grad();
        let z = (&y * 2).exp().sum();
        drop(grad_with(&[&z], &[&y, w], Backward::new().retain_graph(true)).unwrap());
        z.backward().unwrap();
        assert!(y.grad().is_some());
        drop(grad(&[&(w * w).sum()], &[w]).unwrap());
    }),
];

#[test]
fn a_thousand_steps_of_each_feature_leave_nothing_behind() {
    for device in devices() {
        let w = options().device(&device).requires_grad(true).tensor([0.1, 0.2, 0.3, 0.4]);
        for (name, step) in FEATURES {
            let run = |steps: usize| {
                for _ in 0..steps {
                    step(&w);
                    w.grad().unwrap().check().unwrap();
                    w.set_grad(None);
                }
                device.synchronize().unwrap();
                let memory = device.memory();
                (memory.live_buffers, memory.live_bytes)
            };
            let (start, before) = (std::time::Instant::now(), run(3));
            assert_eq!(run(1_000), before, "{name} leaves buffers behind on {device}");
            eprintln!("{device}: {name}: {:?}", start.elapsed());
        }
    }
}
