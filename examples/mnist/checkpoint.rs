//! A training run in a file: model, optimizer, and how far it came.

use std::path::Path;

use anyhow::{Context, Result};
use wgrad::prelude::*;

use crate::Mlp;

#[derive(Default)]
pub struct Progress {
    pub seed: u64,
    pub batch_size: usize,
    /// Epochs done.
    pub epoch: u64,
    /// Steps done in the current one.
    pub step: usize,
    /// Step and mean loss.
    pub losses: Vec<[f32; 2]>,
    /// Epoch and accuracy on the test set.
    pub accuracies: Vec<[f32; 2]>,
}

pub fn save(path: &Path, model: &Mlp, optimizer: &impl Optimizer, progress: &Progress) -> Result<()> {
    let mut all = StateDict::new();
    all.extend(model.state_dict().into_iter().map(|(k, t)| (format!("model.{k}"), t)));
    all.extend(optimizer.state_dict().into_iter().map(|(k, t)| (format!("optimizer.{k}"), t)));
    for (name, curve) in [("losses", &progress.losses), ("accuracies", &progress.accuracies)] {
        all.insert(name.into(), options().device(cpu()).from_slice(curve.as_flattened(), [curve.len(), 2]));
    }
    let numbers = [
        ("seed", progress.seed),
        ("batch_size", progress.batch_size as u64),
        ("epoch", progress.epoch),
        ("step", progress.step as u64),
    ];
    let words = numbers.map(|(name, n)| (name, n.to_string()));
    io::save_with(path, &all, &words.each_ref().map(|(name, word)| (*name, &**word)))?;
    Ok(())
}

pub fn load(path: &Path, model: &Mlp, optimizer: &mut impl Optimizer) -> Result<Progress> {
    let (all, words) = (io::load(path)?, io::load_metadata(path)?);
    let number = |name: &str| -> Result<u64> {
        let word = words.iter().find(|(k, _)| k == name).map(|(_, v)| v);
        word.and_then(|v| v.parse().ok()).with_context(|| format!("{} has no {name}", path.display()))
    };
    let part = |prefix: &str| -> StateDict {
        all.iter().filter_map(|(k, t)| Some((k.strip_prefix(prefix)?.to_string(), t.clone()))).collect()
    };
    let curve = |name: &str| -> Result<Vec<[f32; 2]>> {
        let curve = all.get(name).with_context(|| format!("{} has no {name}", path.display()))?;
        Ok(curve.to_vec::<f32>()?.as_chunks().0.to_vec())
    };
    model.load_state_dict(&part("model."))?;
    optimizer.load_state_dict(&part("optimizer."))?;
    Ok(Progress {
        seed: number("seed")?,
        batch_size: number("batch_size")? as usize,
        epoch: number("epoch")?,
        step: number("step")? as usize,
        losses: curve("losses")?,
        accuracies: curve("accuracies")?,
    })
}
