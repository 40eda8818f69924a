//! A site's features, and a logistic regression on them. Weights are the kernel, then the bias, as in a model's body.

use crate::pb::{Plan, TaskMeaning};

pub struct Data {
    pub train: usize,
    pub width: usize,
    pub generated: bool,
    pub meaning: TaskMeaning,
    labels: Vec<u8>,
    rows: Vec<f32>,
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

impl Data {
    pub fn parse(bytes: &[u8]) -> Option<Data> {
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
        let (train, validation, width) = (number(8)?, number(12)?, number(16)?);
        let (meaning, rest) = bytes.strip_prefix(b"FSFEAT01")?.get(20..)?.split_at_checked(number(24)?)?;
        let lines: Vec<&str> = std::str::from_utf8(meaning).ok()?.split('\n').collect();
        let &["fedstream meaning v1", classes, positive, preprocessing, ""] = &lines[..] else { return None };
        let class_names = classes.split('\t').map(String::from).collect();
        let meaning = TaskMeaning { class_names, positive_class: positive.into(), preprocessing: preprocessing.into() };
        let (labels, rows) = rest.split_at_checked(train + validation)?;
        let whole = Some(rows.len()) == width.checked_mul(4 * labels.len());
        let (labels, rows, generated) = (labels.to_vec(), floats(rows), number(20)? == 1);
        whole.then_some(Data { train, width, generated, meaning, labels, rows })
    }

    /// How far the probability of label 1 is from an example's label.
    fn miss(&self, weights: &[f32], i: usize) -> f32 {
        let row = self.rows[i * self.width..][..self.width].iter().chain([&1.0]);
        let z: f32 = row.zip(weights).map(|(x, w)| x * w).sum();
        1.0 / (1.0 + (-z).exp()) - f32::from(self.labels[i])
    }

    /// Trains by the plan with Adam. Gives the weights with the lowest validation loss, that loss, and the epochs run.
    pub async fn fit(&self, mut weights: Vec<f32>, plan: &Plan, epsilon: f32) -> (Vec<f32>, f64, u32) {
        let (mut m, mut v) = (vec![0f32; weights.len()], vec![0f32; weights.len()]);
        let (mut order, mut random, mut steps): (Vec<usize>, _, _) = ((0..self.train).collect(), plan.seed, 0);
        let (mut best, mut lowest, mut at, mut epoch) = (weights.clone(), f64::INFINITY, 0, 0);
        while epoch < plan.epochs && (epoch - at < plan.early_stopping_patience || plan.early_stopping_patience == 0) {
            epoch += 1;
            for i in (1..order.len()).rev() {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                order.swap(i, (random >> 33) as usize % (i + 1));
            }
            for batch in order.chunks(plan.batch_size.max(1) as usize) {
                let mut gradient = vec![0f32; weights.len()];
                for &i in batch {
                    let miss = self.miss(&weights, i) / batch.len() as f32;
                    let row = self.rows[i * self.width..][..self.width].iter().chain([&1.0]);
                    gradient.iter_mut().zip(row).for_each(|(g, x)| *g += miss * x);
                }
                steps += 1;
                let rate = plan.learning_rate as f32 * (1.0 - 0.999f32.powi(steps)).sqrt() / (1.0 - 0.9f32.powi(steps));
                for (j, g) in gradient.into_iter().enumerate() {
                    m[j] += 0.1 * (g - m[j]);
                    v[j] += 0.001 * (g * g - v[j]);
                    weights[j] -= rate * m[j] / (v[j].sqrt() + epsilon);
                }
                tokio::task::yield_now().await; // here a training that is cancelled ends
            }
            let losses =
                (self.train..self.labels.len()).map(|i| -f64::from(1.0 - self.miss(&weights, i).abs()).max(1e-7).ln());
            let loss = losses.sum::<f64>() / (self.labels.len() - self.train) as f64;
            if loss < lowest || loss.is_nan() {
                (best, lowest, at) = (weights.clone(), loss, epoch);
            }
        }
        (best, lowest, epoch)
    }
}
