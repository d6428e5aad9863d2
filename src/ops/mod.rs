pub(crate) mod matmul;
