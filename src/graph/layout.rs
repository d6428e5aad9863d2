//! Where the elements of a tensor lie in its storage: shape, strides, offset. Views are changes to a layout;
//! no data moves.

use smallvec::SmallVec;

/// Sizes or strides, one per dimension. Five dimensions fit without an allocation.
pub type Dims = SmallVec<[usize; 5]>;

/// Element `(i, j, …)` lies at `offset + i * strides[0] + j * strides[1] + …`.
#[derive(PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    pub shape: Dims,
    pub strides: Dims,
    pub offset: usize,
}

impl Clone for Layout {
    /// As derived, but `SmallVec` clones one element at a time, and every recorded op clones layouts.
    fn clone(&self) -> Layout {
        let copy = |dims: &Dims| Dims::from_slice(dims);
        Layout { shape: copy(&self.shape), strides: copy(&self.strides), offset: self.offset }
    }
}

/// The number of elements of a shape; 1 for a 0-dim one.
pub fn numel(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Row-major strides. Dimensions of size 0 count as 1, as in PyTorch.
pub fn contiguous_strides(shape: &[usize]) -> Dims {
    let mut strides = Dims::from_elem(1, shape.len());
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d].max(1);
    }
    strides
}

impl Layout {
    pub fn contiguous(shape: &[usize]) -> Layout {
        Layout { shape: Dims::from_slice(shape), strides: contiguous_strides(shape), offset: 0 }
    }

    pub fn numel(&self) -> usize {
        numel(&self.shape)
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Row-major without gaps; strides of dimensions of size 1 do not matter.
    pub fn is_contiguous(&self) -> bool {
        if self.numel() == 0 {
            return true;
        }
        let mut expected = 1;
        for (&n, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if n != 1 && stride != expected {
                return false;
            }
            expected *= n;
        }
        true
    }

    /// Whether two coordinates may share one element (a stride of 0 over more than one element, or an
    /// overlap), so that writing through this layout has no defined result.
    pub fn may_overlap(&self) -> bool {
        let mut dims: SmallVec<[(usize, usize); 5]> =
            self.strides.iter().copied().zip(self.shape.iter().copied()).filter(|&(_, n)| n > 1).collect();
        dims.sort_unstable();
        let mut reach = 0; // the farthest element that the smaller strides reach
        for (stride, n) in dims {
            if stride <= reach {
                return true;
            }
            reach += stride * (n - 1);
        }
        false
    }

    /// One past the last element of storage that this layout touches; 0 when it is empty.
    pub fn end(&self) -> usize {
        if self.numel() == 0 {
            return 0;
        }
        let last: usize = self.shape.iter().zip(&self.strides).map(|(&n, &stride)| (n - 1) * stride).sum();
        self.offset + last + 1
    }

    /// Broadcast to `shape`: dimensions of size 1, and new leading ones, are repeated with stride 0.
    pub fn expand(&self, shape: &[usize]) -> Option<Layout> {
        let lead = shape.len().checked_sub(self.rank())?;
        let mut strides = Dims::from_elem(0, shape.len());
        for d in 0..self.rank() {
            match (self.shape[d], shape[lead + d]) {
                (a, b) if a == b => strides[lead + d] = self.strides[d],
                (1, _) => {}
                _ => return None,
            }
        }
        Some(Layout { shape: Dims::from_slice(shape), strides, offset: self.offset })
    }

    pub fn permute(&self, order: &[usize]) -> Layout {
        Layout {
            shape: order.iter().map(|&d| self.shape[d]).collect(),
            strides: order.iter().map(|&d| self.strides[d]).collect(),
            offset: self.offset,
        }
    }

    /// Elements `start, start + step, …` of dimension `dim`, `len` of them.
    pub fn slice(&self, dim: usize, start: usize, len: usize, step: usize) -> Layout {
        let mut out = self.clone();
        out.shape[dim] = len;
        if len > 0 {
            out.offset += start * self.strides[dim];
        }
        out.strides[dim] *= step;
        out
    }

    pub fn remove_dim(&self, dim: usize) -> Layout {
        let mut out = self.clone();
        out.shape.remove(dim);
        out.strides.remove(dim);
        out
    }

    pub fn insert_dim(&self, dim: usize) -> Layout {
        let mut out = self.clone();
        let stride = if dim < self.rank() { self.shape[dim].max(1) * self.strides[dim] } else { 1 };
        out.shape.insert(dim, 1);
        out.strides.insert(dim, stride);
        out
    }

    /// The same elements in the same order under another shape, if that needs no copy
    /// (`at::detail::computeStride`). `None` also when the element counts differ.
    pub fn reshape(&self, shape: &[usize]) -> Option<Layout> {
        if numel(shape) != self.numel() {
            return None;
        }
        if self.numel() == 0 || self.is_contiguous() {
            return Some(Layout { offset: self.offset, ..Layout::contiguous(shape) });
        }
        // Runs of old dimensions that lie densely behind one another can be cut anew.
        let mut strides = Dims::from_elem(1, shape.len());
        let mut new = shape.len();
        let mut run = 1; // elements in the current run of old dimensions
        let mut base = self.strides[self.rank() - 1];
        for d in (0..self.rank()).rev() {
            run *= self.shape[d];
            let ends = d == 0 || (self.shape[d - 1] != 1 && self.strides[d - 1] != run * base);
            if !ends {
                continue;
            }
            let mut taken = 1;
            while new > 0 && (taken < run || shape[new - 1] == 1) {
                new -= 1;
                strides[new] = taken * base;
                taken *= shape[new];
            }
            if taken != run {
                return None;
            }
            if d > 0 {
                run = 1;
                base = self.strides[d - 1];
            }
        }
        (new == 0).then(|| Layout { shape: Dims::from_slice(shape), strides, offset: self.offset })
    }

    /// This view, taken not of storage but of the elements of `inner` in row-major order, as one layout of
    /// `inner`'s storage. `None` where a single layout cannot say it.
    pub fn compose(&self, inner: &Layout) -> Option<Layout> {
        if inner.is_contiguous() {
            return Some(Layout { offset: self.offset + inner.offset, ..self.clone() });
        }
        // Write the offset and every stride in the mixed radix of inner's shape. A stride must step along
        // one inner dimension only, and no step may carry over into the next.
        let radix = contiguous_strides(&inner.shape);
        let split = |mut v: usize| -> Dims { radix.iter().map(|&r| (v / r, v %= r).0).collect() };
        let start = split(self.offset);
        let mut reach = start.clone();
        let mut strides = Dims::new();
        for (&n, &stride) in self.shape.iter().zip(&self.strides) {
            let step = split(stride);
            for d in 0..inner.rank() {
                reach[d] += step[d] * n.saturating_sub(1);
            }
            strides.push(step.iter().zip(&inner.strides).map(|(a, b)| a * b).sum());
        }
        if self.numel() > 0 && reach.iter().zip(&inner.shape).any(|(&r, &n)| r >= n) {
            return None;
        }
        let offset = inner.offset + start.iter().zip(&inner.strides).map(|(a, b)| a * b).sum::<usize>();
        Some(Layout { shape: self.shape.clone(), strides, offset })
    }
}

/// The shape two shapes broadcast to, or `None`.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Dims> {
    let rank = a.len().max(b.len());
    if a == b {
        return Some(Dims::from_slice(a));
    }
    let at = |s: &[usize], d: usize| (d + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank)
        .map(|d| match (at(a, d), at(b, d)) {
            (m, n) if m == n => Some(m),
            (1, n) | (n, 1) => Some(n),
            _ => None,
        })
        .collect()
}

/// Merges neighbouring dimensions that every one of `strides` (each over `shape`) steps through as one, and
/// drops those of size 1: fewer dimensions mean less index arithmetic in kernels.
pub fn collapse(shape: &[usize], strides: &mut [&mut Dims]) -> Dims {
    let mut out: Dims = Dims::new();
    let mut kept: SmallVec<[Dims; 8]> = strides.iter().map(|_| Dims::new()).collect();
    for d in 0..shape.len() {
        if shape[d] == 1 {
            continue;
        }
        let merges = !out.is_empty()
            && strides
                .iter()
                .zip(&kept)
                .all(|(s, k)| k.last().is_some_and(|&outer| outer == s[d] * shape[d]));
        if merges {
            if let Some(n) = out.last_mut() {
                *n *= shape[d];
            }
        } else {
            out.push(shape[d]);
        }
        for (s, k) in strides.iter().zip(&mut kept) {
            if merges {
                k.pop();
            }
            k.push(s[d]);
        }
    }
    for (s, k) in strides.iter_mut().zip(kept) {
        **s = k;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(l: &Layout) -> Vec<usize> {
        let mut out = vec![];
        for i in 0..l.numel() {
            let (mut rest, mut at) = (i, l.offset);
            for d in (0..l.rank()).rev() {
                at += rest % l.shape[d] * l.strides[d];
                rest /= l.shape[d];
            }
            out.push(at);
        }
        out
    }

    #[test]
    fn reshape_keeps_the_order_of_elements_or_declines() {
        let base = Layout::contiguous(&[4, 6, 5]);
        let views = [
            base.clone(),
            base.permute(&[1, 0, 2]),
            base.slice(1, 1, 4, 1),
            base.slice(2, 0, 3, 2),
            base.slice(0, 1, 1, 1),
            Layout::contiguous(&[4, 1, 5]).expand(&[4, 6, 5]).unwrap(),
        ];
        let mut done = 0;
        for v in &views {
            let n = v.numel();
            for shape in
                [vec![n], vec![1, n, 1], vec![2, n / 2], vec![n / 2, 2], vec![v.shape[0], n / v.shape[0]]]
            {
                if numel(&shape) != n {
                    continue;
                }
                if let Some(r) = v.reshape(&shape) {
                    assert_eq!(offsets(&r), offsets(v), "{v:?} as {shape:?}");
                    done += 1;
                }
            }
        }
        assert!(done >= 10, "{done} views had a shape that needs no copy");
        assert!(base.permute(&[1, 0, 2]).reshape(&[120]).is_none());
        assert!(base.slice(1, 1, 4, 1).reshape(&[4, 20]).is_some());
    }

    #[test]
    fn compose_agrees_with_indexing_twice() {
        let inner = Layout::contiguous(&[6, 4]).permute(&[1, 0]); // [4, 6]
        let seen = Layout::contiguous(&[4, 6]);
        for view in [seen.clone(), seen.permute(&[1, 0]), seen.slice(0, 1, 2, 2), seen.slice(1, 2, 1, 1)] {
            let both = view.compose(&inner).unwrap();
            let table = offsets(&inner);
            assert_eq!(offsets(&both), offsets(&view).into_iter().map(|i| table[i]).collect::<Vec<_>>());
        }
        assert!(seen.reshape(&[24]).unwrap().compose(&inner).is_none());
    }

    #[test]
    fn overlap_and_collapse() {
        assert!(!Layout::contiguous(&[3, 4]).may_overlap());
        assert!(Layout::contiguous(&[1, 4]).expand(&[3, 4]).unwrap().may_overlap());
        let (mut a, mut b) = (Dims::from_slice(&[12, 4, 1]), Dims::from_slice(&[0, 0, 1]));
        assert_eq!(collapse(&[2, 3, 4], &mut [&mut a, &mut b])[..], [6, 4]);
        assert_eq!((&a[..], &b[..]), (&[4, 1][..], &[0, 1][..]));
    }
}
