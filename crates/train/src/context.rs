//! What all stages share: the recipe, the run folder, the way to speak, and the wish to stop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use data::Tokenizer;
use model::device::place_of;
use model::{HeldAs, Model, ModelConfig, Use};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::TrainError;
use crate::finished::Finished;
use crate::ledger::{Meter, StageCost};
use crate::problems::ProblemSource;
use crate::run::folder::RunFolder;
use crate::run::share::share;
use crate::speaker;
use crate::team::Team;

/// Positions that training prepares for, where a model's context is longer.
const MOST_POSITIONS: usize = 1 << 15;

/// Positions that training prepares a model for.
pub fn positions(config: &ModelConfig) -> usize {
    config.max_position_embeddings().min(MOST_POSITIONS)
}

/// Where a stage stands.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The stage.
    pub stage: &'a str,
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub total: u64,
    /// What is watched: a name and its value.
    pub headline: (&'a str, f64),
    /// Tokens per second, lately.
    pub tokens_per_second: f64,
    /// Share of the machine's matrix-product ceiling, lately.
    pub ceiling_share: f64,
    /// Seconds left, as it goes.
    pub seconds_left: f64,
    /// What each rank does, where there are several.
    pub ranks: &'a [RankShare],
}

/// What a rank does of a stage, lately.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankShare {
    /// Of all operations.
    pub work: f64,
    /// The share of its time that it waits for others, or for what they send.
    pub waiting: f64,
}

/// Who is told what happens.
pub trait Reporter: Sync {
    /// A stage begins or goes on.
    fn stage(&self, name: &str, kind: &str, index: usize, count: usize);
    /// A step was done; called after every one.
    fn progress(&self, p: &Progress);
    /// A stage has ended.
    fn stage_done(&self, name: &str, cost: &StageCost, summary: &str);
    /// A fresh sample of the model's thinking on a fixed problem.
    fn sample(&self, stage: &str, step: u64, prompt: &str, completion: &str);
    /// Something worth a line.
    fn note(&self, text: &str);
    /// Whether to save and stop.
    fn stop(&self) -> bool;
}

/// Problems that one stage may draw, as a power of two.
const ROUND_BITS: u32 = 28;

/// A run under way.
pub struct Context<'a> {
    /// What all randomness of the run comes from.
    pub seed: u64,
    /// The machine, for the ledger.
    pub machine: &'a Machine,
    /// Models that begin with random weights, by name.
    pub models: &'a toml::Table,
    /// The names of the stages, each with how many others of its kind it is built on.
    pub stages: BTreeMap<&'a str, u64>,
    /// The ranks that work on it.
    pub team: Rc<Team>,
    /// The run folder; of other ranks than the first one that ends with them.
    pub folder: &'a RunFolder,
    /// Who is told.
    pub reporter: &'a dyn Reporter,
    /// Problems and verifier, where the recipe draws any.
    pub problems: Option<ProblemSource>,
    /// What large matrix products reach on this machine.
    pub ceiling: Ceiling<'a>,
}

/// What the machine costs and holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Machine {
    /// The price of one core for one hour, in dollars.
    pub price_per_core_hour: f64,
    /// Memory that the run may take, in GiB.
    pub memory_gib: f64,
}

impl Default for Machine {
    fn default() -> Self {
        Machine { price_per_core_hour: 0.02, memory_gib: 4.0 }
    }
}

/// Operations per second of large matrix products on this machine.
pub struct Ceiling<'a> {
    measure: &'a (dyn Fn() -> f64 + Sync),
    found: Mutex<f64>,
}

impl<'a> Ceiling<'a> {
    /// Measures it.
    pub fn new(measure: &'a (dyn Fn() -> f64 + Sync)) -> Ceiling<'a> {
        Ceiling { measure, found: Mutex::new(measure()) }
    }

    /// What share of it a rate is, at most 1. A rate above it says that the machine was busy when it was measured: it is
    /// measured again then.
    pub fn share(&self, rate: f64) -> f64 {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if rate > *found {
            *found = (self.measure)().max(rate);
        }
        rate / *found
    }
}

impl Context<'_> {
    /// How many stages of its own kind a stage is built on.
    pub fn rounds_before(&self, stage: &str) -> u64 {
        self.stages.get(stage).copied().unwrap_or(0)
    }

    /// Which problem a stage begins with, where the first of its kind begins with `first`: one that is built on others of its kind
    /// draws problems after theirs.
    pub fn first_problem(&self, stage: &str, first: u64) -> u64 {
        first + (self.rounds_before(stage) << ROUND_BITS)
    }

    /// The problems. Recipes that need them are checked to have them.
    pub fn problems(&self) -> Result<&ProblemSource, TrainError> {
        self.problems.as_ref().ok_or_else(|| TrainError::Recipe("this recipe has no `problems`".into()))
    }

    /// Whether a reference means one of `[models]`. An earlier stage comes before a model of the same name.
    pub fn is_fresh(&self, reference: &str) -> bool {
        !self.stages.contains_key(reference) && self.models.contains_key(reference)
    }

    /// Gives all ranks the files of the first one's folder, which may lie elsewhere there; folders in it are left out.
    pub fn share(&self, dir: &Path) -> Result<(), TrainError> {
        share(&self.team, dir)
    }

    /// The folder of a reference: an earlier stage's, or a path.
    pub fn dir(&self, reference: &str) -> Result<PathBuf, TrainError> {
        if self.stages.contains_key(reference) || self.models.contains_key(reference) {
            let dir = self.folder.stage_dir(reference)?;
            self.share(&dir)?;
            return Ok(dir);
        }
        Ok(PathBuf::from(reference))
    }

    /// The model and tokenizer of an earlier stage, a Hugging Face folder or a GGUF file, to read only.
    pub fn reader(&self, reference: &str) -> Result<(Model, Tokenizer), TrainError> {
        self.model(reference, Use::Infer(HeldAs::Stored))
    }

    /// The model and tokenizer of an earlier stage, a Hugging Face folder or a GGUF file, for a use.
    pub fn model(&self, reference: &str, wanted: Use) -> Result<(Model, Tokenizer), TrainError> {
        let dir = self.dir(reference)?;
        let note = |text: &str| self.reporter.note(text);
        let (mut model, tokenizer) = speaker::load(&dir, None, wanted, note)?;
        model.reserve_positions(positions(model.config()));
        Ok((model, tokenizer))
    }

    /// A model of `[models]` with random weights, for a tokenizer.
    pub fn fresh_model(&self, name: &str, tokenizer: &Tokenizer) -> Result<Model, TrainError> {
        let tokens = tokenizer.vocab_size();
        let config = fresh_config(self.models, name, tokens, tokenizer.eos_id(), tokenizer.pad_id())?;
        if tokens > config.vocab_size() {
            return Err(TrainError::Recipe(format!(
                "models.{name}: vocab_size is {}, but the tokenizer has {tokens} ids: leave it out, or raise it",
                config.vocab_size()
            )));
        }
        let refused = |reason| TrainError::Recipe(format!("models.{name}: {reason}"));
        let place = place_of(&config).map_err(refused)?;
        place.notice.iter().for_each(|text| self.reporter.note(text));
        let mut model = Model::random(config, self.seed);
        model.reserve_positions(positions(model.config()));
        Ok(model)
    }

    /// A meter for a stage over the cores of all ranks, going on from what it has cost.
    pub fn meter(&self, stage: &str, before: Option<StageCost>) -> Meter {
        let (cores, price) = (tensor::threads::threads() as u64, self.machine.price_per_core_hour);
        let cores = self.team.total(cores) as usize;
        // What all ranks have cost before is added once.
        let cpu = |before: &StageCost| if self.team.leads() { before.cpu_seconds } else { 0.0 };
        match before.map(|before| StageCost { cpu_seconds: cpu(&before), ..before }) {
            Some(before) => Meter::resume(before, cores, price),
            None => Meter::start(stage, cores, price),
        }
    }

    /// What a stage left, if it has ended: by the folder of the first rank, on all of them.
    pub fn finished(&self, stage: &str) -> Result<Option<Finished>, TrainError> {
        let found = self.team.leads().then(|| self.folder.done(stage)).transpose()?.flatten();
        Ok(self.team.from_first(|| found))
    }
}

/// An entry of `[models]` as a configuration: the vocabulary is the tokenizer's, and what is not stated is ordinary.
pub fn fresh_config(
    models: &toml::Table,
    name: &str,
    vocab: usize,
    eos: Option<u32>,
    pad: Option<u32>,
) -> Result<ModelConfig, TrainError> {
    let Some(table) = models.get(name) else {
        return Err(TrainError::Recipe(format!("there is no `models.{name}` in the recipe")));
    };
    let stated =
        serde_json::to_value(table).map_err(|e| TrainError::Recipe(format!("models.{name}: {e}")))?;
    let deepseek = stated["model_type"] == "deepseek_v3";
    let mut config = json!({
        "vocab_size": vocab, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 1024, "initializer_range": 0.02, "tie_word_embeddings": true,
        "num_key_value_heads": stated["num_attention_heads"],
    });
    if deepseek {
        let more = json!({
            "architectures": ["DeepseekV3ForCausalLM"], "n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.0,
            "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": null,
        });
        merge(&mut config, &more);
    }
    if let Some(eos) = eos {
        config["eos_token_id"] = eos.into();
    }
    if let Some(pad) = pad {
        config["pad_token_id"] = pad.into();
    }
    merge(&mut config, &stated);
    ModelConfig::from_recipe(&config).map_err(|source| TrainError::Config { name: name.to_owned(), source })
}

fn merge(into: &mut Value, from: &Value) {
    if let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) {
        into.extend(from.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn a_ceiling_that_is_passed_is_measured_again() {
        let (rates, times) = ([100.0, 400.0, 300.0], AtomicUsize::new(0));
        let measure = || rates[times.fetch_add(1, Relaxed)];
        let ceiling = Ceiling::new(&measure);
        assert_eq!([50.0, 200.0, 300.0, 500.0, 250.0].map(|r| ceiling.share(r)), [0.5, 0.5, 0.75, 1.0, 0.5]);
    }
}
