//! Inputs that ops must refuse.

use super::{Bad, bad};
use crate::error::ErrorKind::{Argument, Autograd, DType, Device as Place, Index, Shape};
use crate::graph::device::Device;
use crate::graph::dtype::{Bool, I32};
use crate::nn::{BatchNorm1d, BatchNorm2d, Module};
use crate::ops::attention::Attention;
use crate::ops::cat::{cat, stack};
use crate::ops::conv::{Conv, Padding};
use crate::ops::elementwise::TABLE;
use crate::ops::loss::CrossEntropy;
use crate::ops::norm::BatchNorm;
use crate::ops::pool::Pool;
use crate::ops::record::Arg;
use crate::tensor::{Tensor, options};

fn f(d: &Device, shape: &[usize]) -> Tensor {
    options().device(d).ones(shape)
}

fn int(d: &Device, shape: &[usize]) -> Tensor {
    options().device(d).dtype(I32).zeros(shape)
}

fn truth(d: &Device, shape: &[usize]) -> Tensor {
    options().device(d).dtype(Bool).ones(shape)
}

fn training() -> BatchNorm {
    BatchNorm { training: true, ..BatchNorm::default() }
}

#[rustfmt::skip] // one line each: an error must name its own
pub(super) fn all() -> Vec<Bad> {
    let mut out = vec![
        bad("pow", Shape, &["[2, 3]", "[4]"], |d| f(d, &[2, 3]).pow(f(d, &[4]))),
        bad("clamp", Shape, &["[2, 3]", "[4]"], |d| f(d, &[2, 3]).clamp(f(d, &[4]), 1.0)),
        bad("where", Shape, &["[2, 3]", "[4]"], |d| f(d, &[2, 3]).where_(&f(d, &[4]).gt(0.0), 1.0)),
        bad("sum", Index, &["-2, 1", "2"], |d| f(d, &[2, 3]).sum_dim(2, false)),
        bad("sum", Index, &["dim 1", "multiple"], |d| f(d, &[2, 3]).sum_dim([1, -1], false)),
        bad("mean", DType, &["int32"], |d| int(d, &[2]).mean()),
        bad("mean", Index, &["-3"], |d| f(d, &[2, 3]).mean_dim(-3, true)),
        bad("prod", Index, &["5"], |d| f(d, &[2, 3]).prod_dim(5, false)),
        bad("amax", Shape, &["non-zero"], |d| f(d, &[2, 0]).amax(1, false)),
        bad("amin", Index, &["7"], |d| f(d, &[2]).amin(7, false)),
        bad("argmax", Shape, &["non-zero"], |d| f(d, &[0]).argmax()),
        bad("argmin", Index, &["2"], |d| f(d, &[3]).argmin_dim(2, false)),
        bad("var", DType, &["int32"], |d| int(d, &[2]).var((), 1.0, false)),
        bad("var", Index, &["4"], |d| f(d, &[2]).std(4, 1.0, false)),
        bad("logsumexp", Index, &["2"], |d| f(d, &[2, 2]).logsumexp(2, false)),
        bad("softmax", Index, &["2"], |d| f(d, &[2, 2]).softmax(2)),
        bad("log_softmax", Index, &["-3"], |d| f(d, &[2, 2]).log_softmax(-3)),
        bad("layer_norm", Shape, &["[4]", "[2, 3]"], |d| f(d, &[2, 3]).layer_norm(4, None, None, 1e-5)),
        bad("layer_norm", Shape, &["[4, 2, 3]", "[2, 3]"], |d| f(d, &[2, 3]).layer_norm([4, 2, 3], None, None, 1e-5)),
        bad("layer_norm", Shape, &["1-dimensional"], |d| f(d, &[2, 3]).layer_norm((), None, None, 1e-5)),
        bad("layer_norm", Shape, &["weight", "[1, 3]"], |d| f(d, &[2, 3]).layer_norm(3, Some(&f(d, &[1, 3])), None, 1e-5)),
        bad("layer_norm", Shape, &["bias", "[2]"], |d| f(d, &[2, 3]).layer_norm(3, None, Some(&f(d, &[2])), 1e-5)),
        bad("layer_norm", DType, &["int32"], |d| int(d, &[2, 3]).layer_norm(3, None, None, 1e-5)),
        bad("layer_norm", DType, &["weight", "int32"], |d| f(d, &[2, 3]).layer_norm(3, Some(&int(d, &[3])), None, 1e-5)),
        bad("rms_norm", Shape, &["[-1]", "[2, 3]"], |d| f(d, &[2, 3]).rms_norm(-1, None, None)),
        bad("rms_norm", Shape, &["weight", "[2]"], |d| f(d, &[2, 3]).rms_norm(3, Some(&f(d, &[2])), None)),
        bad("rms_norm", DType, &["int32"], |d| int(d, &[2, 3]).rms_norm(3, None, None)),
        bad("batch_norm", Shape, &["2 dimensions", "[3]"], |d| f(d, &[3]).batch_norm(&training())),
        bad("batch_norm", Argument, &["more than 1 value", "[1, 3, 1]"], |d| f(d, &[1, 3, 1]).batch_norm(&training())),
        bad("batch_norm", Argument, &["running_mean and running_var"], |d| f(d, &[2, 3]).batch_norm(&BatchNorm::default())),
        bad("batch_norm", Shape, &["running_var", "3", "[2]"], |d| f(d, &[2, 3]).batch_norm(&BatchNorm { running_var: Some(f(d, &[2])), ..training() })),
        bad("batch_norm", Shape, &["weight", "3", "[1, 3]"], |d| f(d, &[2, 3]).batch_norm(&BatchNorm { weight: Some(f(d, &[1, 3])), ..training() })),
        bad("batch_norm", DType, &["bias", "int32"], |d| f(d, &[2, 3]).batch_norm(&BatchNorm { bias: Some(int(d, &[3])), ..training() })),
        bad("batch_norm", DType, &["int32"], |d| int(d, &[2, 3]).batch_norm(&training())),
        bad("BatchNorm1d", Shape, &["2D or 3D", "4D"], |d| BatchNorm1d::with(3, 1e-5, None, true, true, &options().device(d)).forward(&f(d, &[2, 3, 2, 2]))),
        bad("BatchNorm2d", Shape, &["4D", "2D"], |d| BatchNorm2d::with(3, 1e-5, None, true, true, &options().device(d)).forward(&f(d, &[2, 3]))),
        bad("matmul", Shape, &["[2, 3]", "[2, 3]"], |d| f(d, &[2, 3]).matmul(&f(d, &[2, 3]))),
        bad("matmul", Shape, &["[2, 2, 3]", "[3, 3, 2]"], |d| f(d, &[2, 2, 3]).matmul(&f(d, &[3, 3, 2]))),
        bad("matmul", Shape, &["0D"], |d| f(d, &[]).matmul(&f(d, &[3]))),
        bad("mm", Shape, &["[2]", "[2, 3]"], |d| f(d, &[2]).mm(&f(d, &[2, 3]))),
        bad("mv", Shape, &["[2, 3]", "[2, 3]"], |d| f(d, &[2, 3]).mv(&f(d, &[2, 3]))),
        bad("dot", Shape, &["[2]", "[3]"], |d| f(d, &[2]).dot(&f(d, &[3]))),
        bad("bmm", Shape, &["[2, 2, 3]", "[1, 3, 2]"], |d| f(d, &[2, 2, 3]).bmm(&f(d, &[1, 3, 2]))),
        bad("matmul", Shape, &["[2, 3]", "[4, 2]"], |d| f(d, &[2, 3]).linear(&f(d, &[2, 4]), None)),
        bad("scaled_dot_product_attention", Shape, &["at least 2", "1"], |d| f(d, &[2]).scaled_dot_product_attention(&f(d, &[3, 2]), &f(d, &[3, 2]))),
        bad("scaled_dot_product_attention", Shape, &["[2, 4]", "[3, 2]"], |d| f(d, &[2, 4]).scaled_dot_product_attention(&f(d, &[3, 2]), &f(d, &[3, 2]))),
        bad("scaled_dot_product_attention", Shape, &["[3, 2]", "[4, 2]"], |d| f(d, &[2, 2]).scaled_dot_product_attention(&f(d, &[3, 2]), &f(d, &[4, 2]))),
        bad("scaled_dot_product_attention", Shape, &["[2, 2, 2]", "[3, 3, 2]"], |d| f(d, &[2, 2, 2]).scaled_dot_product_attention(&f(d, &[3, 3, 2]), &f(d, &[3, 3, 2]))),
        bad("scaled_dot_product_attention", DType, &["int32"], |d| int(d, &[2, 2]).scaled_dot_product_attention(&int(d, &[3, 2]), &int(d, &[3, 2]))),
        bad("scaled_dot_product_attention", DType, &["float32", "int32"], |d| f(d, &[2, 2]).scaled_dot_product_attention(&f(d, &[3, 2]), &int(d, &[3, 2]))),
        bad("scaled_dot_product_attention", DType, &["attn_mask", "int32"], |d| f(d, &[2, 2]).scaled_dot_product_attention_with(&f(d, &[3, 2]), &f(d, &[3, 2]), &Attention { attn_mask: Some(int(d, &[2, 3])), ..Attention::default() })),
        bad("scaled_dot_product_attention", Shape, &["[2, 2, 3]", "[2, 3]"], |d| f(d, &[2, 2]).scaled_dot_product_attention_with(&f(d, &[3, 2]), &f(d, &[3, 2]), &Attention { attn_mask: Some(f(d, &[2, 2, 3])), ..Attention::default() })),
        bad("scaled_dot_product_attention", Argument, &["is_causal"], |d| f(d, &[2, 2]).scaled_dot_product_attention_with(&f(d, &[3, 2]), &f(d, &[3, 2]), &Attention { attn_mask: Some(f(d, &[2, 3])), is_causal: true, ..Attention::default() })),
        bad("scaled_dot_product_attention", Argument, &["1.5"], |d| f(d, &[2, 2]).scaled_dot_product_attention_with(&f(d, &[3, 2]), &f(d, &[3, 2]), &Attention { dropout_p: 1.5, ..Attention::default() })),
        bad("scaled_dot_product_attention", Shape, &["divide", "4", "3"], |d| f(d, &[4, 2, 2]).scaled_dot_product_attention_with(&f(d, &[3, 3, 2]), &f(d, &[3, 3, 2]), &Attention { enable_gqa: true, ..Attention::default() })),
        bad("scaled_dot_product_attention", Shape, &["heads"], |d| f(d, &[2, 2]).scaled_dot_product_attention_with(&f(d, &[3, 2]), &f(d, &[3, 2]), &Attention { enable_gqa: true, ..Attention::default() })),
        bad("mse_loss", Shape, &["[2]", "[3]"], |d| f(d, &[2]).mse_loss(&f(d, &[3]))),
        bad("nll_loss", Shape, &["[2]", "[2, 3]"], |d| f(d, &[2, 3]).nll_loss(&int(d, &[3]))),
        bad("cross_entropy", Shape, &["[2, 3]", "[4]"], |d| f(d, &[2, 3]).cross_entropy(&int(d, &[4]))),
        bad("cross_entropy", Shape, &["[2, 3]", "[2]"], |d| f(d, &[2, 3]).cross_entropy(&f(d, &[2]))),
        bad("cross_entropy", Shape, &["dimension"], |d| f(d, &[]).cross_entropy(&int(d, &[]))),
        bad("cross_entropy", Argument, &["1.5"], |d| f(d, &[2, 3]).cross_entropy_with(&int(d, &[2]), &CrossEntropy { label_smoothing: 1.5, ..CrossEntropy::default() })),
        bad("cross_entropy", Shape, &["weight", "3"], |d| f(d, &[2, 3]).cross_entropy_with(&int(d, &[2]), &CrossEntropy { weight: Some(f(d, &[2])), ..CrossEntropy::default() })),
        bad("conv2d", Shape, &["[2, 3]", "[1, 1, 2, 2]"], |d| f(d, &[2, 3]).conv2d(&f(d, &[1, 1, 2, 2]), None)),
        bad("conv2d", Shape, &["[1, 3, 4, 4]", "2 channels"], |d| f(d, &[1, 3, 4, 4]).conv2d(&f(d, &[1, 2, 2, 2]), None)),
        bad("conv2d", Shape, &["groups=2", "[3, 2, 2, 2]"], |d| f(d, &[1, 4, 4, 4]).conv2d_with(&f(d, &[3, 2, 2, 2]), None, &Conv::new().groups(2))),
        bad("conv2d", Shape, &["bias", "[3]", "[2]"], |d| f(d, &[1, 2, 4, 4]).conv2d(&f(d, &[3, 2, 2, 2]), Some(&f(d, &[2])))),
        bad("conv2d", Shape, &["[5, 5]", "[1, 2, 2, 4]"], |d| f(d, &[1, 2, 2, 4]).conv2d_with(&f(d, &[3, 2, 5, 5]), None, &Conv::new().padding(1))),
        bad("conv2d", Shape, &["kernel size", "[0, 2]"], |d| f(d, &[1, 2, 4, 4]).conv2d(&f(d, &[3, 2, 0, 2]), None)),
        bad("conv2d", Shape, &["kernel size"], |d| f(d, &[1, 1, 4, 4]).conv2d_with(&f(d, &[1, 1, 3, 2]), None, &Conv::new().dilation(1 << 30))),
        bad("conv2d", Argument, &["past"], |d| f(d, &[1, 1, 4, 4]).conv2d_with(&f(d, &[1, 1, 2, 2]), None, &Conv::new().dilation(usize::MAX))),
        bad("conv2d", Shape, &["too many elements"], |d| f(d, &[1, 1, 4, 4]).conv2d_with(&f(d, &[1, 1, 2, 2]), None, &Conv::new().padding(1 << 29))),
        bad("max_pool2d", Argument, &["windows may have"], |d| f(d, &[1, 4, 4]).max_pool2d(usize::MAX)),
        bad("conv2d", Argument, &["greater than zero"], |d| f(d, &[1, 2, 4, 4]).conv2d_with(&f(d, &[3, 2, 2, 2]), None, &Conv::new().stride(0))),
        bad("conv2d", Argument, &["same", "strided"], |d| f(d, &[1, 2, 4, 4]).conv2d_with(&f(d, &[3, 2, 2, 2]), None, &Conv::new().stride(2).padding(Padding::Same))),
        bad("conv2d", DType, &["int32"], |d| int(d, &[1, 2, 4, 4]).conv2d(&f(d, &[3, 2, 2, 2]), None)),
        bad("conv_transpose2d", Shape, &["[1, 3, 4, 4]", "2 channels"], |d| f(d, &[1, 3, 4, 4]).conv_transpose2d(&f(d, &[2, 1, 2, 2]), None)),
        bad("conv_transpose2d", Shape, &["no output"], |d| f(d, &[1, 2, 1, 1]).conv_transpose2d_with(&f(d, &[2, 1, 2, 2]), None, &Conv::new().padding(1))),
        bad("conv_transpose2d", Argument, &["output padding"], |d| f(d, &[1, 2, 4, 4]).conv_transpose2d_with(&f(d, &[2, 1, 2, 2]), None, &Conv::new().output_padding(1))),
        bad("max_pool2d", Shape, &["[4, 4]"], |d| f(d, &[4, 4]).max_pool2d(2)),
        bad("max_pool2d", Shape, &["[1, 2, 3]", "too small"], |d| f(d, &[1, 2, 3]).max_pool2d(3)),
        bad("max_pool2d", Argument, &["half", "2"], |d| f(d, &[1, 4, 4]).max_pool2d_with(&Pool::new(2).padding(2))),
        bad("max_pool2d", Argument, &["greater than zero"], |d| f(d, &[1, 4, 4]).max_pool2d(0)),
        bad("max_pool2d", DType, &["int32"], |d| int(d, &[1, 4, 4]).max_pool2d(2)),
        bad("max_pool2d", Argument, &["divisor_override"], |d| f(d, &[1, 4, 4]).max_pool2d_with_indices(&Pool::new(2).divisor_override(1)).1),
        bad("avg_pool2d", Shape, &["too small"], |d| f(d, &[1, 4, 4]).avg_pool2d((5, 1))),
        bad("avg_pool2d", Argument, &["dilation"], |d| f(d, &[1, 4, 4]).avg_pool2d_with(&Pool::new(2).dilation(2))),
        bad("adaptive_avg_pool2d", Shape, &["not empty"], |d| f(d, &[1, 0, 4]).adaptive_avg_pool2d(2)),
        bad("gather", Shape, &["[2]", "[2, 3]"], |d| f(d, &[2, 3]).gather(0, &int(d, &[2]))),
        bad("gather", Shape, &["[3, 3]", "[2, 3]"], |d| f(d, &[2, 3]).gather(1, &int(d, &[3, 3]))),
        bad("gather", DType, &["float32"], |d| f(d, &[2, 3]).gather(1, &f(d, &[2, 3]))),
        bad("gather", Index, &["2"], |d| f(d, &[2, 3]).gather(2, &int(d, &[2, 3]))),
        bad("index_select", Shape, &["[1, 2]", "[2, 3]"], |d| f(d, &[2, 3]).index_select(0, &int(d, &[1, 2]))),
        bad("index_select", DType, &["bool"], |d| f(d, &[2, 3]).index_select(0, &options().device(d).dtype(Bool).zeros(2))),
        bad("embedding", Shape, &["[2]"], |d| f(d, &[2]).embedding(&int(d, &[1]))),
        bad("one_hot", DType, &["float32"], |d| f(d, &[2]).one_hot(3)),
        bad("scatter_add", Shape, &["[2, 3]", "[1, 3]"], |d| f(d, &[2, 3]).scatter_add(0, &int(d, &[2, 3]), &f(d, &[1, 3]))),
        bad("masked_fill", DType, &["boolean masks", "int32"], |d| f(d, &[2, 3]).masked_fill(&int(d, &[2, 3]), 1.0)),
        bad("masked_fill", Shape, &["[2, 3]", "[4]"], |d| f(d, &[2, 3]).masked_fill(&truth(d, &[4]), 1.0)),
        bad("masked_fill", Shape, &["0-dimensional", "[1]"], |d| f(d, &[2, 3]).masked_fill(&truth(d, &[3]), f(d, &[1]))),
        bad("masked_fill", Argument, &["NaN", "int32", "overflow"], |d| int(d, &[3]).masked_fill(&truth(d, &[3]), f64::NAN)),
        bad("masked_fill", Argument, &["4294967296", "int32"], |d| int(d, &[3]).masked_fill(&truth(d, &[3]), 1i64 << 32)),
        bad("masked_fill", Argument, &["float32", "overflow"], |d| f(d, &[3]).masked_fill(&truth(d, &[3]), 1e39)),
        bad("masked_fill_", Shape, &["[3]", "[2, 3]"], |d| f(d, &[3]).masked_fill_(&truth(d, &[2, 3]), 1.0)),
        bad("masked_fill_", Autograd, &["leaf Variable"], |d| f(d, &[3]).requires_grad_(true).masked_fill_(&truth(d, &[3]), 1.0)),
        bad("tril", Shape, &["at least 2 dimensions", "[3]"], |d| f(d, &[3]).tril(0)),
        bad("triu", Shape, &["at least 2 dimensions", "[]"], |d| f(d, &[]).triu(1)),
        bad("triu_", Argument, &["single memory location"], |d| f(d, &[1, 3]).expand([2, 3]).triu_(0)),
        bad("cat", Shape, &["[2, 3]", "[2, 2]"], |d| cat(&[&f(d, &[2, 3]), &f(d, &[2, 2])], 0)),
        bad("cat", Argument, &["non-empty"], |_| cat(&[], 0)),
        bad("cat", Shape, &["zero-dim"], |d| cat(&[&f(d, &[])], 0)),
        bad("cat", Index, &["2"], |d| cat(&[&f(d, &[2, 3])], 2)),
        bad("stack", Shape, &["[2, 3]", "[3]"], |d| stack(&[&f(d, &[2, 3]), &f(d, &[3])], 0)),
        bad("stack", Argument, &["non-empty"], |_| stack(&[], 0)),
        bad("reshape", Shape, &["[4]", "[2, 3]"], |d| f(d, &[2, 3]).reshape([4])),
        bad("reshape", Shape, &["[-1, -1]"], |d| f(d, &[2, 3]).reshape([-1, -1])),
        bad("reshape", Shape, &["[-2, 3]"], |d| f(d, &[2, 3]).reshape([-2, 3])),
        bad("view", Shape, &["[3, 2]", "reshape"], |d| f(d, &[2, 3]).t().view([6])),
        bad("permute", Shape, &["1 dim"], |d| f(d, &[2, 3]).permute([0])),
        bad("permute", Index, &["multiple"], |d| f(d, &[2, 3]).permute([0, 0])),
        bad("transpose", Index, &["2"], |d| f(d, &[2, 3]).transpose(0, 2)),
        bad("t", Shape, &["3D"], |d| f(d, &[1, 2, 3]).t()),
        bad("squeeze", Index, &["3"], |d| f(d, &[1, 2]).squeeze_dim(3)),
        bad("unsqueeze", Index, &["-4"], |d| f(d, &[1, 2]).unsqueeze(-4)),
        bad("expand", Shape, &["[2, 3]", "[4, 3]"], |d| f(d, &[2, 3]).expand([4, 3])),
        bad("expand", Shape, &["[2, 3]", "[3]"], |d| f(d, &[2, 3]).expand([3])),
        bad("flatten", Argument, &["start_dim"], |d| f(d, &[2, 3]).flatten(1, 0)),
        bad("select", Index, &["2", "size 2"], |d| f(d, &[2, 3]).select(0, 2)),
        bad("select", Index, &["0-dim"], |d| f(d, &[]).select(0, 0)),
        bad("slice", Argument, &["0"], |d| f(d, &[2, 3]).slice(0, 0, 1, 0)),
        bad("narrow", Index, &["2", "(2)"], |d| f(d, &[2, 3]).narrow(0, 1, 2)),
        bad("index", Index, &["too many", "2"], |d| f(d, &[2, 3]).i((0, 0, 0))),
        bad("select", Index, &["5"], |d| f(d, &[2, 3]).i((0, 5))),
        bad("dropout", Argument, &["1.5"], |d| f(d, &[2]).dropout(1.5, true)),
        bad("add_", Shape, &["[3]", "[2, 3]"], |d| f(d, &[3]).add_(f(d, &[2, 3]))),
        bad("mul_", DType, &["float32", "int32"], |d| int(d, &[3]).mul_(1.5)),
        bad("add_", Argument, &["single memory location"], |d| f(d, &[1, 3]).expand([2, 3]).add_(1.0)),
        bad("mul_", Autograd, &["leaf Variable that requires grad"], |d| f(d, &[3]).requires_grad_(true).mul_(2.0)),
        bad("zero_", Autograd, &["view of a leaf"], |d| f(d, &[3]).requires_grad_(true).i(0).zero_()),
        bad("requires_grad_", DType, &["floating point"], |d| int(d, &[3]).requires_grad_(true)),
        bad("requires_grad_", Autograd, &["leaf"], |d| f(d, &[3]).requires_grad_(true).exp().requires_grad_(false)),
        bad("retain_grad", Autograd, &["requires_grad=False"], |d| f(d, &[3]).retain_grad()),
        bad("zeros", Shape, &["negative", "-1"], |d| options().device(d).zeros([2, -1])),
        bad("ones", Shape, &["too many elements"], |d| options().device(d).ones([1i64 << 40, 1 << 40])),
        bad("arange", Argument, &["0 to 5", "-1"], |d| options().device(d).arange(0, 5, -1)),
        bad("arange", Argument, &["0"], |d| options().device(d).arange(0, 5, 0)),
        bad("randn", DType, &["int32"], |d| options().device(d).dtype(I32).randn(3)),
        bad("randint", Argument, &["[3, 3)"], |d| options().device(d).randint(3, 3, 2)),
        bad("tensor", Shape, &["[2]", "[1]"], |d| options().device(d).tensor(vec![vec![1.0, 2.0], vec![3.0]])),
        bad("from_slice", Shape, &["3 values", "[2, 2]"], |d| options().device(d).from_slice(&[1.0f32, 2.0, 3.0], [2, 2])),
    ];
    // Whatever the op, shapes that do not broadcast are refused, and so are two devices.
    for row in TABLE.iter().filter(|row| row.op.arity == 2) {
        out.push(bad(row.op.name, Shape, &["[2, 3]", "[4]"], |d| row.call(&[Arg::from(&f(d, &[2, 3])), Arg::from(&f(d, &[4]))])));
        out.push(bad(row.op.name, Place, &["same device"], |d| row.call(&[Arg::from(&f(&elsewhere(d), &[2])), Arg::from(&f(d, &[2]))])));
    }
    out.push(bad("matmul", Place, &["same device"], |d| f(d, &[2, 2]).matmul(&f(&elsewhere(d), &[2, 2]))));
    out.push(bad("conv2d", Place, &["same device"], |d| f(d, &[1, 1, 2, 2]).conv2d(&f(&elsewhere(d), &[1, 1, 2, 2]), None)));
    out.push(bad("layer_norm", Place, &["same device"], |d| f(d, &[2]).layer_norm(2, Some(&f(&elsewhere(d), &[2])), None, 1e-5)));
    out.push(bad("batch_norm", Place, &["same device"], |d| f(d, &[2, 2]).batch_norm(&BatchNorm { bias: Some(f(&elsewhere(d), &[2])), ..training() })));
    out.push(bad("scaled_dot_product_attention", Place, &["same device"], |d| f(d, &[2, 2]).scaled_dot_product_attention(&f(d, &[2, 2]), &f(&elsewhere(d), &[2, 2]))));
    out.push(bad("masked_fill", Place, &["same device"], |d| f(d, &[2]).masked_fill(&truth(&elsewhere(d), &[2]), 1.0)));
    out.push(bad("cat", Place, &["same device"], |d| cat(&[&f(d, &[2]), &f(&elsewhere(d), &[2])], 0)));
    out.push(bad("gather", Place, &["same device"], |d| f(d, &[2]).gather(0, &int(&elsewhere(d), &[2]))));
    out.push(bad("embedding", Place, &["same device"], |d| f(d, &[2, 2]).embedding(&int(&elsewhere(d), &[2]))));
    out.push(bad("scatter_add", Place, &["same device"], |d| f(d, &[2]).scatter_add(0, &int(d, &[2]), &f(&elsewhere(d), &[2]))));
    out.push(bad("nll_loss", Place, &["same device"], |d| f(d, &[2, 2]).nll_loss(&int(&elsewhere(d), &[2]))));
    out.push(bad("cross_entropy", Place, &["same device"], |d| f(d, &[2, 2]).cross_entropy(&int(&elsewhere(d), &[2]))));
    out
}

/// A second CPU, so that devices can be mixed where there is no GPU.
fn elsewhere(_: &Device) -> Device {
    Device::new(crate::backend::cpu::device())
}
