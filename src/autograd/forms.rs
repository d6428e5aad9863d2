//! One tensor or several: what the functions that are differentiated take, give, and are multiplied with.

use std::borrow::Borrow;

use crate::error::Result;
use crate::tensor::Tensor;

/// What a function is differentiated with respect to: `&x` for a function of one tensor, `|x| x.exp()`; a slice,
/// array or vector of tensors or of references for one of several, `|x| &x[0] * &x[1]`.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::hessian;
/// let (x, y) = (tensor([1.0]), tensor([2.0]));
/// assert_eq!(hessian(|x| x * x, &x)?.shape(), [1, 1]);
/// assert_eq!(hessian(|t| &t[0] * &t[1], &[&x, &y])?[0][1].item::<f32>()?, 1.0);
/// assert_eq!(hessian(|t| &t[0] * &t[1], &vec![x, y])?.len(), 2);
/// # Ok::<(), wgrad::Error>(())
/// ```
pub trait Inputs {
    /// What the function is given a reference to: a `Tensor`, or `[Tensor]`.
    type Given: ?Sized;
    /// One `T` for each input: a `T`, or a `Vec<T>`.
    type Each<T: Clone>: Clone;
    /// Whether this is a tensor alone.
    const SINGLE: bool;

    fn tensors(&self) -> Vec<Tensor>;
    /// As many tensors as [`tensors`](Inputs::tensors) gave, in the form that the function takes.
    fn given(all: &[Tensor]) -> &Self::Given;
    /// As many values as there are inputs, in their form.
    fn each<T: Clone>(all: &[T]) -> Self::Each<T>;
}

impl Inputs for &Tensor {
    type Given = Tensor;
    type Each<T: Clone> = T;
    const SINGLE: bool = true;

    fn tensors(&self) -> Vec<Tensor> {
        vec![(*self).clone()]
    }
    fn given(all: &[Tensor]) -> &Tensor {
        &all[0]
    }
    fn each<T: Clone>(all: &[T]) -> T {
        all[0].clone()
    }
}

macro_rules! several {
    ($([$($n:tt)*] $form:ty;)*) => {$(
        impl<T: Borrow<Tensor>, $($n)*> Inputs for $form {
            type Given = [Tensor];
            type Each<U: Clone> = Vec<U>;
            const SINGLE: bool = false;

            fn tensors(&self) -> Vec<Tensor> {
                self.iter().map(|t| t.borrow().clone()).collect()
            }
            fn given(all: &[Tensor]) -> &[Tensor] {
                all
            }
            fn each<U: Clone>(all: &[U]) -> Vec<U> {
                all.to_vec()
            }
        }
    )*};
}
several! {
    [] &[T];
    [] &Vec<T>;
    [const N: usize] &[T; N];
}

/// What a differentiated function gives: a tensor, or a vector, array or tuple of them, or a `Result` of these.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::jacobian;
/// let x = tensor([1.0, 2.0]);
/// let (a, b) = jacobian(|x| (x * 2.0, x.sum()), &x)?;
/// let [c] = jacobian(|x| [x.sum()], &x)?;
/// let d = jacobian(|x| x.check().map(|()| x.sum()), &x)?;
/// assert_eq!((a.shape(), b.shape(), c.shape(), d.shape()), (&[2, 2][..], &[2][..], &[2][..], &[2][..]));
/// # Ok::<(), wgrad::Error>(())
/// ```
pub trait Outputs {
    /// One `T` for each output: a `T`, or a vector, array or tuple of them.
    type Each<T: Clone>: Clone;
    /// Whether this is a tensor alone.
    const SINGLE: bool;

    /// # Errors
    /// The function's own.
    fn tensors(self) -> Result<Vec<Tensor>>;
    /// As many values as there are outputs, in their form.
    fn each<T: Clone>(all: &[T]) -> Self::Each<T>;
}

impl Outputs for Tensor {
    type Each<T: Clone> = T;
    const SINGLE: bool = true;

    fn tensors(self) -> Result<Vec<Tensor>> {
        Ok(vec![self])
    }
    fn each<T: Clone>(all: &[T]) -> T {
        all[0].clone()
    }
}

impl Outputs for Vec<Tensor> {
    type Each<T: Clone> = Vec<T>;
    const SINGLE: bool = false;

    fn tensors(self) -> Result<Vec<Tensor>> {
        Ok(self)
    }
    fn each<T: Clone>(all: &[T]) -> Vec<T> {
        all.to_vec()
    }
}

impl<const N: usize> Outputs for [Tensor; N] {
    type Each<T: Clone> = [T; N];
    const SINGLE: bool = false;

    fn tensors(self) -> Result<Vec<Tensor>> {
        Ok(self.into())
    }
    fn each<T: Clone>(all: &[T]) -> [T; N] {
        std::array::from_fn(|i| all[i].clone())
    }
}

impl<O: Outputs> Outputs for Result<O> {
    type Each<T: Clone> = O::Each<T>;
    const SINGLE: bool = O::SINGLE;

    fn tensors(self) -> Result<Vec<Tensor>> {
        self?.tensors()
    }
    fn each<T: Clone>(all: &[T]) -> O::Each<T> {
        O::each(all)
    }
}

macro_rules! tuples {
    ($($t:ty, [$($i:tt)*];)*) => {$(
        impl Outputs for $t {
            type Each<T: Clone> = tuples!(@of T [$($i)*]);
            const SINGLE: bool = false;

            fn tensors(self) -> Result<Vec<Tensor>> {
                Ok(vec![$(self.$i),*])
            }
            fn each<T: Clone>(all: &[T]) -> Self::Each<T> {
                ($(all[$i].clone(),)*)
            }
        }
    )*};
    (@of $t:ident [$($i:tt)*]) => { ($(tuples!(@one $t $i),)*) };
    (@one $t:ident $i:tt) => { $t };
}
tuples! {
    (Tensor, Tensor), [0 1];
    (Tensor, Tensor, Tensor), [0 1 2];
    (Tensor, Tensor, Tensor, Tensor), [0 1 2 3];
}

/// What a Jacobian or Hessian is multiplied with: tensors in the form of the inputs or outputs, or `None` where
/// there is but one element, for 1.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::jvp;
/// let x = tensor([3.0]);
/// let one = jvp(|x| x * x, &x, None)?.1;
/// let two = jvp(|x| x * x, &x, &tensor([2.0]))?.1;
/// let sum = jvp(|t| &t[0] * &t[1], &[&x, &x], &[&one, &two])?.1;
/// assert_eq!((one.item::<f32>()?, two.item::<f32>()?, sum.item::<f32>()?), (6.0, 12.0, 54.0));
/// # Ok::<(), wgrad::Error>(())
/// ```
pub trait Vectors {
    fn vectors(&self) -> Option<Vec<Tensor>>;
}

impl<I: Inputs> Vectors for I {
    fn vectors(&self) -> Option<Vec<Tensor>> {
        Some(self.tensors())
    }
}

impl Vectors for Option<&Tensor> {
    fn vectors(&self) -> Option<Vec<Tensor>> {
        self.map(|t| vec![t.clone()])
    }
}
