//! `sft`: supervised fine-tuning on conversations, with the loss on the assistant's turns.

use std::path::Path;

use data::{Document, Tokenizer, pack};
use serde::{Deserialize, Serialize};
use tasks::corpus::Blend;
use tasks::{Mix, Style};

use super::conversations::{
    conversations, conversations_if_any, fill_batch, held_out_documents, left_out_words, log_held_out, nth, plain_text,
    worked,
};
use super::{Earlier, Known, Makes, Stage, StageResult, Work};
use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::learner::{Learner, Now, StepOutcome, Steps};
use crate::run::metrics::Metrics;
use crate::settings::check::{At, Checked};
use crate::settings::one_table;
use crate::source::{Data, TaskMix, check_own_mix};
use crate::speaker::teach_ends;
use crate::step::StepOptions;
use crate::training::{Adapting, Packing, SideLosses, Training};

/// Training problems of this stage come after those of pretraining.
const FIRST_PROBLEM: u64 = 1 << 32;

/// Supervised fine-tuning, with the loss on the answers alone.
#[derive(Debug, Clone, PartialEq)]
pub struct SftStage {
    /// How it trains.
    pub training: Training,
    /// How batches are filled.
    pub packing: Packing,
    /// What is learnt on the side.
    pub side: SideLosses,
    /// What of the model it trains.
    pub adapting: Adapting,
    /// What is its own.
    pub own: Sft,
}

one_table!(SftStage { training, packing, side, adapting, own });

/// What `sft` alone has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sft {
    /// An earlier stage or a model folder; by default the last model before this stage.
    pub from: String,
    /// The conversations to learn.
    pub data: Data,
    /// Draws these tasks instead of the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Vec<TaskMix>>,
    /// The share of problems that are answered at once, without thinking.
    pub hurried_share: f64,
    /// The share of documents that are drills of the mix, as in pretraining: so that the facts which solutions use are not forgotten.
    pub drill_share: f64,
    /// Optimizer steps.
    pub steps: u64,
}

impl Default for Sft {
    fn default() -> Self {
        Sft {
            from: String::new(),
            data: Data::Problems,
            mix: None,
            hurried_share: 0.0,
            drill_share: 0.0,
            steps: 100,
        }
    }
}

impl Stage for SftStage {
    fn makes(&self) -> Makes {
        Makes::Model
    }

    fn resolve(&mut self, earlier: &Earlier) {
        earlier.fill(&mut self.own.from, Makes::Model);
        self.training.resolve(1e-3, 50, 50);
        self.side.mtp_weight.get_or_insert(0.1);
    }

    fn check(&self, at: &At, earlier: &Earlier) -> Checked {
        self.training.check(at)?;
        earlier.model(at, "from", &self.own.from)?;
        if let Data::Stage { stage } = &self.own.data {
            earlier.traces(at, "data.stage", stage)?;
        }
        check_own_mix(&self.own.mix, at)?;
        earlier.check_few_solved(at, self.own.data == Data::Problems && self.own.mix.is_some())?;
        at.number("hurried_share", self.own.hurried_share, 0.0..=1.0)?;
        at.number("drill_share", self.own.drill_share, 0.0..=0.9)?;
        if self.own.drill_share > 0.0 && self.own.mix.is_none() && earlier.problems.mix.is_empty() {
            return Err(at.error("drill_share", "drills are of the built-in tasks of a `mix` alone"));
        }
        if self.own.data != Data::Problems {
            let drawn = "no problems are drawn here: `data` names what is learnt";
            if self.own.hurried_share > 0.0 {
                return Err(at.error("hurried_share", drawn));
            }
            if self.own.mix.is_some() && self.own.drill_share == 0.0 {
                return Err(at.error("mix", format!("{drawn}, and no drills (`drill_share`)")));
            }
        }
        at.positive(&[("steps", self.own.steps)])?;
        self.packing.check(at)?;
        self.adapting.check(at)?;
        self.side.check(at)
    }

    fn built_on(&self) -> Vec<&str> {
        match &self.own.data {
            Data::Stage { stage } => vec![&self.own.from, stage],
            _ => vec![&self.own.from],
        }
    }

    fn draws_problems(&self) -> bool {
        self.own.data == Data::Problems || self.own.drill_share > 0.0
    }

    fn model(&self) -> Option<&str> {
        Some(&self.own.from)
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        match &self.own.data {
            Data::Jsonl { jsonl } => vec![("data.jsonl", jsonl)],
            _ => Vec::new(),
        }
    }

    fn work(&self, _: &Known) -> Option<Work<'_>> {
        let tokens = self.own.steps as f64 * self.packing.batch_tokens as f64;
        Some(Work::packed(&self.training, &self.packing, tokens).adapting(&self.adapting))
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<StageResult, TrainError> {
        let (mut model, tokenizer) = ctx.model(&self.own.from, self.adapting.wanted())?;
        let seq_len = self.packing.seq_len.min(model.config().max_position_embeddings());
        let material = Material {
            ctx,
            fixed: match &self.own.data {
                Data::Problems => None,
                Data::Jsonl { jsonl } => Some(conversations(ctx, &tokenizer, jsonl, seq_len)?),
                Data::Stage { stage } => {
                    let path = ctx.dir(stage)?.join("traces.jsonl");
                    Some(conversations_if_any(ctx, &tokenizer, &path, seq_len)?)
                }
            },
            mix: ctx.problems.as_ref().map(|p| p.training_mix(&self.own.mix)).transpose()?.flatten(),
            hurried_share: self.own.hurried_share,
            drill_share: self.own.drill_share,
        };
        let note = |text: &str| ctx.reporter.note(text);
        // Where an earlier stage found nothing to learn, the model stays as it is.
        let idle = material.fixed.as_ref().is_some_and(Vec::is_empty);
        match &material.fixed {
            Some(_) if idle => {}
            Some(docs) => teach_ends(&note, name, &mut model, &tokenizer, docs),
            None => teach_ends(&note, name, &mut model, &tokenizer, &[material.conversation(&tokenizer, 0)?]),
        }
        let held_out = match self.training.eval_every {
            Some(every) if every > 0 => held_out_documents(ctx, &tokenizer, seq_len)?,
            _ => Vec::new(),
        };
        let mut learner = Learner::new(model, tokenizer, &self.training.optimizer, &ctx.team);
        let mut steps = FineTuning {
            name,
            material,
            held_out,
            batch_tokens: self.packing.batch_tokens,
            limit: seq_len + 1,
            options: self.options(),
        };
        let total = if idle { 0 } else { self.own.steps };
        let cost = learner.run(ctx, name, &self.training, (total, total), &mut steps)?;
        Ok(StageResult {
            cost,
            summary: match idle {
                true => "there was nothing to learn: the model is as it was".to_owned(),
                false => format!("loss {:.3}{}", learner.usual_loss, left_out_words(&learner)),
            },
            figures: Figures::of([("loss", learner.usual_loss)]),
        })
    }
}

impl SftStage {
    fn options(&self) -> StepOptions {
        let options = self.side.options(&self.training);
        // The layer of multi-token prediction has no adapters and stays what it is.
        let mtp_weight = if self.adapting.adapter.is_some() { 0.0 } else { options.mtp_weight };
        StepOptions { mtp_weight, ..options }
    }
}

/// What is learnt from: documents of a file, or worked problems without end.
struct Material<'a> {
    ctx: &'a Context<'a>,
    fixed: Option<Vec<Document>>,
    mix: Option<Mix>,
    hurried_share: f64,
    drill_share: f64,
}

impl Material<'_> {
    /// Whether a share of the documents takes in this one.
    fn chance(&self, share: f64, index: u64, salt: u64) -> bool {
        tasks::Rng::new(&[self.ctx.seed, FIRST_PROBLEM + index, salt]).chance(share)
    }

    /// A drill or a conversation.
    fn document(&self, tokenizer: &Tokenizer, index: u64) -> Result<Document, TrainError> {
        if self.chance(self.drill_share, index, 0xd7) {
            let drills = Blend { drills: 1.0, ..Blend::default() };
            let text = self.ctx.problems()?.document(self.mix.as_ref(), FIRST_PROBLEM + index, drills);
            return Ok(Document::plain(plain_text(tokenizer, &text)?));
        }
        self.conversation(tokenizer, index)
    }

    fn conversation(&self, tokenizer: &Tokenizer, index: u64) -> Result<Document, TrainError> {
        if let Some(all) = &self.fixed {
            return Ok(nth(all, self.ctx.seed, index).clone());
        }
        let source = self.ctx.problems()?;
        let problem = source.solved(self.mix.as_ref(), FIRST_PROBLEM, index);
        let style = if self.chance(self.hurried_share, index, 0x5f7) { Style::Hurried } else { Style::Careful };
        worked(tokenizer, source, &problem, style, FIRST_PROBLEM + index)
    }
}

struct FineTuning<'a> {
    name: &'a str,
    material: Material<'a>,
    held_out: Vec<Document>,
    batch_tokens: usize,
    limit: usize,
    options: StepOptions,
}

impl Steps for FineTuning<'_> {
    fn step(&mut self, l: &mut Learner, now: &Now) -> Result<StepOutcome, TrainError> {
        let next = |tokenizer: &Tokenizer, index| self.material.document(tokenizer, index);
        let docs = fill_batch(l, self.name, self.batch_tokens, self.limit, next)?;
        Ok(l.next_token_step(pack(&docs), self.options, now.lr_factor))
    }

    fn measure(&mut self, l: &Learner, step: u64, metrics: &mut Metrics) -> Result<(), TrainError> {
        log_held_out(l, step, &self.held_out, metrics)
    }
}
