//! PyTorch's autograd contract, behaviour by behaviour, on both backends.
//!
//! A comment `test_autograd.py::name` above a test names the test of PyTorch's `test/test_autograd.py` whose behaviour it
//! holds; some stand in `tests/autograd.rs`, `tests/views.rs` and `tests/deep.rs`. The test `mirrors` below counts them.
//!
//! # What of `test_autograd.py` has no counterpart
//!
//! - Sparse tensors and layouts (`test_sparse_*`, `test_gradcheck_sparse_input`, `test_no_grad_copy_sparse`, mkldnn): there are none.
//! - Complex numbers (`test_*complex*`, `test_cat_stack_r_to_c`, `TestAutogradComplex`): no complex dtype.
//! - Nested tensors, `torch.func`'s batching (`is_grads_batched`, `test_grad_batched_grad`): there are none.
//! - Forward mode (`TestAutogradForwardMode*`, `jvp` of `Function`, `save_for_forward`): gradients flow backwards here.
//! - The profiler and `record_function` (`test_profiler*`, `test_record_function*`): `WGRAD_DEBUG` does that work.
//! - Pickling, copying and deleting attributes (`test_pickle`, `test_attribute_deletion`, `test_deepcopy`): Python's.
//! - Legacy interfaces (`test_legacy_*`, `test_naughty_*`, `volatile`, `saved_variables`, `Variable`): there never were any.
//! - Python's garbage collector and generators (`test_gc_in_destructor`, `test_set_grad_generator_functions`,
//!   `test_set_grad_coroutines*`, `test_pyobject_preservation`, decorators): there are guards and closures instead.
//! - Subclasses and `__torch_function__` (`test_custom_function_preserve_torch_function_*`): tensors have one type.
//! - `out=` arguments (`test_mul_out*`, `test_out_variant_*`), `Tensor.data`, `detach_`, `resize_`, `set_`: not in the interface.
//! - Version errors (`test_inplace`'s errors, `test_no_grad_modifies_version`, `test_pack_hook_with_inplace_modification_should_fail`):
//!   values are immutable underneath, so what was saved before a write is still there, and the gradient is right. That is
//!   PyTorch's `allow_mutation_on_saved_tensors`, always on; its tests are mirrored instead.
//! - Views that PyTorch forbids to write to because a function made several at once (`test_inplace_on_view_multi_output_*`)
//!   or a `Function` did: they may be written to, with right gradients.
//! - Multi-grad hooks, `saved_tensors_hooks` on single variables (`_raw_saved_self`), `disable_saved_tensors_hooks`,
//!   `set_multithreading_enabled`, `graph.get_gradient_edge`, `allow_mutation_on_saved_tensors` as a switch: not in the interface.
//! - Device specifics (`test_pin_memory`, streams, multi-GPU `test_inputbuffer_add_multidevice`): one GPU at a time.
//! - Early stop, `context_fn`, `determinism_check`, reentrant mode of `checkpoint`: the plain one is there.
//! - Reentrant passes thousands deep (`test_deep_reentrant`): a pass within a pass is recursion on the user's stack here.
//! - Gradients of single operators (`test_cholesky`, `test_fft*`, `test_pow_*`, `test_as_strided`, ...): `tests/operators`.
//! - `gradcheck`, anomaly mode, `torch.autograd.functional`: they have tests of their own.

#[path = "../common/mod.rs"]
mod common;

mod checkpoint;
mod depth;
mod engine;
mod functions;
mod functions_inplace;
mod hooks;
mod hooks_faults;
mod hooks_inplace;
mod inplace;
mod mirrors;
mod modes;
mod reentrant;
mod saved;
mod support;
mod threads;
mod why;
