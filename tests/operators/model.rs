//! Tensors as simply as can be: numbers in shared storage, read through strides, computed at once. What random
//! programs must come to.

use std::cell::RefCell;
use std::rc::Rc;

use wgrad::prelude::*;

#[derive(Clone)]
pub struct Model {
    pub storage: Rc<RefCell<Vec<f64>>>,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
    pub offset: usize,
    pub dtype: DType,
}

pub fn numel(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Programs of many steps would else broadcast until no memory holds the result.
pub const MOST_ELEMENTS: usize = 1 << 18;

/// All coordinates of a shape, row-major.
pub fn coordinates(shape: &[usize]) -> Vec<Vec<usize>> {
    (0..numel(shape))
        .map(|mut i| {
            let mut at: Vec<usize> = (shape.iter().rev())
                .map(|&n| {
                    let c = i % n;
                    i /= n;
                    c
                })
                .collect();
            at.reverse();
            at
        })
        .collect()
}

pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |s: &[usize], d: usize| if d + s.len() < rank { 1 } else { s[d + s.len() - rank] };
    (0..rank)
        .map(|d| match (size(a, d), size(b, d)) {
            (m, n) if m == n => Some(m),
            (1, n) | (n, 1) => Some(n),
            _ => None,
        })
        .collect()
}

impl Model {
    pub fn new(shape: &[usize], dtype: DType, values: Vec<f64>) -> Model {
        assert_eq!(numel(shape), values.len());
        let mut strides = vec![1; shape.len()];
        for d in (1..shape.len()).rev() {
            strides[d - 1] = strides[d] * shape[d].max(1);
        }
        Model { storage: Rc::new(RefCell::new(values)), shape: shape.into(), strides, offset: 0, dtype }
    }

    fn place(&self, at: &[usize]) -> usize {
        self.offset + at.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<usize>()
    }

    pub fn at(&self, at: &[usize]) -> f64 {
        self.storage.borrow()[self.place(at)]
    }

    pub fn values(&self) -> Vec<f64> {
        coordinates(&self.shape).iter().map(|at| self.at(at)).collect()
    }

    pub fn largest(&self) -> f64 {
        self.values().iter().fold(0.0, |m, v| m.max(v.abs()))
    }

    /// Whether two coordinates share an element.
    pub fn overlaps(&self) -> bool {
        let mut places: Vec<usize> = coordinates(&self.shape).iter().map(|at| self.place(at)).collect();
        let all = places.len();
        places.sort_unstable();
        places.dedup();
        places.len() < all
    }

    pub fn map(&self, dtype: DType, f: impl Fn(f64) -> f64) -> Model {
        Model::new(&self.shape, dtype, self.values().into_iter().map(f).collect())
    }

    /// Broadcast to a shape, as a view.
    pub fn expand(&self, shape: &[usize]) -> Model {
        let lead = shape.len() - self.shape.len();
        let stride = |d: usize| match d.checked_sub(lead) {
            Some(i) if self.shape[i] == shape[d] => self.strides[i],
            _ => 0,
        };
        Model { shape: shape.into(), strides: (0..shape.len()).map(stride).collect(), ..self.clone() }
    }

    /// `None` where the shapes do not fit each other, or would grow past what a test has time for.
    pub fn zip(&self, other: &Model, dtype: DType, f: impl Fn(f64, f64) -> f64) -> Option<Model> {
        let shape = broadcast(&self.shape, &other.shape).filter(|s| numel(s) <= MOST_ELEMENTS)?;
        let (a, b) = (self.expand(&shape).values(), other.expand(&shape).values());
        Some(Model::new(&shape, dtype, a.into_iter().zip(b).map(|(a, b)| f(a, b)).collect()))
    }

    pub fn transpose(&self, a: usize, b: usize) -> Model {
        let mut out = self.clone();
        out.shape.swap(a, b);
        out.strides.swap(a, b);
        out
    }

    pub fn slice(&self, d: usize, start: usize, len: usize, step: usize) -> Model {
        let mut out = self.clone();
        out.offset += start * self.strides[d];
        out.shape[d] = len;
        out.strides[d] *= step;
        out
    }

    pub fn select(&self, d: usize, i: usize) -> Model {
        let mut out = self.slice(d, i, 1, 1);
        out.shape.remove(d);
        out.strides.remove(d);
        out
    }

    pub fn unsqueeze(&self, d: usize) -> Model {
        let mut out = self.clone();
        out.shape.insert(d, 1);
        out.strides.insert(d, 0);
        out
    }

    /// Over one dimension, which stays with size 1.
    pub fn reduce(&self, d: usize, dtype: DType, f: impl Fn(f64, f64) -> f64) -> Model {
        let mut shape = self.shape.clone();
        shape[d] = 1;
        let values = coordinates(&shape)
            .into_iter()
            .map(|mut at| {
                let column = (0..self.shape[d]).map(|i| {
                    at[d] = i;
                    self.at(&at)
                });
                column.reduce(&f).unwrap()
            })
            .collect();
        Model::new(&shape, dtype, values)
    }

    pub fn cat(&self, other: &Model, d: usize, dtype: DType) -> Model {
        let mut shape = self.shape.clone();
        shape[d] += other.shape[d];
        let values = coordinates(&shape)
            .into_iter()
            .map(|mut at| {
                if at[d] < self.shape[d] {
                    return self.at(&at);
                }
                at[d] -= self.shape[d];
                other.at(&at)
            })
            .collect();
        Model::new(&shape, dtype, values)
    }

    pub fn matmul(&self, other: &Model, dtype: DType) -> Model {
        let (m, k, n) = (self.shape[0], self.shape[1], other.shape[1]);
        let entry = |at: &Vec<usize>| (0..k).map(|i| self.at(&[at[0], i]) * other.at(&[i, at[1]])).sum();
        Model::new(&[m, n], dtype, coordinates(&[m, n]).iter().map(entry).collect())
    }

    pub fn index_select(&self, d: usize, index: &[usize]) -> Model {
        let mut shape = self.shape.clone();
        shape[d] = index.len();
        let values = coordinates(&shape)
            .into_iter()
            .map(|mut at| {
                at[d] = index[at[d]];
                self.at(&at)
            })
            .collect();
        Model::new(&shape, self.dtype, values)
    }

    /// Takes the values of another, broadcast.
    pub fn write(&self, from: &Model) {
        let values = from.expand(&self.shape).values();
        for (at, v) in coordinates(&self.shape).iter().zip(values) {
            let v = if self.dtype == Bool { f64::from(u8::from(v != 0.0)) } else { v };
            let place = self.place(at);
            self.storage.borrow_mut()[place] = v;
        }
    }
}
