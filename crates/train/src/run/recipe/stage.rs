//! A stage of a recipe, whichever its kind.

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::learn::{PretrainStage, SftStage, TokenizerStage};
use super::node::KIND;
use super::optimizer::Optimizer;
use super::reinforce::GrpoStage;
use super::sample::{DistillMethod, DistillStage, EvalStage, RejectStage};
use super::source::{Data, Source};
use crate::optim::schedule::Schedule;

/// One `[[stage]]` of a recipe, told apart by its `kind`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Trains a byte-level BPE.
    Tokenizer(TokenizerStage),
    /// Next-token prediction.
    Pretrain(PretrainStage),
    /// Supervised fine-tuning on worked solutions.
    Sft(SftStage),
    /// Reinforcement learning from verifiers.
    Grpo(GrpoStage),
    /// Rejection sampling: keeps a model's own traces that the verifiers accept.
    Reject(RejectStage),
    /// Teaches a student what a teacher knows.
    Distill(DistillStage),
    /// Measures models on held-out problems.
    Eval(EvalStage),
}

/// What each kind of stage is called in a recipe.
pub const KINDS: [&str; 7] = ["tokenizer", "pretrain", "sft", "grpo", "reject", "distill", "eval"];

macro_rules! each {
    ($stage:expr, $inner:ident => $body:expr) => {
        match $stage {
            Stage::Tokenizer($inner) => $body,
            Stage::Pretrain($inner) => $body,
            Stage::Sft($inner) => $body,
            Stage::Grpo($inner) => $body,
            Stage::Reject($inner) => $body,
            Stage::Distill($inner) => $body,
            Stage::Eval($inner) => $body,
        }
    };
}

impl Stage {
    /// The stage's name, which is its folder's too.
    pub fn name(&self) -> &str {
        each!(self, stage => &stage.name)
    }

    pub(super) fn name_mut(&mut self) -> &mut String {
        each!(self, stage => &mut stage.name)
    }

    /// What `kind` says, one of [`KINDS`].
    pub fn kind(&self) -> &'static str {
        let index = match self {
            Stage::Tokenizer(_) => 0,
            Stage::Pretrain(_) => 1,
            Stage::Sft(_) => 2,
            Stage::Grpo(_) => 3,
            Stage::Reject(_) => 4,
            Stage::Distill(_) => 5,
            Stage::Eval(_) => 6,
        };
        KINDS[index]
    }

    /// Whether a model comes out of the stage.
    pub fn makes_model(&self) -> bool {
        matches!(self, Stage::Pretrain(_) | Stage::Sft(_) | Stage::Grpo(_) | Stage::Distill(_))
    }

    /// The optimizer of a stage that trains by gradients.
    pub fn optimizer(&self) -> Option<&Optimizer> {
        match self {
            Stage::Pretrain(stage) => Some(&stage.optimizer),
            Stage::Sft(stage) => Some(&stage.optimizer),
            Stage::Grpo(stage) => Some(&stage.optimizer),
            Stage::Distill(stage) => Some(&stage.optimizer),
            Stage::Tokenizer(_) | Stage::Reject(_) | Stage::Eval(_) => None,
        }
    }

    pub(super) fn optimizer_mut(&mut self) -> Option<&mut Optimizer> {
        match self {
            Stage::Pretrain(stage) => Some(&mut stage.optimizer),
            Stage::Sft(stage) => Some(&mut stage.optimizer),
            Stage::Grpo(stage) => Some(&mut stage.optimizer),
            Stage::Distill(stage) => Some(&mut stage.optimizer),
            Stage::Tokenizer(_) | Stage::Reject(_) | Stage::Eval(_) => None,
        }
    }

    /// The learning-rate schedule of a stage that trains by gradients.
    pub fn schedule(&self) -> Option<&Schedule> {
        match self {
            Stage::Pretrain(stage) => Some(&stage.schedule),
            Stage::Sft(stage) => Some(&stage.schedule),
            Stage::Grpo(stage) => Some(&stage.schedule),
            Stage::Distill(stage) => Some(&stage.schedule),
            Stage::Tokenizer(_) | Stage::Reject(_) | Stage::Eval(_) => None,
        }
    }

    /// What the stage makes something of: names of earlier stages, among others.
    pub fn built_on(&self) -> Vec<&str> {
        fn of<const N: usize>(names: [Option<&String>; N]) -> Vec<&str> {
            names.into_iter().flatten().map(String::as_str).collect()
        }
        match self {
            Stage::Tokenizer(_) => Vec::new(),
            Stage::Pretrain(s) => of([s.from.as_ref(), Some(&s.tokenizer)]),
            Stage::Sft(s) => match &s.data {
                Data::Stage { stage } => of([Some(&s.from), Some(stage)]),
                _ => of([Some(&s.from)]),
            },
            Stage::Grpo(s) => of([Some(&s.from)]),
            Stage::Reject(s) => of([Some(&s.from)]),
            Stage::Distill(s) => of([Some(&s.teacher), Some(&s.student), s.traces.as_ref()]),
            Stage::Eval(_) => Vec::new(),
        }
    }

    /// Whether the stage draws from the recipe's problems.
    pub fn draws_problems(&self) -> bool {
        match self {
            Stage::Tokenizer(stage) => stage.source == Source::Problems,
            Stage::Pretrain(stage) => stage.source == Source::Problems,
            Stage::Sft(stage) => stage.data == Data::Problems,
            Stage::Distill(stage) => stage.method != DistillMethod::Traces,
            Stage::Grpo(_) | Stage::Reject(_) | Stage::Eval(_) => true,
        }
    }
}

impl Serialize for Stage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let table = each!(self, stage => toml::Table::try_from(stage)).map_err(serde::ser::Error::custom)?;
        let mut map = serializer.serialize_map(Some(table.len() + 1))?;
        map.serialize_entry(KIND, self.kind())?;
        for (key, value) in &table {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}
