//! What the modules share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use wgrad::autograd::{Context, Function};
use wgrad::prelude::*;

use crate::common::{assert_close, devices};

/// Runs a test on every device.
pub fn each(test: impl Fn(&Device)) {
    devices().iter().for_each(test);
}

pub fn leaf(device: &Device, values: &[f64]) -> Tensor {
    options().device(device).requires_grad(true).tensor(values)
}

pub fn plain(device: &Device, values: &[f64]) -> Tensor {
    options().device(device).tensor(values)
}

#[track_caller]
pub fn is(t: &Tensor, expected: &[f64]) {
    assert_close(t, expected, 1e-6, "the value");
}

#[track_caller]
pub fn grad_is(t: &Tensor, expected: &[f64]) {
    let grad = t.grad().expect("a gradient");
    assert_eq!((grad.shape(), grad.dtype(), grad.device()), (t.shape(), t.dtype(), t.device()));
    assert_close(&grad, expected, 1e-6, "grad");
}

/// Asserts that it failed, with these words.
#[track_caller]
pub fn fails<T>(result: Result<T>, words: &str) -> Error {
    match result {
        Ok(_) => panic!("no error where there should be: {words}"),
        Err(error) => {
            assert!(error.message().contains(words), "{error}\ndoes not say: {words}");
            error
        }
    }
}

pub fn retain() -> Backward {
    Backward::new().retain_graph(true)
}

pub fn create() -> Backward {
    Backward::new().create_graph(true)
}

/// How often something happened.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Count {
    pub fn up(&self) {
        self.add(1);
    }

    pub fn add(&self, n: usize) {
        self.0.fetch_add(n, Ordering::SeqCst);
    }

    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// What happened, in order.
pub struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Clone for Log<T> {
    fn clone(&self) -> Log<T> {
        Log(self.0.clone())
    }
}

impl<T> Log<T> {
    pub fn new() -> Log<T> {
        Log(Arc::new(Mutex::new(vec![])))
    }

    pub fn push(&self, what: T) {
        self.0.lock().unwrap().push(what);
    }

    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Counts its drops.
pub struct Dropped(pub Count);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.up();
    }
}

/// A function made of two closures.
pub struct Custom<F, B>(pub F, pub B);

impl<F, B> Function for Custom<F, B>
where
    F: Fn(&mut Context, &[Tensor]) -> Vec<Tensor> + Send + Sync + 'static,
    B: Fn(&Context, &[Option<Tensor>]) -> Vec<Option<Tensor>> + Send + Sync + 'static,
{
    fn forward(&self, ctx: &mut Context, inputs: &[Tensor]) -> Vec<Tensor> {
        (self.0)(ctx, inputs)
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        (self.1)(ctx, grads)
    }
}

/// Applies a function made of two closures.
#[track_caller]
pub fn custom<F, B>(forward: F, backward: B, inputs: &[&Tensor]) -> Vec<Tensor>
where
    F: Fn(&mut Context, &[Tensor]) -> Vec<Tensor> + Send + Sync + 'static,
    B: Fn(&Context, &[Option<Tensor>]) -> Vec<Option<Tensor>> + Send + Sync + 'static,
{
    Custom(forward, backward).apply(inputs)
}

/// The only result.
#[track_caller]
pub fn one(mut outputs: Vec<Tensor>) -> Tensor {
    assert_eq!(outputs.len(), 1);
    outputs.remove(0)
}

/// On a thread with the stack that threads have by default, so that recursion shows.
pub fn on_small_stack(f: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(2 << 20).spawn_scoped(scope, f).unwrap().join().unwrap();
    });
}
