//! Low-rank adapters (LoRA) on a model that is frozen: which projections have one, and what the matrices are called.
//!
//! Names are those of PEFT, so that what is trained here is written as it stands.

use serde::{Deserialize, Serialize};

use crate::config::{TensorKind, TensorSpec};

/// Which adapters a model has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Rows of A, columns of B.
    #[serde(default = "sixteen")]
    pub rank: usize,
    /// What the product is multiplied by, before it is divided by the rank.
    #[serde(default = "thirty_two")]
    pub alpha: f64,
    /// The last parts of the names of the projections that have one (`q_proj`); empty for all that may: those of attention and of
    /// feed-forward layers, routed experts and routers apart.
    #[serde(default)]
    pub targets: Vec<String>,
    /// Whether alpha is divided by the root of the rank (rsLoRA, Kalajdzievski 2023).
    #[serde(default)]
    pub rslora: bool,
}

fn sixteen() -> usize {
    16
}

fn thirty_two() -> f64 {
    32.0
}

impl Default for AdapterConfig {
    fn default() -> Self {
        AdapterConfig { rank: sixteen(), alpha: thirty_two(), targets: Vec::new(), rslora: false }
    }
}

/// The most rows of A.
pub const MAX_RANK: usize = 4096;

impl AdapterConfig {
    /// The factor of the product.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// The matrices that these settings put beside a model's tensors: all A in the order of their projections, then all B.
    ///
    /// # Errors
    /// A rank that is none, and targets that the model does not have, in words.
    pub fn specs(&self, model: &[TensorSpec]) -> Result<Vec<TensorSpec>, String> {
        if !(1..=MAX_RANK).contains(&self.rank) {
            return Err(format!("`rank` is {}, expected 1 to {MAX_RANK}", self.rank));
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return Err(format!("`alpha` is {}, expected a number above zero", self.alpha));
        }
        let mut pairs = Vec::new();
        for spec in model {
            let Some(module) = module_of(spec) else { continue };
            let last = module.rsplit('.').next().unwrap_or(module);
            if self.targets.is_empty() || self.targets.iter().any(|target| target == last) {
                pairs.push(pair(spec, module, self.rank));
            }
        }
        let known = |target: &&String| {
            let last =
                |spec: &TensorSpec| module_of(spec).is_some_and(|m| m.rsplit('.').next() == Some(target));
            model.iter().any(last)
        };
        if let Some(unknown) = self.targets.iter().find(|target| !known(target)) {
            let mut names: Vec<&str> =
                model.iter().filter_map(module_of).filter_map(|m| m.rsplit('.').next()).collect();
            names.sort_unstable();
            names.dedup();
            return Err(format!(
                "the model has no projection {unknown:?} to adapt; it has {}",
                names.join(", ")
            ));
        }
        Ok(in_order(pairs))
    }
}

/// All A, then all B, both in the order of their projections: projections that are read as one have As that are read as one, too.
pub(crate) fn in_order(pairs: Vec<[TensorSpec; 2]>) -> Vec<TensorSpec> {
    let (mut specs, b): (Vec<_>, Vec<_>) = pairs.into_iter().map(|[a, b]| (a, b)).unzip();
    specs.extend(b);
    specs
}

/// The module of a projection that may have an adapter: its name without `.weight`.
fn module_of(spec: &TensorSpec) -> Option<&str> {
    let inside = |name: &str| name.contains(".self_attn.") || name.contains(".mlp.");
    let may = spec.kind == TensorKind::Matrix && inside(&spec.name);
    may.then(|| spec.name.strip_suffix(".weight")).flatten()
}

pub(crate) fn pair(spec: &TensorSpec, module: &str, rank: usize) -> [TensorSpec; 2] {
    let [outputs, inputs] = spec.shape[..] else { unreachable!("a matrix has two dimensions") };
    let matrix = |name, shape| TensorSpec { name, shape, kind: TensorKind::Matrix, layer: spec.layer };
    [matrix(lora_a(module), vec![rank, inputs]), matrix(lora_b(module), vec![outputs, rank])]
}

/// PEFT's name of A.
pub(crate) fn lora_a(module: &str) -> String {
    format!("base_model.model.{module}.lora_A.weight")
}

/// PEFT's name of B.
pub(crate) fn lora_b(module: &str) -> String {
    format!("base_model.model.{module}.lora_B.weight")
}

/// The projection that an adapter's matrix belongs to.
pub(crate) fn base_of(name: &str) -> Option<String> {
    let module = name.strip_prefix("base_model.model.")?;
    let module = module.strip_suffix(".lora_A.weight").or(module.strip_suffix(".lora_B.weight"))?;
    Some(format!("{module}.weight"))
}
