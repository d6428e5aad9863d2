//! Looking inside: plans foretell what runs, graphs show what there is; neither changes anything.

mod common;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use common::{alone, assert_close, devices, ready};
use serde_json::Value;
use wgrad::debug::GraphNodeKind;
use wgrad::graph::observe::observe;
use wgrad::prelude::*;

fn on_small_stack(f: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(f).unwrap().join().unwrap();
}

// ---- plan -------------------------------------------------------------------------------------------------

#[test]
fn figures_are_those_counted_by_hand() {
    let _alone = alone();
    for d in devices() {
        let (m, n, k) = (64, 96, 80);
        let (a, b) = (ready(&d, &[m, k]), ready(&d, &[k, n]));
        let plan = debug::plan(&a.matmul(&b)).unwrap();
        let (inputs, output) = (4 * (m * k + k * n) as u64, 4 * (m * n) as u64);
        assert_eq!(plan.flops(), 2 * (m * n * k) as u64, "{plan}");
        assert_eq!(
            (plan.dispatches(), plan.bytes(), plan.peak_bytes()),
            (1, inputs + output, inputs + output)
        );
        assert_eq!((plan.input_bytes, plan.new_bytes), (inputs, output));
        assert_eq!(plan.kernels[0].largest_binding, 4 * (k * n) as u64);
        assert_eq!(plan.kernels[0].caller.map(|c| c.file()), Some(file!()));

        // A chain is one kernel that reads and writes once; four operations an element.
        let x = ready(&d, &[1000]);
        let chain = (&x * 2.0 + 1.0).tanh().neg();
        let plan = debug::plan(&chain).unwrap();
        let kernel = &plan.kernels[0];
        assert_eq!((kernel.read_bytes, kernel.written_bytes, kernel.flops), (4000, 4000, 4000), "{plan}");
        assert_eq!((plan.dispatches(), kernel.shape.as_slice()), (1, &[1000][..]));

        // What is repeated by broadcasting is read once, and so is what is read twice.
        let (t, row) = (ready(&d, &[8, 100]), ready(&d, &[100]));
        let plan = debug::plan(&(&t + &row)).unwrap();
        assert_eq!((plan.kernels[0].read_bytes, plan.kernels[0].written_bytes), (3600, 3200), "{plan}");
        let plan = debug::plan(&(&x * &x.narrow(0, 0, 1000))).unwrap();
        assert_eq!(plan.kernels[0].read_bytes, 4000, "{plan}");
        // A part of it is a part of it.
        assert_eq!(debug::plan(&(x.narrow(0, 10, 100) * 2.0)).unwrap().bytes(), 800);
        // A sum's steps count as one each.
        let sum = (&x * &x).sum();
        assert_eq!(debug::plan(&sum).unwrap().flops(), 2000);
        // What one holds while one plans is stored.
        assert_eq!(debug::plan(&(&x * 2.0).exp()).unwrap().bytes(), 12_000);
        // Several tensors share what they can.
        let y = &x * 3.0;
        assert_eq!(debug::plan(&[&y, &(&y + 1.0), &(&y + 2.0)]).unwrap().dispatches(), 1);
        // Nothing to compute is nothing.
        let none = options().device(&d).zeros([0, 3]) * 2.0;
        assert_eq!(debug::plan(&none).unwrap().bytes(), 0);
    }
}

/// A step of training, not yet run.
struct Net {
    model: Sequential,
    optimizer: Adam,
    x: Tensor,
    y: Tensor,
}

impl Net {
    fn new(d: &Device) -> Net {
        let model = sequential![Linear::new(20, 64), ReLU, Linear::new(64, 10)].to(d);
        let optimizer = Adam::new(model.parameters(), 1e-3);
        let o = options().device(d);
        Net { model, optimizer, x: o.randn([16, 20]), y: o.randint(0, 10, 16) }
    }

    fn loss(&self) -> Tensor {
        self.model.forward(&self.x).cross_entropy(&self.y)
    }

    fn step(&mut self) -> Tensor {
        self.optimizer.zero_grad();
        let loss = self.loss();
        loss.backward().unwrap();
        self.optimizer.step().unwrap();
        loss
    }
}

#[test]
fn a_plan_is_what_runs() {
    let _alone = alone();
    for d in devices() {
        let net = Net::new(&d);
        d.synchronize().unwrap();
        let loss = net.loss();
        let plan = debug::plan(&loss).unwrap();
        let before = d.stats();
        loss.check().unwrap();
        assert_eq!(d.stats().dispatches - before.dispatches, plan.dispatches() as u64, "{plan}");
        let params = net.model.parameters();
        net.loss().backward().unwrap();
        let grads: Vec<Tensor> = params.iter().map(|p| p.grad().unwrap()).collect();
        let plan = debug::plan(&grads).unwrap();
        let before = d.stats();
        d.flush();
        assert_eq!(d.stats().dispatches - before.dispatches, plan.dispatches() as u64, "{plan}");
        assert!(debug::plan(&grads).unwrap().is_empty());
    }
}

#[test]
fn a_whole_step_is_recorded_and_planned_before_any_of_it_runs() {
    let _alone = alone();
    for d in devices() {
        let mut net = Net::new(&d);
        for round in 0..4 {
            d.synchronize().unwrap();
            let before = d.stats();
            let (loss, plan) = debug::plan_of(|| net.step()).unwrap();
            assert_eq!(d.stats(), before, "nothing runs while it is recorded");
            // The first step makes the optimizer's state, too.
            assert!(round == 0 || plan.dispatches() <= 22, "{plan}");
            let peak = Arc::new(Mutex::new(0));
            let seen = peak.clone();
            let guard = observe(move |o| {
                let live = o.backend.memory().live_bytes as u64;
                let mut peak = seen.lock().unwrap();
                *peak = live.max(*peak);
                o.whole()
            });
            d.flush();
            drop(guard);
            assert_eq!(d.stats().dispatches - before.dispatches, plan.dispatches() as u64, "{plan}");
            let (peak, foretold) = (*peak.lock().unwrap(), plan.peak_bytes() + plan.other_bytes);
            if d.is_cpu() {
                assert_eq!(peak, foretold, "{plan}");
            } else {
                // There buffers are rounded up.
                assert!(peak >= foretold && peak <= foretold * 3 / 2 + 4096, "{peak}, foretold {foretold}");
            }
            assert!(loss.item::<f32>().unwrap() > 0.0);
        }
        // Reading a value runs what it needs, there and then.
        let (value, plan) = debug::plan_of(|| {
            let x = options().device(&d).full([4], 2.0);
            let y = (&x * 3.0).sum().item::<f32>().unwrap();
            (y, &x + 1.0)
        })
        .unwrap();
        assert_eq!((value.0, plan.dispatches()), (24.0, 1));
    }
}

#[test]
fn planning_changes_nothing() {
    let _alone = alone();
    for d in devices() {
        let run = |planned: bool| {
            manual_seed(7);
            d.manual_seed(7);
            let mut net = Net::new(&d);
            let mut losses = vec![];
            for _ in 0..4 {
                let loss = net.step();
                let other = (&loss * 2.0).exp();
                if planned {
                    let before = (d.stats(), d.memory().live_buffers, d.generator());
                    let first = debug::plan(&[&loss, &other]).unwrap();
                    let second = debug::plan(&[&loss, &other]).unwrap();
                    assert_eq!(first.to_string().lines().next(), second.to_string().lines().next());
                    assert_eq!((d.stats(), d.memory().live_buffers, d.generator()), before);
                }
                losses.push((loss.item::<f32>().unwrap(), other.item::<f32>().unwrap()));
            }
            losses
        };
        assert_eq!(run(false), run(true));
        // A plan that is known stays known.
        let x = ready(&d, &[77]);
        let step = || (&x * 2.0).sum_dim(0, true).exp();
        step().check().unwrap();
        let plans = d.stats().plans;
        let y = step();
        debug::plan(&y).unwrap();
        y.check().unwrap();
        assert_eq!(d.stats().plans, plans);
    }
}

#[test]
fn what_has_run_is_an_empty_plan() {
    let _alone = alone();
    for d in devices() {
        let x = ready(&d, &[3]);
        let plan = debug::plan(&x).unwrap();
        assert!(plan.is_empty() && plan.bytes() == 0 && plan.predicted().is_zero());
        assert!(plan.to_string().contains("nothing to run"), "{plan}");
        let ((), plan) = debug::plan_of(|| ()).unwrap();
        assert!(plan.is_empty());
    }
}

#[test]
fn tables_say_it_all() {
    let _alone = alone();
    for d in devices() {
        let (a, b) = (ready(&d, &[128, 128]), ready(&d, &[128, 128]));
        let plan = debug::plan(&a.matmul(&b).relu().sum()).unwrap();
        let text = plan.to_string();
        for part in [
            d.name(),
            "dispatches",
            "memory:",
            "largest binding: 65.5 kB",
            "ceilings:",
            "matmul_relu",
            "look.rs:",
            "share",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let shares: f64 = plan.kernels.iter().map(|k| plan.share(k)).sum();
        assert!(shares > 0.0 && shares <= 1.0 + 1e-9);
        assert!(!plan.predicted().is_zero() && plan.predicted().as_secs_f64() < 10.0, "{plan}");
        let ceilings = plan.ceilings.unwrap();
        assert!(
            ceilings.bandwidth > 1e7 && ceilings.products > 1e7 && ceilings.elementwise > 1e6,
            "{ceilings}"
        );
        // Long plans are cut, unless one asks.
        let mut y = a.clone();
        for _ in 0..60 {
            y = y.matmul(&b);
        }
        let plan = debug::plan(&y).unwrap();
        let (short, long) = (plan.to_string(), format!("{plan:#}"));
        assert_eq!(long.lines().count() - short.lines().count(), 19, "{short}");
        assert!(short.contains("20 quicker kernels"));
    }
}

#[track_caller]
fn refused<T: Debug>(result: Result<T>, kind: ErrorKind, parts: &[&str]) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in {text}"));
}

#[test]
fn what_cannot_run_is_refused_with_advice() {
    let _alone = alone();
    for d in devices() {
        let limit = d.backend().caps().max_binding_bytes;
        if !d.is_cpu() {
            let large = options().device(&d).arange(0, (limit / 4 + 1000) as i64, 1).to(F32) * 2.0;
            let parts = ["over [", "float32", "look.rs:", "binds at most", "into 2 parts", "cpu"];
            refused(debug::plan(&large), ErrorKind::Limit, &parts);
            // Where it is never stored it is no trouble.
            let sum = large.sum();
            drop(large);
            let fine = debug::plan(&sum).unwrap();
            assert!(fine.largest.is_some_and(|i| fine.kernels[i].largest_binding < limit as u64), "{fine}");
            refused(options().device(&d).dtype(F64).zeros(3).check(), ErrorKind::DType, &["float64"]);
            let double = options().device(&d).dtype(F64).zeros(3);
            refused(debug::plan(&double), ErrorKind::DType, &["float64"]);
            let (here, there) = (options().device(&d).ones(3) * 2.0, options().device(cpu()).ones(3) * 2.0);
            refused(debug::plan(&[&here, &there]), ErrorKind::Device, &["one device at a time"]);
            refused(debug::plan_of(|| (&here + 1.0, &there + 1.0)), ErrorKind::Device, &["one device"]);
        }
        if let Some(total) = d.backend().total_memory() {
            // Many buffers that fit, of more than there is.
            let each = (limit.min(1 << 30) / 4) as u64;
            let many = || {
                let ones = |i: u64| options().device(&d).full([each as usize], i as f64);
                (0..total / (4 * each) + 2).map(ones).collect::<Vec<_>>()
            };
            let parts = ["beside the", "in all", "largest buffer", "smaller batch"];
            refused(debug::plan_of(many), ErrorKind::OutOfMemory, &parts);
        }
        let bad = options().device(&d).ones([2, 3]).matmul(&options().device(&d).ones([2, 3]));
        refused(debug::plan(&bad), ErrorKind::Shape, &["matmul"]);
        refused(debug::plan(&[&ready(&d, &[2]), &bad]), ErrorKind::Shape, &["matmul"]);
    }
    let none: [Tensor; 0] = [];
    refused(debug::plan(&none), ErrorKind::Argument, &["no tensor"]);
}

// ---- graph ------------------------------------------------------------------------------------------------

/// What there is, walked by hand: functions by address, and edges between names.
fn walk(loss: &Tensor) -> (usize, Vec<(String, String)>) {
    let mut seen = HashMap::new();
    let mut edges = vec![];
    let mut stack = vec![loss.grad_fn().unwrap()];
    while let Some(f) = stack.pop() {
        if seen.insert(Arc::as_ptr(&f), f.clone()).is_some() {
            continue;
        }
        if f.variable().is_some() {
            edges.push(("leaf".to_string(), f.name().to_string()));
        }
        for next in f.next_functions().into_iter().flatten() {
            edges.push((next.name().to_string(), f.name().to_string()));
            stack.push(next);
        }
    }
    edges.push((loss.grad_fn().unwrap().name().to_string(), "output".to_string()));
    edges.sort();
    (seen.len(), edges)
}

fn items(html: &str) -> Value {
    let data = html.split("id=\"items\">").nth(1).and_then(|rest| rest.split("</script>").next());
    serde_json::from_str(data.expect("items")).expect("JSON")
}

#[test]
fn every_function_is_there_once_and_edges_are_those_of_next_functions() {
    let _alone = alone();
    for d in devices() {
        let net = Net::new(&d);
        let (w, x) = (net.model.parameters()[0].clone(), net.x.clone());
        let shared = x.matmul(&w.t()).tanh();
        let twice = &shared * &shared;
        for loss in [net.loss(), (&twice + &shared * &w.sum()).mean()] {
            let graph = debug::graph(&loss);
            let (functions, expected) = walk(&loss);
            let count = |kind| graph.nodes.iter().filter(|n| n.kind == kind).count();
            assert_eq!(count(GraphNodeKind::Function) + count(GraphNodeKind::Accumulate), functions);
            assert_eq!(count(GraphNodeKind::Leaf), count(GraphNodeKind::Accumulate));
            let name = |i: usize| graph.nodes[i].name.clone();
            let mut edges: Vec<_> = graph.edges.iter().map(|&(a, b)| (name(a), name(b))).collect();
            edges.sort();
            assert_eq!(edges, expected);

            let dot = graph.dot();
            assert!(dot.starts_with("digraph") && dot.trim_end().ends_with('}'));
            for i in 0..graph.nodes.len() {
                assert_eq!(dot.matches(&format!("  n{i} [")).count(), 1);
            }
            assert_eq!(dot.matches(" -> ").count(), graph.edges.len());

            let html = graph.html();
            assert_eq!(html.matches("<g class=\"node ").count(), graph.nodes.len());
            assert!(!html.contains("http") && !html.contains("src=") && !html.contains("@import"));
            let items = items(&html);
            let items = items.as_array().unwrap();
            assert_eq!(items.len(), graph.nodes.len());
            let mut drawn: Vec<(String, String)> = vec![];
            for item in items {
                for input in item["inputs"].as_array().unwrap() {
                    let input = &items[input.as_u64().unwrap() as usize];
                    drawn.push((
                        input["name"].as_str().unwrap().into(),
                        item["name"].as_str().unwrap().into(),
                    ));
                }
            }
            drawn.sort();
            let mut once: Vec<(usize, usize)> = graph.edges.clone();
            once.sort_unstable();
            once.dedup();
            let mut once: Vec<_> = once.into_iter().map(|(a, b)| (name(a), name(b))).collect();
            once.sort();
            assert_eq!(drawn, once);
        }
    }
}

#[test]
fn nodes_say_what_they_are() {
    let _alone = alone();
    for d in devices() {
        let net = Net::new(&d);
        let loss = net.loss();
        let graph = debug::graph(&loss).params(net.model.named_parameters());
        let node =
            |name: &str| graph.nodes.iter().find(|n| n.name == name).unwrap_or_else(|| panic!("no {name}"));
        let weight = node("0.weight");
        assert_eq!((weight.kind, weight.shapes[0].as_slice()), (GraphNodeKind::Leaf, &[64, 20][..]));
        let relu = node("ReluBackward0");
        assert_eq!((relu.shapes[0].as_slice(), relu.dtypes[0]), (&[16, 64][..], F32));
        assert!(relu.saved_bytes >= 16 * 64 * 4 && !relu.freed && graph.saved_bytes() >= relu.saved_bytes);
        assert_eq!(relu.caller.map(|c| c.file()), Some(file!()));
        assert!(graph.html().contains("look.rs:"));
        // A state dict's handles name the same leaves.
        let named = debug::graph(&loss).params(net.model.state_dict());
        assert!(named.nodes.iter().any(|n| n.name == "2.bias"));
        loss.backward().unwrap();
        let after = debug::graph(&loss);
        assert!(after.saved_bytes() == 0 && after.html().contains("freed by a backward pass"));
        // Several outputs; a leaf alone; nothing at all.
        let w = net.model.parameters()[0].clone();
        let two = debug::graph(&[w.sum(), w.mean()]);
        assert_eq!(two.nodes.iter().filter(|n| n.kind == GraphNodeKind::Output).count(), 2);
        assert_eq!(two.nodes.iter().filter(|n| n.kind == GraphNodeKind::Leaf).count(), 1);
        assert_eq!((debug::graph(&w).nodes.len(), debug::graph(&w).edges.len()), (2, 1));
        assert_eq!(debug::graph(&[&w, &w.clone()]).nodes.len(), 3);
        assert!(debug::graph(&w.detach()).html().contains("no gradient flows"));
        let none: [Tensor; 0] = [];
        assert!(debug::graph(&none).html().contains("0 functions"));
    }
}

#[test]
fn no_name_breaks_out() {
    let _alone = alone();
    for d in devices() {
        let w = options().device(&d).requires_grad(true).ones(2);
        let evil = "a\"b\\</script><script>alert('1')</script>&<!--\n${VIEW}";
        let graph = debug::graph(&w.sum()).params([(evil, &w)]);
        let html = graph.html();
        assert_eq!(html.matches("<script").count(), 2);
        assert_eq!(html.matches("</script").count(), 2);
        assert!(!html.contains("<script>alert") && !html.contains("<!--"));
        let items = items(&html);
        assert!(items.as_array().unwrap().iter().any(|item| item["name"] == evil));
        assert!(graph.dot().contains(r#"label="a\"b\\</script>"#));
    }
}

#[test]
fn graphs_are_saved_by_their_names_ending() {
    let _alone = alone();
    let w = options().device(cpu()).requires_grad(true).ones(2);
    let graph = debug::graph(&w.sum());
    let dir = tempfile::tempdir().unwrap();
    for (name, start) in [("a.html", "<!DOCTYPE html>"), ("a.dot", "digraph"), ("a.gv", "digraph")] {
        graph.save(dir.path().join(name)).unwrap();
        assert!(std::fs::read_to_string(dir.path().join(name)).unwrap().starts_with(start));
    }
    refused(graph.save(dir.path().join("a.png")), ErrorKind::Argument, &["a.png", ".html"]);
    refused(graph.save(dir.path().join("no/a.dot")), ErrorKind::Io, &["a.dot"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn a_hundred_thousand_functions_on_a_small_stack() {
    let _alone = alone();
    for d in devices() {
        on_small_stack(move || {
            let x = options().device(&d).requires_grad(true).ones(2);
            let (mut row, mut mesh) = (&x * 1.0, &x * 1.0);
            for _ in 0..100_000 {
                row = row.neg();
            }
            for _ in 0..50_000 {
                mesh = &mesh * &x;
            }
            let graph = debug::graph(&row.sum());
            assert_eq!(graph.nodes.len(), 100_005);
            assert_eq!(graph.dot().matches(" -> ").count(), graph.edges.len());
            let html = graph.html();
            assert!(
                html.contains("a run of 100000 drawn as one") || html.contains("a run of 99999 drawn"),
                "{}",
                &html[..9000]
            );
            assert!(html.len() < 100_000);
            let html = debug::graph(&mesh.sum()).html();
            assert!(html.contains("far from the outputs left out"));
            assert!(html.len() < 2_000_000 && html.matches("<g class=\"node ").count() < 1300);
            let (y, plan) = debug::plan_of(|| {
                let mut y = x.detach();
                (0..100_000).for_each(|_| y = y.neg());
                y
            })
            .unwrap();
            assert!(plan.flops() >= 200_000, "{}", plan.flops());
            let before = d.stats().dispatches;
            assert_close(&y, &[1.0, 1.0], 0.0, "the value");
            assert_eq!(d.stats().dispatches - before, plan.dispatches() as u64);
        });
    }
}

// ---- memory -----------------------------------------------------------------------------------------------

#[test]
fn a_thousand_looks_leave_nothing_behind() {
    let _alone = alone();
    for d in devices() {
        let w = ready(&d, &[8, 8]).requires_grad_(true);
        let look = || {
            let loss = w.matmul(&w).tanh().sum();
            assert!(!debug::plan(&loss).unwrap().is_empty());
            assert_eq!(
                debug::graph(&loss).params([("w", &w)]).html().matches("class=\"node leaf").count(),
                1
            );
            let ((), plan) = debug::plan_of(|| loss.backward().unwrap()).unwrap();
            assert!(plan.dispatches() > 1);
            let (_, trace) = debug::trace(|| w.grad().unwrap().check().unwrap()).unwrap();
            assert!(trace.kernels() > 0);
            w.set_grad(None);
        };
        for _ in 0..3 {
            look();
        }
        d.synchronize().unwrap();
        let (memory, plans) = (d.memory(), d.stats().plans);
        for _ in 0..1000 {
            look();
        }
        d.synchronize().unwrap();
        assert_eq!((d.memory(), d.stats().plans), (memory, plans));
    }
}
