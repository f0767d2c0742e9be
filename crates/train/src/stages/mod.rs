//! The stages of a recipe, one file each: a struct of settings that implements [`Stage`], and a line of `stages!` below.

mod conversations;
mod earlier;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use model::AdapterConfig;
use serde::{Deserialize, Serialize, Serializer};

use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::ledger::StageCost;
use crate::optim::OptimizerSettings;
use crate::settings::check::{At, Checked};
use crate::settings::node::KIND;
use crate::settings::one_table;
use crate::training::{Adapting, Packing, Training};

pub use earlier::{Earlier, Makes, Outline, is_path};

/// What a finished stage leaves for the report, beside its folder.
pub struct StageResult {
    /// What it cost.
    pub cost: StageCost,
    /// A few words.
    pub summary: String,
    /// Figures for the report.
    pub figures: Figures,
}

/// A stage of a recipe: settings, and what is done by them.
pub trait Stage: fmt::Debug {
    /// What comes out of it.
    fn makes(&self) -> Makes;
    /// Fills in what is not stated and has no fixed default.
    fn resolve(&mut self, earlier: &Earlier);
    /// Holds the settings against what they must satisfy, once everything is filled in.
    fn check(&self, at: &At, earlier: &Earlier) -> Checked;
    /// The model that it works on: an earlier stage, one of `[models]`, or a folder.
    fn model(&self) -> Option<&str> {
        None
    }
    /// What it makes something of: names of earlier stages, among others.
    fn built_on(&self) -> Vec<&str> {
        self.model().into_iter().collect()
    }
    /// Whether it draws from the recipe's problems.
    fn draws_problems(&self) -> bool {
        true
    }
    /// The models that it measures, and how many samples of each problem it takes for that.
    fn measures(&self) -> Option<(&[String], usize)> {
        None
    }
    /// Files and folders that must be there, each with its key.
    fn files(&self) -> Vec<(&'static str, &Path)> {
        Vec::new()
    }
    /// A length that the model's context must have room for, and its key.
    fn length(&self) -> Option<(&'static str, usize)> {
        None
    }
    /// Tokens that it leaves for others to learn from, about.
    fn trace_tokens(&self) -> f64 {
        0.0
    }
    /// What it will do, for the plan, with each of its models.
    fn work(&self, _known: &Known) -> Option<Work<'_>> {
        None
    }
    /// Stages whose operations together it may spend.
    fn budget_of(&self) -> &[String] {
        &[]
    }
    /// Does it, or goes on with it.
    ///
    /// # Errors
    /// Whatever stops it, [`TrainError::Interrupted`] included; what was saved is gone on from.
    fn run(&self, ctx: &Context, name: &str) -> Result<StageResult, TrainError>;
}

/// What a recipe tells a stage that plans.
pub struct Known<'a> {
    /// Tokens that an earlier stage leaves to learn from, about.
    pub trace_tokens: &'a dyn Fn(&str) -> f64,
    /// Held-out problems.
    pub held_out: usize,
}

/// Answers that are written side by side.
#[derive(Clone, Copy)]
pub struct Answers {
    /// Problems at once.
    pub problems: usize,
    /// Answers to each.
    pub each: usize,
    /// The longest, in tokens.
    pub max_new: usize,
}

/// What a stage does with its model, about.
#[derive(Default)]
pub struct Work<'a> {
    /// By which optimizer, if it trains.
    pub optimizer: Option<&'a OptimizerSettings>,
    /// Optimizer steps.
    pub steps: f64,
    /// Tokens trained on.
    pub trained: f64,
    /// The share of them that the MTP layer learns from.
    pub mtp_share: f64,
    /// Tokens generated.
    pub generated: f64,
    /// Of a stage that generates: what is under way at a time.
    pub answers: Option<Answers>,
    /// Tokens held at a time.
    pub held: usize,
    /// Of a stage that holds fewer where memory is short: the least.
    pub cut: Option<usize>,
    /// Whether layers are computed again instead of being kept.
    pub recompute: bool,
    /// Whether they are those of a step, of which a shard is held at a time.
    pub sharded: bool,
    /// The adapters that are trained in place of the weights, if any.
    pub adapter: Option<&'a AdapterConfig>,
    /// Whether the model as it was stands beside it.
    pub reference: bool,
    /// What to do where memory is too small.
    pub remedy: &'static str,
}

impl<'a> Work<'a> {
    /// Of training on packed documents of so many tokens in all.
    fn packed(training: &'a Training, packing: &Packing, tokens: f64) -> Work<'a> {
        Work {
            optimizer: Some(&training.optimizer),
            steps: tokens / packing.batch_tokens as f64,
            trained: tokens,
            held: packing.batch_tokens,
            sharded: true,
            recompute: training.recompute,
            remedy: "lower `batch_tokens`, raise `parallel.shards`, set `recompute = true`, or raise `machine.memory_gib`",
            ..Work::default()
        }
    }
}

impl<'a> Work<'a> {
    /// The same where perhaps adapters alone are trained.
    fn adapting(self, adapting: &'a Adapting) -> Work<'a> {
        Work { adapter: adapting.adapter.as_ref(), ..self }
    }
}

/// Tokens of a prompt that are read in one pass where answers are written.
const READ_AT_ONCE: usize = 512;

/// Tokens of so many answers to each problem: half the longest is a fair guess of the mean.
fn guess(problems: usize, answers: usize, max_new: usize) -> f64 {
    problems as f64 * answers as f64 * max_new as f64 / 2.0
}

macro_rules! stages {
    ($($(#[$doc:meta])* $kind:literal $variant:ident = $module:ident :: $settings:ident;)+) => {
        $(mod $module;)+
        $(pub use $module::$settings;)+

        /// A stage of whichever kind.
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        pub enum AnyStage {
            $($(#[$doc])* #[serde(rename = $kind)] $variant($settings),)+
        }

        impl AnyStage {
            /// What `kind` says in a recipe.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(AnyStage::$variant(_) => $kind,)+
                }
            }

            fn table(&self) -> Result<toml::Table, toml::ser::Error> {
                match self {
                    $(AnyStage::$variant(stage) => toml::Table::try_from(stage),)+
                }
            }
        }

        impl Deref for AnyStage {
            type Target = dyn Stage;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(AnyStage::$variant(stage) => stage,)+
                }
            }
        }

        impl DerefMut for AnyStage {
            fn deref_mut(&mut self) -> &mut Self::Target {
                match self {
                    $(AnyStage::$variant(stage) => stage,)+
                }
            }
        }
    };
}

stages! {
    /// Trains a byte-level BPE.
    "tokenizer" Tokenizer = tokenizer::TokenizerStage;
    /// Next-token prediction.
    "pretrain" Pretrain = pretrain::PretrainStage;
    /// Supervised fine-tuning on worked solutions.
    "sft" Sft = sft::SftStage;
    /// Reinforcement learning from verifiers.
    "grpo" Grpo = grpo::GrpoStage;
    /// Rejection sampling: keeps a model's own traces that the verifiers accept.
    "reject" Reject = reject::RejectStage;
    /// Teaches a student what a teacher knows.
    "distill" Distill = distill::DistillStage;
    /// Takes a model between two others.
    "average" Average = average::AverageStage;
    /// Measures models on held-out problems.
    "eval" Eval = eval::EvalStage;
}

impl Serialize for AnyStage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut table = toml::Table::from_iter([(KIND.to_owned(), self.kind().into())]);
        table.extend(self.table().map_err(serde::ser::Error::custom)?);
        table.serialize(serializer)
    }
}

/// One `[[stage]]` of a recipe, told apart by its `kind`.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedStage {
    title: Title,
    stage: AnyStage,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Title {
    /// The stage's name; the kind if none is given.
    name: String,
}

one_table!(NamedStage { title, stage });

impl NamedStage {
    /// The stage's name, which is its folder's too.
    pub fn name(&self) -> &str {
        if self.title.name.is_empty() { self.stage.kind() } else { &self.title.name }
    }

    /// Its settings by kind.
    pub fn stage(&self) -> &AnyStage {
        &self.stage
    }

    /// Its settings by kind.
    pub fn stage_mut(&mut self) -> &mut AnyStage {
        &mut self.stage
    }

    /// Its name is stated from now on.
    pub fn state_name(&mut self) {
        self.title.name = self.name().to_owned();
    }
}

impl Deref for NamedStage {
    type Target = AnyStage;

    fn deref(&self) -> &AnyStage {
        &self.stage
    }
}
