//! Held-out losses of a model in training, kept per document, so that two models can be compared at any step at which
//! both were measured.

use std::fs;
use std::path::{Path, PathBuf};

use data::{Document, pack};
use model::{Model, whole};
use serde::{Deserialize, Serialize};

use crate::run::{RunError, write_atomic};
use crate::step::score;
use crate::team::Team;

/// Documents whose held-out loss is measured.
pub const HELD_OUT_DOCUMENTS: usize = 256;

/// Tokens of a pass: fewer than a step of training has, so that measuring takes no more memory.
const PASS_TOKENS: usize = 2048;

/// What a model makes of the held-out documents at one step of its training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Training documents read so far; those of one recipe come in one order.
    pub documents: u64,
    /// Mean negative log-likelihood per token of each held-out document, in nats.
    pub losses: Vec<f64>,
    /// The tokens that it is a mean over.
    pub tokens: Vec<f64>,
}

impl HeldOut {
    /// Measures a model that has read `read` training documents.
    pub fn measure(model: &Model, team: &Team, read: u64, documents: &[Document]) -> HeldOut {
        let found = team.deal_all(documents.len(), |part| {
            let mut found = Vec::with_capacity(part.len());
            for part in passes(&documents[part]) {
                let packed = pack(part);
                let stats = score(model, &packed.tokens, &packed.targets, &whole(&packed.lens), 1.0);
                let mut at = 0;
                for len in packed.lens {
                    let (logprobs, weights) = (&stats.logprobs[at..at + len], &packed.weights[at..at + len]);
                    let tokens = weights.iter().map(|&w| f64::from(w)).sum::<f64>().max(1e-9);
                    let sum =
                        logprobs.iter().zip(weights).map(|(&l, &w)| f64::from(l) * f64::from(w)).sum::<f64>();
                    found.push([-sum / tokens, tokens].map(f64::to_bits));
                    at += len;
                }
            }
            found
        });
        let (losses, tokens) = found.into_iter().map(|of| of.map(f64::from_bits).into()).unzip();
        HeldOut { documents: read, losses, tokens }
    }

    /// The negative log-likelihood of all documents together, in nats.
    pub fn total(&self) -> f64 {
        self.losses.iter().zip(&self.tokens).map(|(loss, tokens)| loss * tokens).sum()
    }

    /// The mean over tokens.
    pub fn mean(&self) -> f64 {
        self.total() / self.tokens.iter().sum::<f64>().max(1e-9)
    }

    /// Whether the other model had read, and was measured on, the same documents.
    pub fn compares_with(&self, other: &HeldOut) -> bool {
        self.documents == other.documents && self.losses.len() == other.losses.len()
    }

    /// Keeps it in a stage's folder.
    pub fn save(&self, stage_dir: &Path, step: u64) -> Result<(), RunError> {
        let path = path(stage_dir, step);
        let dir = path.parent().expect("a file in a folder");
        fs::create_dir_all(dir).map_err(RunError::io("create", dir))?;
        let json = serde_json::to_vec(self).expect("numbers are always JSON");
        write_atomic(&path, &json)
    }

    /// The steps at which a stage was measured, in ascending order.
    pub fn steps(stage_dir: &Path) -> Vec<u64> {
        let files = fs::read_dir(stage_dir.join("held_out")).into_iter().flatten().flatten();
        let mut steps: Vec<u64> =
            files.filter_map(|f| f.path().file_stem()?.to_str()?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    }

    /// What a stage kept at a step; `None` if it was not measured there.
    pub fn load(stage_dir: &Path, step: u64) -> Option<HeldOut> {
        serde_json::from_slice(&fs::read(path(stage_dir, step)).ok()?).ok()
    }
}

/// Documents side by side, so many that no pass has more than [`PASS_TOKENS`] unless one document has.
fn passes(documents: &[Document]) -> Vec<&[Document]> {
    let (mut passes, mut rest) = (Vec::new(), documents);
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |d: &&Document| {
            tokens += d.ids.len();
            tokens <= PASS_TOKENS
        };
        let (pass, behind) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        passes.push(pass);
        rest = behind;
    }
    passes
}

fn path(stage_dir: &Path, step: u64) -> PathBuf {
    stage_dir.join("held_out").join(format!("{step}.json"))
}
