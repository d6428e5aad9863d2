//! A second model on the other backend, that takes each step as well.
//!
//! The two sum in different orders, so the last bits differ. Where that puts a rectifier's input on the other side of
//! zero, a whole sample's share of a gradient differs, by about 1e-3 here; with `tanh` instead it is 1e-8.

use std::cell::RefCell;

use anyhow::Result;
use wgrad::prelude::*;

use crate::Mlp;

pub struct Twin {
    model: Mlp,
    optimizer: RefCell<Adam>,
    worst: RefCell<[Worst; 3]>,
}

#[derive(Clone, Default)]
struct Worst {
    difference: f32,
    place: String,
}

const KINDS: [&str; 3] = ["loss", "gradient", "weight after the step"];

impl Twin {
    pub fn of(model: &Mlp, optimizer: &Adam) -> Result<Twin> {
        let device = if model.fc1.weight.device().is_cpu() { gpu()? } else { cpu() };
        let twin = Mlp::new().to(&device);
        twin.load_state_dict(&model.state_dict())?;
        let mut own = Adam::new(twin.parameters(), optimizer.lr());
        own.load_state_dict(&optimizer.state_dict())?;
        println!("each step is compared with {device}");
        Ok(Twin { model: twin, optimizer: RefCell::new(own), worst: RefCell::default() })
    }

    /// Takes the step that `model` has just taken, and notes how far apart they are. Then it takes over the model's
    /// weights, so that what is reported is the difference of one step, not what becomes of it in many.
    pub fn follow(&self, x: &Tensor, y: &Tensor, loss: &Tensor, model: &Mlp) -> Result<()> {
        let device = self.model.fc1.weight.device();
        let mut optimizer = self.optimizer.borrow_mut();
        optimizer.zero_grad();
        let own_loss = self.model.forward(&x.to(device)).cross_entropy(&y.to(device));
        own_loss.backward()?;
        optimizer.step()?;
        self.note(0, "", loss, &own_loss)?;
        for ((name, p), own) in model.named_parameters().iter().zip(self.model.parameters()) {
            if let (Some(a), Some(b)) = (p.grad(), own.grad()) {
                self.note(1, name, &a, &b)?;
            }
            self.note(2, name, p, &own)?;
        }
        self.model.load_state_dict(&model.state_dict())?;
        Ok(())
    }

    fn note(&self, kind: usize, place: &str, a: &Tensor, b: &Tensor) -> Result<()> {
        let difference = (a.detach().to(cpu()) - b.detach().to(cpu())).abs().max().item::<f32>()?;
        let worst = &mut self.worst.borrow_mut()[kind];
        if difference > worst.difference || difference.is_nan() {
            *worst = Worst { difference, place: place.to_string() };
        }
        Ok(())
    }

    /// The largest differences so far.
    pub fn report(&self) -> String {
        let worst = self.worst.borrow();
        let lines = KINDS.iter().zip(&*worst).map(|(kind, worst)| {
            let place = if worst.place.is_empty() { String::new() } else { format!(" of {}", worst.place) };
            format!("  largest difference: {:.1e} in the {kind}{place}", worst.difference)
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}
