//! Computing again instead of keeping: what a part of the forward pass would save is made anew for the way back.

use std::any::Any;
use std::collections::HashMap;
use std::panic::Location;
use std::sync::Arc;

use parking_lot::Mutex;

use super::engine::{at_end_of_pass, current_pass};
use super::forms::Outputs;
use super::is_grad_enabled;
use super::mode::record_gradients;
use super::saved::{Pair, Saved, push};
use crate::error::{Error, ErrorKind, on_own_lines};
use crate::graph::draws::{DrawLog, log_draws, replay_draws};
use crate::tensor::Tensor;

/// Runs `f` on `inputs` without keeping what it saves for the way back: a backward pass runs it a second time
/// and takes from that what it needs (`torch.utils.checkpoint.checkpoint` with `use_reentrant=False`).
///
/// Memory for time: of everything between the inputs and the outputs nothing stays. The second run draws the same
/// random numbers as the first. Checkpoints may be nested, parameters that `f` captures get their gradients, and
/// gradients of gradients work. `f` should do the same both times; what else it does (a running average of a
/// batch norm) happens twice.
///
/// # Errors
/// In the backward pass, if the second run saves other tensors than the first.
///
/// ```
/// # use wgrad::prelude::*;
/// let w = randn([8, 8]).requires_grad_(true);
/// let x = randn([4, 8]);
/// let block = {
///     let w = w.clone();
///     move |x: &[Tensor]| x[0].matmul(&w).tanh().dropout(0.5, true)
/// };
/// let y = autograd::checkpoint(block, &[&x]);
/// y.sum().backward()?;
/// assert!(w.grad().is_some());
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn checkpoint<R: Outputs>(f: impl Fn(&[Tensor]) -> R + Send + Sync + 'static, inputs: &[&Tensor]) -> R {
    let inputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
    if !is_grad_enabled() {
        return f(&inputs);
    }
    let frame = Arc::new(Frame {
        caller: crate::error::line(Location::caller()),
        // They may be what an outer checkpoint does not keep: saved as a function's inputs are.
        inputs: inputs.iter().map(|t| (Saved::value(t), t.requires_grad())).collect(),
        run: Mutex::new(None),
        draws: Mutex::default(),
        saved: Mutex::default(),
        underway: Mutex::new(Some(vec![])),
        again: Mutex::default(),
    });
    super::saved::saved_since(); // the frame's, not the next function's
    let underway = Underway(frame.clone());
    let hooks = push(Some(Arc::new(Recording(frame.clone()))));
    let (out, draws) = log_draws(|| f(&inputs));
    drop(hooks);
    *frame.draws.lock() = draws;
    *frame.run.lock() = Some(Arc::new(move |inputs| drop(f(inputs))));
    drop(underway);
    out
}

/// A chain of functions, each of `segments` parts of it [`checkpoint`]ed (`torch.utils.checkpoint.checkpoint_sequential`).
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// let layers: Vec<fn(&Tensor) -> Tensor> = vec![Tensor::exp, Tensor::tanh, Tensor::exp, Tensor::sigmoid];
/// autograd::checkpoint_sequential(layers, 2, &x).sum().backward()?;
/// assert!(x.grad().is_some());
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn checkpoint_sequential<F>(functions: Vec<F>, segments: usize, input: &Tensor) -> Tensor
where
    F: Fn(&Tensor) -> Tensor + Send + Sync + 'static,
{
    let per = functions.len().div_ceil(segments.max(1)).max(1);
    let mut functions = functions.into_iter().peekable();
    let mut x = input.clone();
    while functions.peek().is_some() {
        let part: Vec<F> = functions.by_ref().take(per).collect();
        x = checkpoint(move |x: &[Tensor]| part.iter().fold(x[0].clone(), |x, f| f(&x)), &[&x]);
    }
    x
}

type Run = Arc<dyn Fn(&[Tensor]) + Send + Sync>;

/// One checkpointed call.
struct Frame {
    caller: &'static Location<'static>,
    /// Its inputs' values, and whether gradients flow to them.
    inputs: Vec<(Saved, bool)>,
    run: Mutex<Option<Run>>,
    draws: Mutex<DrawLog>,
    /// What the first run saved: shapes and types, to hold the second against.
    saved: Mutex<Vec<Look>>,
    /// What the first run saved, while it lasts: a backward pass in there cannot have it computed again.
    underway: Mutex<Option<Vec<Tensor>>>,
    /// What second runs saved, by the pass that needed it.
    again: Mutex<HashMap<u64, Again>>,
}

type Look = (Vec<usize>, crate::graph::dtype::DType);

/// What one second run saved, in order; gone once taken by a function that is done with it.
type Again = Vec<Option<Tensor>>;

/// The first run, which ends also by unwinding.
struct Underway(Arc<Frame>);

impl Drop for Underway {
    fn drop(&mut self) {
        let saved = self.0.underway.lock().take();
        drop(saved); // outside the lock
    }
}

/// Stands for a saved tensor: which one it was.
struct Place {
    frame: Arc<Frame>,
    at: usize,
}

impl Drop for Place {
    /// The function that saved it is freed: nobody will ask again.
    fn drop(&mut self) {
        let taken: Vec<Option<Tensor>> = self
            .frame
            .again
            .lock()
            .values_mut()
            .filter_map(|v| v.get_mut(self.at).map(Option::take))
            .collect();
        drop(taken); // outside the lock
    }
}

/// The hooks of the first run: they keep nothing.
struct Recording(Arc<Frame>);

impl Pair for Recording {
    fn pack(&self, tensor: &Tensor) -> Arc<dyn Any + Send + Sync> {
        // Kept until the run has ended. That costs nothing where nothing is computed before, and no more than the
        // second run does.
        if let Some(underway) = &mut *self.0.underway.lock() {
            underway.push(tensor.clone());
        }
        let mut saved = self.0.saved.lock();
        saved.push((tensor.shape().to_vec(), tensor.dtype()));
        Arc::new(Place { frame: self.0.clone(), at: saved.len() - 1 })
    }

    fn unpack(&self, packed: &(dyn Any + Send + Sync)) -> Tensor {
        match packed.downcast_ref::<Place>() {
            Some(place) => self.0.value(place.at),
            None => Tensor::invalid(self.0.fault("what was packed is of another type")),
        }
    }
}

/// The hooks of a second run: they keep everything.
struct Replaying(Arc<Mutex<Vec<Tensor>>>);

impl Pair for Replaying {
    fn pack(&self, tensor: &Tensor) -> Arc<dyn Any + Send + Sync> {
        self.0.lock().push(tensor.clone());
        Arc::new(tensor.clone())
    }

    fn unpack(&self, packed: &(dyn Any + Send + Sync)) -> Tensor {
        match packed.downcast_ref::<Tensor>() {
            Some(tensor) => tensor.clone(),
            None => Tensor::invalid(Error::new(
                ErrorKind::Autograd,
                "checkpoint",
                "what was packed is of another type",
            )),
        }
    }
}

impl Frame {
    fn fault(&self, message: impl Into<String>) -> Error {
        Error::at(self.caller, ErrorKind::Autograd, "checkpoint", message)
    }

    /// Tensor number `at` of those that were saved, from a second run.
    fn value(self: &Arc<Frame>, at: usize) -> Tensor {
        if let Some(tensor) = self.underway.lock().as_ref().and_then(|saved| saved.get(at)) {
            return tensor.clone();
        }
        let pass = current_pass();
        if let Some(pass) = pass
            && let Some(Some(tensor)) = self.again.lock().get(&pass).and_then(|again| again.get(at))
        {
            return tensor.clone();
        }
        let made = match self.second_run() {
            Ok(made) => made,
            Err(error) => return Tensor::invalid(error),
        };
        let Some(tensor) = made.get(at).cloned() else {
            return Tensor::invalid(self.fault("the second run saved less"));
        };
        if let Some(pass) = pass {
            self.again.lock().insert(pass, made.into_iter().map(Some).collect());
            let frame = Arc::downgrade(self);
            at_end_of_pass(move || {
                let again = frame.upgrade().and_then(|frame| frame.again.lock().remove(&pass));
                drop(again); // outside the lock
            });
        }
        tensor
    }

    fn second_run(&self) -> Result<Vec<Tensor>, Error> {
        let Some(run) = self.run.lock().clone() else {
            return Err(self.fault("the first run ended with a panic"));
        };
        let inputs: Vec<Tensor> =
            (self.inputs.iter()).map(|(s, grad)| s.without_history().requires_grad_(*grad)).collect();
        let made = Arc::new(Mutex::new(vec![]));
        {
            let _mode = record_gradients(true);
            let _hooks = push(Some(Arc::new(Replaying(made.clone()))));
            let draws = self.draws.lock().clone();
            on_own_lines(|| replay_draws(draws, || run(&inputs)));
        }
        let made = std::mem::take(&mut *made.lock());
        let first = self.saved.lock();
        if made.len() != first.len() {
            let message = format!(
                "A different number of tensors was saved during the original forward and recomputation: {} and {}",
                first.len(),
                made.len()
            );
            return Err(self.fault(message));
        }
        for (i, (t, (shape, dtype))) in made.iter().zip(first.iter()).enumerate() {
            if let Some(error) = t.error() {
                return Err(error);
            }
            if t.shape() != &shape[..] || t.dtype() != *dtype {
                let message = format!(
                    "Recomputed values for the following tensors have different metadata than during the forward pass: \
                     saved tensor {i} was {dtype} of shape {shape:?}, and is {} of shape {:?}",
                    t.dtype(),
                    t.shape()
                );
                return Err(self.fault(message));
            }
        }
        Ok(made)
    }
}
