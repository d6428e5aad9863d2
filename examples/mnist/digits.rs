//! The images and labels, and how well a model reads them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use wgrad::data::idx::{self, Idx};
use wgrad::prelude::*;

pub const SIDE: usize = 28;

/// Images as they come, one byte a pixel; a batch of them is made float32 on the device.
pub struct Digits {
    images: Vec<u8>,
    labels: Vec<u8>,
    device: Device,
}

impl Digits {
    /// `set` is `train` or `t10k`.
    pub fn load(folder: &Path, set: &str, device: &Device) -> Result<Digits> {
        let images = read(&folder.join(format!("{set}-images-idx3-ubyte.gz")))?;
        let labels = read(&folder.join(format!("{set}-labels-idx1-ubyte.gz")))?;
        let fits = images.shape == [labels.values.len(), SIDE, SIDE];
        ensure!(fits, "{set}: {} labels do not fit images of {:?}", labels.values.len(), images.shape);
        Ok(Digits { images: images.values, labels: labels.values, device: device.clone() })
    }

    pub fn image(&self, i: usize) -> &[u8] {
        &self.images[i * SIDE * SIDE..][..SIDE * SIDE]
    }

    pub fn label(&self, i: usize) -> u8 {
        self.labels[i]
    }

    /// What the model makes of every image.
    pub fn evaluate(&self, model: &impl Module) -> Result<Results> {
        model.eval();
        let _guard = wgrad::autograd::no_grad_guard();
        let (mut guesses, mut sureness) = (vec![], vec![]);
        let all: Vec<usize> = (0..self.len()).collect();
        for indices in all.chunks(2000) {
            let (x, _) = self.batch(indices)?;
            let chances = model.forward(&x).softmax(1);
            guesses.extend(chances.argmax_dim(1, false).to_vec::<i32>()?);
            sureness.extend(chances.amax(1, false).to_vec::<f32>()?);
        }
        let right = guesses.iter().zip(&self.labels).filter(|(g, l)| **g == i32::from(**l)).count();
        Ok(Results { accuracy: right as f32 / self.len() as f32, guesses, sureness })
    }
}

/// What a model makes of a set of digits.
pub struct Results {
    pub accuracy: f32,
    pub guesses: Vec<i32>,
    /// The probability that the model gives its guess.
    pub sureness: Vec<f32>,
}

impl Dataset for Digits {
    type Batch = (Tensor, Tensor);

    fn len(&self) -> usize {
        self.labels.len()
    }

    fn batch(&self, indices: &[usize]) -> wgrad::Result<(Tensor, Tensor)> {
        // Mean 0 and variance 1 over the training set.
        let pixel = |&p: &u8| (f32::from(p) / 255.0 - 0.1307) / 0.3081;
        let x: Vec<f32> = indices.iter().flat_map(|&i| self.image(i).iter().map(pixel)).collect();
        let y: Vec<i32> = indices.iter().map(|&i| i32::from(self.label(i))).collect();
        let on = options().device(&self.device);
        Ok((on.from_slice(&x, [indices.len(), SIDE * SIDE]), on.from_slice(&y, indices.len())))
    }
}

fn read(path: &Path) -> Result<Idx> {
    let unpack = || -> Result<Idx> {
        let mut bytes = vec![];
        flate2::read::GzDecoder::new(File::open(path)?).read_to_end(&mut bytes)?;
        Ok(idx::parse(&bytes)?)
    };
    unpack().with_context(|| format!("{} can't be read", path.display()))
}
