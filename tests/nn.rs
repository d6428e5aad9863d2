//! Modules: the registry of their parts, modes, state; saving and loading.

mod common;

use common::{assert_close, devices};
use wgrad::nn::{Constant, Part};
use wgrad::prelude::*;

module! {
    /// One of everything a module can hold.
    struct Everything {
        first: Linear,
        blocks: Vec<Linear>,
        maybe: Option<Linear>,
        none: Option<Linear>,
        row: Sequential,
        drop: Dropout,
        scale: Tensor,
        mean: Tensor,
        factor: f64,
        label: &'static str,
        other: Constant<(u8, [f32; 2])>,
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.first.forward(x);
        for block in &self.blocks {
            x = block.forward(&x).relu();
        }
        self.drop.forward(&(self.row.forward(&x) * self.factor))
    }
}

fn everything() -> Everything {
    Everything {
        first: Linear::no_bias(2, 3),
        blocks: vec![Linear::new(3, 3), Linear::no_bias(3, 3)],
        maybe: Some(Linear::no_bias(1, 1)),
        none: None,
        row: sequential![Linear::new(3, 4), Tanh, Flatten::new(), sequential![Linear::no_bias(4, 2)]],
        drop: Dropout::new(0.5),
        scale: Parameter::new(&ones([2])),
        mean: zeros([2]),
        factor: 0.5,
        label: "all",
        other: Constant((1, [2.0, 3.0])),
    }
}

fn names(named: &[(String, Tensor)]) -> Vec<&str> {
    named.iter().map(|(n, _)| &**n).collect()
}

#[test]
fn parts_are_found_by_name_and_in_order() {
    let model = everything();
    let named = model.named_parameters();
    let expected = [
        "first.weight",
        "blocks.0.weight",
        "blocks.0.bias",
        "blocks.1.weight",
        "maybe.weight",
        "row.0.weight",
        "row.0.bias",
        "row.3.0.weight",
        "scale",
    ];
    assert_eq!(names(&named), expected);
    assert_eq!(names(&model.named_buffers()), ["mean"]);
    assert_eq!(model.num_parameters(), 6 + 9 + 3 + 9 + 1 + 12 + 4 + 8 + 2);
    assert_eq!(model.state_dict().len(), expected.len() + 1);
    assert!(named.iter().all(|(_, p)| p.requires_grad() && p.is_leaf()));
    assert_eq!((model.label, model.other.0.0), ("all", 1));
    let mut modules = vec![];
    model.visit(&mut |name, part| {
        if let Part::Module(m) = part {
            modules.push(format!("{name}: {}", m.name()));
        }
    });
    let expected = [
        "first: Linear",
        "blocks.0: Linear",
        "blocks.1: Linear",
        "maybe: Linear",
        "row: Sequential",
        "drop: Dropout",
    ];
    assert_eq!(modules, expected);
}

#[test]
fn a_shared_parameter_counts_once() {
    module! { struct Tied { table: Embedding, out: Linear } }
    let table = Embedding::new(5, 3);
    let out = Linear { weight: table.weight.clone(), bias: None };
    let model = Tied { table, out };
    assert_eq!(names(&model.named_parameters()), ["table.weight"]);
    assert_eq!(model.state_dict().len(), 2);
    for device in devices() {
        let weight = everything().first.weight;
        let model = Tied { table: Embedding { weight: weight.clone() }, out: Linear { weight, bias: None } }
            .to(&device);
        assert!(model.table.weight.is_same(&model.out.weight));
        assert!(model.table.weight.is_parameter() && model.table.weight.device() == &device);
    }
}

#[test]
fn a_module_without_forward_says_so() {
    module! { struct Mute { inner: Linear } }
    let error = Mute { inner: Linear::new(1, 1) }.forward(&ones([1])).error().unwrap();
    assert!(error.to_string().contains("Mute has no forward"), "{error}");
    assert!(error.to_string().contains("tests/nn.rs"), "{error}");
}

#[test]
fn parameters_print_as_pytorchs() {
    let w = Parameter::new(&options().device(cpu()).tensor([[1.0, 2.0], [3.0, 4.0]]));
    let expected = "Parameter containing:\ntensor([[1., 2.],\n        [3., 4.]], requires_grad=True)";
    assert_eq!(w.to_string(), expected);
    let y = &w + 5.0;
    assert_eq!(y.to_string(), "tensor([[6., 7.],\n        [8., 9.]], grad_fn=<AddBackward0>)");
}

#[test]
fn modes_reach_every_layer() {
    for device in devices() {
        let model = everything().to(&device);
        let x = options().device(&device).ones([64, 2]);
        model.train();
        let trained = model.drop.forward(&x);
        let zeros = trained.to_f64_vec().unwrap().iter().filter(|&&v| v == 0.0).count();
        assert!((32..96).contains(&zeros), "{zeros} of 128 were dropped");
        assert_eq!(trained.sum().to_f64_vec().unwrap()[0], 2.0 * (128 - zeros) as f64);
        model.eval();
        assert_eq!(model.drop.forward(&x).to_vec::<f32>().unwrap(), [1.0; 128]);
        assert_eq!(model.forward(&x).shape(), [64, 2]);
    }
}

#[test]
fn layers_compute_what_they_say() {
    for device in devices() {
        let on = options().device(&device);
        let layer = Linear::with(2, 2, true, &on);
        no_grad(|| {
            layer.weight.copy_(&on.tensor([[1.0, 2.0], [3.0, 4.0]]));
            layer.bias.as_ref().unwrap().copy_(&on.tensor([0.5, -0.5]));
        });
        let x = on.tensor([[1.0, 1.0], [0.0, -1.0]]);
        assert_close(&layer.forward(&x), &[3.5, 6.5, -1.5, -4.5], 1e-6, "linear");
        let table = Embedding::with(4, 2, &on);
        let rows = table.forward(&on.tensor([[3, 0], [0, 1]]));
        assert_eq!(rows.shape(), [2, 2, 2]);
        rows.sum().backward().unwrap();
        assert_close(
            &table.weight.grad().unwrap(),
            &[2.0, 2.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
            0.0,
            "embedding",
        );
        let v = on.tensor([-1.0, 0.5]);
        let layers: [(&dyn Module, [f64; 2]); 5] = [
            (&ReLU, [0.0, 0.5]),
            (&Tanh, [-0.761594156, 0.462117157]),
            (&Sigmoid, [0.268941421, 0.622459331]),
            (&GELU, [-0.158655254, 0.345731231]),
            (&SiLU, [-0.268941421, 0.311229666]),
        ];
        for (layer, expected) in layers {
            assert_close(&layer.forward(&v), &expected, 1e-6, layer.name());
        }
        assert_eq!(Flatten::new().forward(&on.ones([2, 3, 4])).shape(), [2, 12]);
    }
}

#[test]
fn initial_values_are_spread_as_pytorchs() {
    for device in devices() {
        let layer = Linear::with(400, 300, true, &options().device(&device));
        for t in [&layer.weight, layer.bias.as_ref().unwrap()] {
            let values = t.to_f64_vec().unwrap();
            let bound = 1.0 / 20.0;
            assert!(values.iter().all(|v| v.abs() <= bound));
            let variance = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
            assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.2, "variance {variance}");
        }
        let w = options().device(&device).empty([200, 100]);
        for (name, made, std) in [
            ("xavier_uniform_", init::xavier_uniform_(&w, 1.0).to_f64_vec(), (2.0f64 / 300.0).sqrt()),
            ("xavier_normal_", init::xavier_normal_(&w, 2.0).to_f64_vec(), 2.0 * (2.0f64 / 300.0).sqrt()),
            ("kaiming_normal_", init::kaiming_normal_(&w, 0.0).to_f64_vec(), (2.0f64 / 100.0).sqrt()),
            ("normal_", init::normal_(&w, 0.0, 3.0).to_f64_vec(), 3.0),
        ] {
            let values = made.unwrap();
            let got = (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
            assert!((got / std - 1.0).abs() < 0.03, "{name}: {got}, expected {std}");
        }
        assert!(init::kaiming_uniform_(&options().device(&device).ones(3), 0.0).error().is_some());
    }
}

#[test]
fn loading_state_names_all_that_is_wrong() {
    let model = everything();
    let mut state = model.state_dict();
    state.remove("row.0.bias");
    state.insert("rwo.0.bias".into(), ones(4));
    state.insert("scale".into(), ones([3]));
    state.insert("mean".into(), ones([2]));
    let error = model.load_state_dict(&state).unwrap_err().to_string();
    for part in [
        "loading state_dict for Everything",
        "Missing key(s) in state_dict: row.0.bias",
        "Unexpected key(s) in state_dict: rwo.0.bias",
        "size mismatch for scale: [3] was saved, the model has [2]",
        "tests/nn.rs",
    ] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
    assert_eq!(model.mean.to_vec::<f32>().unwrap(), [0.0; 2], "nothing may have changed");
}

#[test]
fn state_moves_between_models_and_devices() {
    for from in devices() {
        for to in devices() {
            let (a, b) = (everything().to(&from), everything().to(&to));
            b.load_state_dict(&a.state_dict()).unwrap();
            for ((name, x), (_, y)) in a.named_parameters().iter().zip(b.named_parameters()) {
                assert_close(&y, &x.to_f64_vec().unwrap(), 0.0, name);
                assert!(y.requires_grad() && y.is_leaf() && y.device() == &to);
            }
        }
    }
}

#[cfg(feature = "io")]
mod files {
    use super::*;

    #[test]
    fn state_survives_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        for device in devices() {
            let (a, b) = (everything().to(&device), everything().to(&device));
            io::save_with(&path, &a.state_dict(), &[("epoch", "3")]).unwrap();
            b.load_state_dict(&io::load(&path).unwrap()).unwrap();
            for ((name, x), (_, y)) in a.named_parameters().iter().zip(b.named_parameters()) {
                assert_close(&y, &x.to_f64_vec().unwrap(), 0.0, name);
            }
            assert_eq!(io::load_metadata(&path).unwrap(), [("epoch".to_string(), "3".to_string())]);
        }
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file may stay: {left:?}");
    }

    #[test]
    fn every_dtype_survives_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let on = options().device(cpu());
        let tensors = [
            ("bool", on.tensor([true, false, true])),
            ("u32", on.tensor([0u32, u32::MAX])),
            ("i32", on.tensor([[i32::MIN], [7]])),
            ("f32", on.tensor([f32::NAN, f32::INFINITY, -0.0, 1e-40])),
            ("f64", on.clone().dtype(F64).tensor(0.1)),
            ("empty", on.zeros([2, 0, 3])),
            ("view", on.arange(0, 6, 1).reshape([2, 3]).t()),
        ];
        let path = dir.path().join("all.safetensors");
        let dict: StateDict = tensors.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
        io::save(&path, &dict).unwrap();
        let read = io::load(&path).unwrap();
        for (name, t) in &tensors {
            let npy = dir.path().join(format!("{name}.npy"));
            io::npy::save(&npy, t).unwrap();
            for back in [&read[*name], &io::npy::load(&npy).unwrap()] {
                assert_eq!((back.dtype(), back.shape()), (t.dtype(), t.shape()), "{name}");
                assert_close(back, &t.to_f64_vec().unwrap(), 0.0, name);
            }
        }
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent.safetensors");
        let broken = dir.path().join("broken.safetensors");
        std::fs::write(&broken, b"not one").unwrap();
        let nowhere = dir.path().join("no/such/folder.safetensors");
        let bad = ones([2]).reshape(3);
        let dict = StateDict::from([("bad".to_string(), bad)]);
        for (error, name) in [
            (io::load(&absent).unwrap_err(), "absent.safetensors"),
            (io::load(&broken).unwrap_err(), "broken.safetensors"),
            (io::npy::load(&broken).unwrap_err(), "broken.safetensors"),
            (io::save(&nowhere, &StateDict::new()).unwrap_err(), "folder.safetensors"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(error.to_string().contains(name) && error.to_string().contains("tests/nn.rs"), "{error}");
        }
        assert_eq!(io::save(dir.path().join("x"), &dict).unwrap_err().kind(), ErrorKind::Shape);
    }
}
