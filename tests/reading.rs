//! Reading without blocking, and from many threads.

mod common;

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use common::devices;
use wgrad::prelude::*;

/// The smallest executor: it sleeps until it is woken.
fn wait<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        std::thread::park();
    }
}

#[test]
fn values_come_without_blocking() {
    for device in devices() {
        let x = options().device(&device).arange(0, 6, 1).reshape([2, 3]);
        assert_eq!(wait(x.t().to_vec_async::<i32>()).unwrap(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(wait(x.to_vec_async::<f32>()).unwrap_err().kind(), ErrorKind::DType);
    }
}

#[test]
fn threads_may_share_tensors() {
    fn sendable<T: Send + Sync>() {}
    sendable::<Tensor>();
    for device in devices() {
        let w = options().device(&device).requires_grad(true).ones([64]);
        std::thread::scope(|scope| {
            for k in 1..=4 {
                let w = w.clone();
                scope.spawn(move || {
                    for _ in 0..25 {
                        let y = (&w * k).sum();
                        assert_eq!(y.item::<f32>().unwrap(), 64.0 * k as f32);
                        assert_eq!(
                            autograd::grad(&[&y], &[&w]).unwrap()[0].to_vec::<f32>().unwrap(),
                            [k as f32; 64]
                        );
                    }
                });
            }
        });
    }
}

#[test]
fn no_thread_loses_a_gradient() {
    for device in devices() {
        let w = options().device(&device).requires_grad(true).ones([8]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..25).for_each(|_| (&w * 2).sum().backward().unwrap()));
            }
        });
        assert_eq!(w.grad().unwrap().to_vec::<f32>().unwrap(), [200.0; 8], "on {device}");
    }
}
