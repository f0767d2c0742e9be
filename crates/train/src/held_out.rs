//! Held-out losses of a model in training, kept per document, so that two models can be compared at any step at which
//! both were measured.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::run::RunError;
use crate::run::folder::write_atomic;

/// What a model makes of the held-out documents at one step of its training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Training documents read so far; those of one recipe come in one order.
    pub documents: u64,
    /// Mean negative log-likelihood per token of each held-out document, in nats.
    pub losses: Vec<f64>,
}

impl HeldOut {
    /// The mean over documents.
    pub fn mean(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64
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

    /// What a stage kept at a step; `None` if it was not measured there.
    pub fn load(stage_dir: &Path, step: u64) -> Option<HeldOut> {
        serde_json::from_slice(&fs::read(path(stage_dir, step)).ok()?).ok()
    }
}

fn path(stage_dir: &Path, step: u64) -> PathBuf {
    stage_dir.join("held_out").join(format!("{step}.json"))
}
